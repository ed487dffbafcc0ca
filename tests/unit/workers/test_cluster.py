from __future__ import annotations

import socket

import pytest
from typer.testing import CliRunner

from service.settings import Settings
from workers.cluster import ClusterUnreachable, ensure_pool


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
