"""A hundred jobs among random failures: the short form of `make chaos`."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.cluster.seaweed import needed


@pytest.mark.cluster
@pytest.mark.slow
def test_no_failure_loses_doubles_or_mixes_up_a_job() -> None:
    needed("weed")
    needed("initdb")
    told = subprocess.run(
        [sys.executable, "-m", "tests.chaos", "100"], capture_output=True, text=True, timeout=1_500
    )
    assert told.returncode == 0, told.stdout + told.stderr
    assert "no job lost, doubled or mixed up" in told.stdout.splitlines()[-1]
