"""The console script: instant help, and refusals that say what to do instead."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from workers.main import app

HEAVY = ("torch", "ray", "sqlalchemy")


def test_help_is_instant_and_needs_nothing_heavy() -> None:
    program = (
        "import sys; from workers.main import main\n"
        "try:\n main()\nexcept SystemExit: pass\n"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    command = [sys.executable, "-c", program, "--help"]
    told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
    assert " up " in told
    assert " worker " in told
    assert told.splitlines()[-1] == "[]"


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.7", "example.org"])
def test_an_address_that_others_reach_is_refused(host: str) -> None:
    result = CliRunner().invoke(app, ["up", "--host", host, "--port", "0"])
    assert result.exit_code == 2
    assert "Use a loopback address" in result.stderr


def test_a_port_in_use_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        result = CliRunner().invoke(app, ["up", "--port", str(port)])
    assert result.exit_code == 2
    assert f"127.0.0.1:{port}" in result.stderr
    assert "Choose another --port" in result.stderr
