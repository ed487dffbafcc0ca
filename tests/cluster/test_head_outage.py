"""The head of a cluster that keeps its state in Redis dies and comes back: running jobs do not notice."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.cluster.seaweed import needed

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.cluster
@pytest.mark.slow
def test_a_running_job_goes_on_while_the_head_is_away_and_the_pool_when_it_is_back(tmp_path: Path) -> None:
    needed("redis-server")
    command = [sys.executable, "-m", "tests.cluster.gcs_outage", str(tmp_path)]
    told = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert told.returncode == 0, told.stderr[-4_000:]
    seen = json.loads(told.stdout.splitlines()[-1])  # Ray writes there too
    before, during = seen["steps"]
    assert during > before, "the job stood still during the outage"
    assert seen["back_s"] < 60
    running, later = seen["jobs"]
    assert [one["outcome"] for one in running["attempts"]] == ["succeeded"]
    assert later["status"] == "succeeded"
    assert {one["worker"] for one in (*running["attempts"], *later["attempts"])} == set(seen["workers"])
