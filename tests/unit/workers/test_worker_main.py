"""The console script: instant help, and refusals that say what to do instead."""

from __future__ import annotations

import contextlib
import socket
import sqlite3
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
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


@pytest.mark.parametrize(
    ("setting", "value", "told"),
    [
        (
            "DEVICE",
            "cuda",
            "finds no GPU; expected a GPU, as DREAMSERVE_DEVICE=cuda says. Install NVIDIA's driver",
        ),
        ("WORKER_GPUS", "1", "DREAMSERVE_WORKER_GPUS=1 lets a cluster's Ray give GPUs to workers"),
        ("REWARD_GPU_SHARE", "0.2", "DREAMSERVE_REWARD_GPU_SHARE=0.2 wants a share of a GPU for each shared"),
    ],
)
def test_a_gpu_that_is_wanted_and_cannot_be_had_is_named_before_anything_starts(
    setting: str, value: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setenv(f"DREAMSERVE_{setting}", value)
    result = CliRunner().invoke(app, ["up", "--port", "0", "--data-dir", str(tmp_path / "data")])
    assert result.exit_code == 2
    assert told in result.stderr


def test_a_service_that_does_not_become_ready_says_what_it_waits_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from workers import up

    class Frontend(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(503)
            self.end_headers()
            self.wfile.write(b'{"detail": "The database did not answer."}')

        def log_message(self, *_: object) -> None:
            pass

    monkeypatch.setattr(up, "READY_S", 0.5)
    with HTTPServer(("127.0.0.1", 0), Frontend) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        assert up.wait_until_ready(url, threading.Event()) == "The database did not answer."
        server.shutdown()
    assert up.wait_until_ready(url, threading.Event()) == "no answer."
