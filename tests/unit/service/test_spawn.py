"""A child that is a service: found when ready, explained when it fails, ended in any case."""

from __future__ import annotations

import os
import signal
import sys
import textwrap

import pytest

from service.client_errors import ServiceUnavailableError
from service.spawn import EmbeddedService, up_command


def program(text: str) -> list[str]:
    return [sys.executable, "-c", textwrap.dedent(text)]


READY = """
    import json, os, time
    print("noise")
    print(json.dumps({"url": "http://127.0.0.1:1", "pid": os.getpid()}), flush=True)
    for _ in range(5_000):
        print("more noise than a pipe holds, which nobody reads " * 10)
    time.sleep(60)
"""


def test_a_service_is_up_inside_the_block_and_gone_behind_it() -> None:
    with EmbeddedService(program(READY)) as service:
        assert service.url == "http://127.0.0.1:1"
        os.kill(service.pid, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(service.pid, 0)


def test_a_service_that_dies_before_it_is_ready_is_quoted() -> None:
    with (
        pytest.raises(ServiceUnavailableError, match=r"status 3 before it was ready(.|\n)*port is taken"),
        EmbeddedService(program("import sys; print('port is taken', file=sys.stderr); sys.exit(3)")),
    ):
        raise AssertionError("the block must not run")


def test_a_service_that_ignores_the_signal_is_killed() -> None:
    stubborn = READY.replace('print("noise")', "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)")
    with EmbeddedService(program(stubborn), stop_timeout_s=0.2) as service:
        pass
    with pytest.raises(ProcessLookupError):
        os.kill(service.pid, 0)


def test_being_told_to_end_ends_the_service_too() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as caught, EmbeddedService(program(READY)) as service:
        os.kill(os.getpid(), signal.SIGTERM)
    assert caught.value.code == 143
    with pytest.raises(ProcessLookupError):
        os.kill(service.pid, 0)
    assert signal.getsignal(signal.SIGTERM) == before


def test_the_command_asks_for_a_free_port() -> None:
    assert up_command(None)[1:] == ["-m", "workers.main", "up", "--port", "0"]
