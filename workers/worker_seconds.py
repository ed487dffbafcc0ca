"""Where a worker's time goes: every second that it is held, in exactly one use."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["Use", "WorkerSeconds"]

Use = Literal["optimizing", "loading", "exporting", "idle", "redone"]
"""`redone` = optimization steps that an earlier attempt had done, but no checkpoint had kept."""


class WorkerSeconds:
    """A stopwatch that is always running for something: the uses add up to the time since it was made."""

    def __init__(self, use: Use = "loading", clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._seconds: dict[str, float] = dict.fromkeys(get_args(Use), 0.0)
        self._since = clock()
        self._use: Use = use
        self._redone_share = 0.0

    def switch(self, use: Use, redone_share: float = 0.0) -> None:
        """Count from now on for `use`, and `redone_share` in [0, 1] of it as redone."""
        with self._lock:
            self._book()
            self._use, self._redone_share = use, redone_share

    def take(self) -> dict[str, float]:
        """Hand out the seconds by use since the last `take`."""
        with self._lock:
            self._book()
            taken = self._seconds
            self._seconds = dict.fromkeys(taken, 0.0)
            return taken

    def give_back(self, seconds: Mapping[str, float]) -> None:
        """Take seconds back that could not be written down, to hand them out again later."""
        with self._lock:
            for use, amount in seconds.items():
                self._seconds[use] += amount

    def _book(self) -> None:
        now = self._clock()
        passed, self._since = now - self._since, now
        self._seconds[self._use] += (1 - self._redone_share) * passed
        self._seconds["redone"] += self._redone_share * passed
