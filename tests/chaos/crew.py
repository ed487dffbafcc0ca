"""The processes under test, kept alive as a cluster keeps them: whoever dies is started anew."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    import signal
    from pathlib import Path

__all__ = ["Crew"]

POLL_S = 0.1


class Crew:
    """One frontend and some workers, each a process with a log in `folder`."""

    def __init__(self, folder: Path, environment: dict[str, str], num_workers: int) -> None:
        self._environment = os.environ | environment
        self._log: IO[str] = (folder / "crew.log").open("w")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self._lock = threading.Lock()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._started = 0
        self._stopping = threading.Event()
        self._slots = ["frontend", *(f"worker-{number}" for number in range(num_workers))]
        self._keeper = threading.Thread(target=self._keep, daemon=True)
        self._keeper.start()

    @property
    def url(self) -> str:
        """Where the frontend answers."""
        return f"http://127.0.0.1:{self.port}"

    def workers(self) -> list[str]:
        """The slots of workers."""
        return self._slots[1:]

    def signal(self, slot: str, number: signal.Signals) -> bool:
        """Send a signal to the process in a slot; whether there was one."""
        with self._lock:
            process = self._processes.get(slot)
            if process is None or process.poll() is not None:
                return False
            process.send_signal(number)
            return True

    def stop(self) -> None:
        """End everything."""
        self._stopping.set()
        self._keeper.join()
        for process in self._processes.values():
            process.kill()
            process.wait()
        self._log.close()

    def _keep(self) -> None:
        while not self._stopping.is_set():
            with self._lock:
                for slot in self._slots:
                    process = self._processes.get(slot)
                    if process is None or process.poll() is not None:
                        self._processes[slot] = self._start(slot)
            time.sleep(POLL_S)

    def _start(self, slot: str) -> subprocess.Popen[bytes]:
        self._started += 1
        # As in a pool, a name is one process: a new one gets a new name.
        told = ("frontend", str(self.port)) if slot == "frontend" else ("worker", f"{slot}-{self._started}")
        command = [sys.executable, "-m", "tests.chaos.subject", *told]
        return subprocess.Popen(command, env=self._environment, stdout=self._log, stderr=self._log)
