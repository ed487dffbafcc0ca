"""Waking idle workers: whoever queues a job announces it, and PostgreSQL tells those who listen within a millisecond.

SQLite tells nobody anything, so there a worker looks again after a moment. An announcement may get lost with its
connection, and a job may become due without any: so nobody waits for one for longer than it would for such a job.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa

if TYPE_CHECKING:
    from service.jobs.database import Database, Transaction

__all__ = ["POLL_S", "Wakeup", "announce"]

POLL_S: Final = 0.25
"""How soon to look again where nobody announces anything."""
_CHANNEL: Final = "dreamserve_work"


def announce(tx: Transaction) -> None:
    """Tell listening workers, when this transaction commits, that there is a job to claim."""
    if tx.connection.dialect.name == "postgresql":
        tx.execute(sa.select(sa.func.pg_notify(_CHANNEL, "")))


class Wakeup:
    """Waits for announcements, on a connection of its own; for one thread at a time."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._connection: Any = None

    def wait(self, timeout_s: float) -> None:
        """Return when a job was announced since the last call, and after `timeout_s` at the latest."""
        if not self._database.announces:
            time.sleep(min(POLL_S, timeout_s))
            return
        began = time.monotonic()
        try:
            self._listen()
            for _ in self._connection.notifies(timeout=timeout_s, stop_after=1):
                return
        except self._database.driver_error:
            # The store is away: whoever asks it next will say so. Until then, wait as if nothing had come.
            self.close()
            time.sleep(max(0.0, timeout_s - (time.monotonic() - began)))

    def close(self) -> None:
        """Stop listening."""
        if self._connection is not None:
            with contextlib.suppress(self._database.driver_error):
                self._connection.close()
            self._connection = None

    def _listen(self) -> None:
        if self._connection is None:
            self._connection = self._database.lend_connection()
            self._connection.execute(f"LISTEN {_CHANNEL}")
