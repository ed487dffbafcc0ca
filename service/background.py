"""What the frontend does beside answering: chores that return at once when there is nothing to do, again and again.

Any number of processes may run the same chores; each chore takes its work from the database with a lease.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, NamedTuple

from service.jobs.errors import StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Background", "Chore"]

logger = logging.getLogger(__name__)

_STOP_S = 15.0
"""How long the end waits for a chore that is under way; what it leaves undone, another process takes up."""


class Chore(NamedTuple):
    """Something to do every `every_s` seconds, counted from the end of the time before."""

    do: Callable[[], object]
    every_s: float


class Background:
    """Runs chores from `start` to `stop`, each in a daemon thread, so that a slow one delays no other."""

    def __init__(self, chores: Sequence[Chore]) -> None:
        self._ending = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(chore,), daemon=True) for chore in chores]

    def start(self) -> None:
        """Begin; once."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Begin nothing more, and wait a while for what is under way."""
        self._ending.set()
        for thread in self._threads:
            thread.join(_STOP_S)

    def _run(self, chore: Chore) -> None:
        while not self._ending.wait(chore.every_s):
            try:
                chore.do()
            except StoreUnavailable as error:
                logger.warning("a chore waits for its store: %s", error)
            except Exception:
                # A chore that fails once must not end its thread, since nobody would start it again.
                logger.exception("a chore failed; it is tried again in %g s", chore.every_s)
