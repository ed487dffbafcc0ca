"""Notice a worker that lives and gets nowhere: its leases are renewed by another thread, and would be for ever.

Each stage has a time within which something must move: a step while optimizing, the stage itself elsewhere. A thread
that is stuck in a network or a driver cannot be stopped, so the process ends; its jobs go on elsewhere.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from service.jobs.states import FailureCode, Stage

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from service.jobs.store import JobStore
    from workers.attempt import Attempt

__all__ = ["LIMITS_S", "Watchdog", "give_up"]

log = logging.getLogger(__name__)

LOOK_EVERY_S: Final = 1.0
LIMITS_S: Final[dict[Stage, float]] = {
    Stage.LOADING: 900.0,
    Stage.PREVIEW: 600.0,
    Stage.COARSE: 60.0,
    Stage.REFINE: 60.0,
    Stage.EXPORT: 600.0,
    Stage.VERIFY: 600.0,
    Stage.UPLOAD: 600.0,
}
"""How long an attempt may be at one step of one stage; a try of the object store is one too, as tries have a budget."""
_TOGETHER: Final = frozenset({Stage.LOADING, Stage.PREVIEW, Stage.COARSE, Stage.REFINE})
"""One thread does these for all attempts of a worker: what moves one of them has kept the others waiting."""


class _Seen(NamedTuple):
    place: tuple[Stage, int, int]
    at: float
    attempt: Attempt


class Watchdog:
    """Watches the attempts of one worker from a thread of its own."""

    def __init__(
        self,
        attempts: Callable[[], Sequence[Attempt]],
        stalled: Callable[[list[tuple[Attempt, str]]], object],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`stalled` is told attempts that got nowhere, each with a sentence that says for how long."""
        self._attempts = attempts
        self._stalled = stalled
        self._clock = clock
        self._seen: dict[tuple[str, int], _Seen] = {}
        self._moved_at = self._export_moved_at = clock()

    def start(self) -> None:
        """Watch until the process ends."""
        threading.Thread(target=self._run, name="watchdog", daemon=True).start()

    def look(self) -> list[tuple[Attempt, str]]:
        """Find attempts that are past their limit now."""
        now, before = self._clock(), self._seen
        self._seen = {}
        for one in self._attempts():
            key, place = (one.lease.job_id, one.lease.attempt), (one.stage, one.step, one.store_failures)
            known = before.get(key)
            if known is not None and known.place == place:
                self._seen[key] = known
            else:
                self._seen[key] = _Seen(place, now, one)
                if one.stage in _TOGETHER:
                    self._moved_at = now
                else:
                    self._export_moved_at = now
        if before.keys() - self._seen.keys():
            self._moved_at = now
        found = []
        for seen in self._seen.values():
            limit_s, still_s = self._limit_s(seen), now - self._since(seen)
            if still_s > limit_s and not seen.attempt.ended:
                stage, step, _ = seen.place
                detail = f"stage '{stage}' stood at step {step} for {still_s:.0f} s, and {limit_s:.0f} s is the limit"
                found.append((seen.attempt, detail))
        return found

    def _since(self, seen: _Seen) -> float:
        if seen.place[0] not in _TOGETHER:
            return seen.at
        moved_at = max(seen.at, self._moved_at)
        return max(moved_at, self._export_moved_at) if _may_wait_for_an_export(seen) else moved_at

    def _limit_s(self, seen: _Seen) -> float:
        return LIMITS_S[Stage.EXPORT] if _may_wait_for_an_export(seen) else LIMITS_S[seen.place[0]]

    def _run(self) -> None:
        while True:
            if found := self.look():
                self._stalled(found)
                return
            threading.Event().wait(LOOK_EVERY_S)


def _may_wait_for_an_export(seen: _Seen) -> bool:
    """Whether all is made that is made here, so that it may be its turn after the export of another job."""
    stage, step, _ = seen.place
    is_optimized = stage in (Stage.COARSE, Stage.REFINE) and step >= seen.attempt.lease.spec.steps
    return is_optimized or stage is Stage.PREVIEW


def give_up(store: JobStore, stalled: Sequence[tuple[Attempt, str]]) -> None:
    """Tell the store which attempts got nowhere, and end this process, whatever its other threads do."""
    try:
        for attempt, detail in stalled:
            log.error("giving up attempt %d of %s: %s", attempt.lease.attempt, attempt.lease.job_id, detail)
            store.fail(attempt.lease, FailureCode.STAGE_TIMEOUT, detail)
    except Exception:
        log.exception("the store was not told; the leases run out")
    finally:
        logging.shutdown()
        os._exit(1)
