"""The console script: instant help, and refusals that say what to do instead."""

from __future__ import annotations

import contextlib
import socket
import sqlite3
import subprocess
import sys
from typing import TYPE_CHECKING, Literal

import pytest
from typer.testing import CliRunner

from service.settings import Settings
from workers.main import app, authenticating

if TYPE_CHECKING:
    from pathlib import Path

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
def test_an_address_that_others_reach_is_refused_without_authentication(
    host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DREAMSERVE_AUTH", "off")
    result = CliRunner().invoke(app, ["up", "--host", host, "--port", "0", "--data-dir", str(tmp_path)])
    assert result.exit_code == 2
    assert "DREAMSERVE_AUTH=off lets anybody use it" in result.stderr
    assert "use a loopback address" in result.stderr


@pytest.mark.parametrize(
    ("host", "wished", "auth"),
    [
        ("127.0.0.1", None, "off"),
        ("::1", None, "off"),
        ("localhost", None, "off"),
        ("0.0.0.0", None, "on"),
        ("127.0.0.1", "on", "on"),
        ("192.0.2.7", "on", "on"),
    ],
)
def test_callers_need_a_key_by_default_where_others_reach_the_service(
    host: str, wished: Literal["on"] | None, auth: str, tmp_path: Path
) -> None:
    assert authenticating(Settings(data_dir=tmp_path, auth=wished), host).auth == auth


def test_a_database_of_another_release_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DREAMSERVE_DATABASE_URL", raising=False)
    with contextlib.closing(sqlite3.connect(tmp_path / "jobs.sqlite3")) as database:
        database.execute("CREATE TABLE jobs (id TEXT)")
    result = CliRunner().invoke(app, ["up", "--port", "0", "--data-dir", str(tmp_path)])
    assert result.exit_code == 2
    assert "made by an early release" in result.stderr


def test_a_port_in_use_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        result = CliRunner().invoke(app, ["up", "--port", str(port)])
    assert result.exit_code == 2
    assert f"127.0.0.1:{port}" in result.stderr
    assert "Choose another --port" in result.stderr
