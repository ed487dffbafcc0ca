from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from service.settings import Settings
from workers.cluster import ClusterUnreachable, ensure_pool

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def nowhere() -> str:
    """An address at which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def test_a_cluster_that_is_not_there_is_named_at_once(nowhere: str) -> None:
    with pytest.raises(ClusterUnreachable, match=rf"'{nowhere}' within 0 s .*RAY_AUTH_TOKEN"):
        ensure_pool(Settings(), nowhere, timeout_s=0)


def test_the_command_says_so_and_fails(nowhere: str) -> None:
    from workers.main import app

    answer = CliRunner().invoke(app, ["pool", "--address", nowhere, "--timeout-s", "0"])
    assert answer.exit_code == 2
    assert "no Ray cluster answered" in answer.output


def test_a_service_says_so_too(nowhere: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from workers.main import app

    monkeypatch.setenv("RAY_ADDRESS", nowhere)
    monkeypatch.setattr("workers.up.CONNECT_S", 0.0)
    given = ["up", "--cluster", "--port", "0", "--data-dir", str(tmp_path)]
    answer = CliRunner().invoke(app, given)
    assert answer.exit_code == 2
    assert f"no Ray cluster answered at '{nowhere}'" in answer.output
