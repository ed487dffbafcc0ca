"""A service for the time of one command: `dreamserve up` as a child process, ended with the command."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from typing import TYPE_CHECKING, Final, NoReturn, Self

from service.client_errors import ServiceUnavailableError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from types import FrameType

__all__ = ["EmbeddedService", "up_command"]

READY_TIMEOUT_S: Final = 180.0
"""Ray starts in 3–7 s and models load in seconds; a cold disk may take a minute or two."""
STOP_TIMEOUT_S: Final = 30.0
"""`dreamserve up` promises to end itself and all that it started within 30 s of SIGTERM."""
READER_GRACE_S: Final = 1.0
"""What is left in the pipe is read at once, unless a grandchild holds it open."""
LOG_TAIL_BYTES: Final = 2_000


def up_command(data_dir: Path | None) -> list[str]:
    """Write the command line of `dreamserve up` on a free loopback port."""
    place = [] if data_dir is None else ["--data-dir", str(data_dir)]
    return [sys.executable, "-m", "workers.main", "up", "--port", "0", *place]


class EmbeddedService:
    """Run `command` while the `with` block lasts; it says `{"url": …}` on its stdout when it is ready.

    It gets a session of its own, so that Ctrl-C reaches only this process, which then decides.
    `url` and `pid` are set inside the block. Raises `ServiceUnavailableError` when the service does not come up.
    """

    def __init__(self, command: Sequence[str], stop_timeout_s: float = STOP_TIMEOUT_S) -> None:
        self.url = ""
        self.pid = 0
        self._command = list(command)
        self._stop_timeout_s = stop_timeout_s

    def __enter__(self) -> Self:
        self._log = tempfile.TemporaryFile()
        # A command that is told to end, or whose terminal closes, still has to end its child.
        self._handlers = {each: signal.signal(each, _exit) for each in (signal.SIGTERM, signal.SIGHUP)}
        self._process = subprocess.Popen(  # noqa: S603 - our own program, and no shell
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._log,
            start_new_session=True,
        )
        self.pid = self._process.pid
        self._ready = threading.Event()
        self._reader = threading.Thread(target=self._read_output, daemon=True)
        self._reader.start()
        try:
            in_time = self._ready.wait(READY_TIMEOUT_S)
            if not self.url:
                raise ServiceUnavailableError(self._describe_failure(in_time))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        try:
            self._process.wait(self._stop_timeout_s)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            os.killpg(self.pid, signal.SIGKILL)
            self._process.wait()
        self._reader.join(READER_GRACE_S)
        for each, handler in self._handlers.items():
            signal.signal(each, handler)
        self._log.close()

    def _read_output(self) -> None:
        """Find the ready line, then keep reading: a child must never block on a full pipe."""
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    self.url = self.url or json.loads(line)["url"]
                    self._ready.set()
        self._ready.set()

    def _describe_failure(self, in_time: bool) -> str:
        self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, self._log.tell() - LOG_TAIL_BYTES))
        tail = self._log.read().decode("utf-8", "replace").strip()
        what = (
            f"ended with status {self._process.wait()} before it was ready"
            if in_time
            else f"was not ready within {READY_TIMEOUT_S:.0f} s"
        )
        return f"The embedded service {what}. Its last words:\n{tail or '(none)'}"


def _exit(signum: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + signum)
