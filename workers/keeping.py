"""As many workers as are wanted, without Ray: who dies is replaced, and who is spare ends when it is idle."""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
import uuid
from typing import TYPE_CHECKING, Protocol

from service.jobs.errors import StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from service.jobs.leadership import Leadership
    from service.jobs.store import JobStore
    from service.settings import Settings

__all__ = ["ENDED", "NAME_PREFIX", "LedPool", "Pool", "WorkerHandle", "wanted_workers"]

log = logging.getLogger(__name__)

NAME_PREFIX = "worker-"
ENDED = "ended"
SHORT_LIFE_S, PAUSE_MAX_S = 20.0, 60.0
"""A worker that died younger than this is replaced after a pause, which doubles each time."""
TROUBLED_PAUSE_S = 4.0
"""The pause after three of them in a row."""
SILENT_S = 60.0
"""A worker that answers nothing for so long is frozen, or stuck in something that lets no thread run. Its leases have
run out by then; ending it frees what it holds."""


class WorkerHandle(Protocol):
    """A worker as the pool sees it."""

    name: str

    def state(self) -> str | None:
        """`starting | idle | busy | draining`, `ENDED` after `end_when_idle`, None when it died."""
        ...

    @property
    def silent_s(self) -> float:
        """Seconds since it last answered; 0 before its first answer."""
        ...

    @property
    def has_answered(self) -> bool:
        """Whether it ever has: before, it may have no place to run at."""
        ...

    def end_when_idle(self) -> None: ...
    def drain(self, timeout_s: float) -> bool: ...
    def kill(self) -> None: ...


class Pool:
    """Keep as many workers alive as `wanted` says; `tend` is to be called again and again.

    A worker that is too many ends by itself, and only when it has nothing to do.
    """

    def __init__(
        self,
        wanted: Callable[[], int],
        start: Callable[[str], WorkerHandle],
        lost: Callable[[str], object],
        *,
        idle_s: float = 60.0,
        at_most: float = math.inf,
        may_act: Callable[[], bool] = lambda: True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`start` makes a worker of a given name, `lost` is told the name of one that died.

        A spare worker may be without work for `idle_s`. `at_most` bounds all workers, those too that are to end when
        they are idle: each holds what it was given until then. `may_act` is asked before a worker is started or sent
        home.
        """
        self._wanted = wanted
        self._idle_s = idle_s
        self._start = start
        self._lost = lost
        self._at_most = at_most
        self._may_act = may_act
        self._clock = clock
        self._workers: dict[str, tuple[WorkerHandle, float]] = {}
        self._idle_since: dict[str, float] = {}
        self._leaving: set[str] = set()
        self._untold: list[str] = []
        self._pause_s = 0.0
        self._not_before = clock()

    @property
    def names(self) -> tuple[str, ...]:
        """The workers that were alive when last looked at."""
        return tuple(self._workers)

    @property
    def is_troubled(self) -> bool:
        """Whether several workers in a row have died soon after they were born."""
        return self._pause_s >= TROUBLED_PAUSE_S

    @property
    def waiting_s(self) -> float:
        """Seconds that a worker waits for its place since it was started: the longest; 0 when none does."""
        waiting = [born for handle, born in self._workers.values() if not handle.has_answered]
        return self._clock() - min(waiting) if waiting else 0.0

    def adopt(self, living: Iterable[WorkerHandle]) -> None:
        """Tend these workers too, unless they are known; somebody else has started them."""
        for handle in living:
            self._workers.setdefault(handle.name, (handle, self._clock()))

    def tend(self) -> None:
        """Notice the dead, end their leases, start what is missing, send home who is spare."""
        for name, (handle, born) in list(self._workers.items()):
            self._look_at(name, handle, born)
        self._tell()
        wanted = self._wanted()
        self._send_home(wanted)
        while self._lacks_one(wanted) and self._clock() >= self._not_before:
            if not self._may_act():
                return
            name = f"{NAME_PREFIX}{uuid.uuid4().hex[:8]}"
            self._workers[name] = (self._start(name), self._clock())

    def _lacks_one(self, wanted: int) -> bool:
        return len(self._workers) - len(self._leaving) < wanted and len(self._workers) < self._at_most

    def _look_at(self, name: str, handle: WorkerHandle, born: float) -> None:
        state, now = handle.state(), self._clock()
        if state == "idle":
            self._idle_since.setdefault(name, now)
        else:
            self._idle_since.pop(name, None)
        silent = state not in (None, ENDED) and handle.silent_s > SILENT_S
        if state not in (None, ENDED) and not silent:
            return
        del self._workers[name]
        if state == ENDED:
            log.info("worker %s has ended in good order", name)
            handle.kill()
        elif silent:
            log.warning("worker %s has not answered for %.0f s, and is ended", name, handle.silent_s)
            handle.kill()
            self._untold.append(name)
        else:
            log.warning("worker %s died", name)
            self._untold.append(name)
            self._pause(now - born)
        self._leaving.discard(name)

    def _send_home(self, wanted: int) -> None:
        """Ask spare workers that have been idle for long to end, the longest idle first."""
        rested = [name for name, since in self._idle_since.items() if self._clock() - since >= self._idle_s]
        spare = len(self._workers) - len(self._leaving) - wanted
        able = [
            name for name in sorted(rested, key=self._idle_since.__getitem__) if name not in self._leaving
        ]
        for name in able[: max(0, spare)]:
            if not self._may_act():
                return
            self._workers[name][0].end_when_idle()
            self._leaving.add(name)

    def drain(self, timeout_s: float) -> None:
        """End all workers: in good order those that manage within `timeout_s`, the others by force."""
        self._wanted = lambda: 0
        deadline = self._clock() + timeout_s
        threads = [
            threading.Thread(target=self._drain_one, args=(handle, deadline))
            for handle, _ in self._workers.values()
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self._workers.clear()
        self._tell()

    def _drain_one(self, handle: WorkerHandle, deadline: float) -> None:
        if not handle.drain(max(0.1, deadline - self._clock())):
            log.warning("worker %s did not drain in time", handle.name)
            self._untold.append(handle.name)
        handle.kill()

    def _pause(self, lived_s: float) -> None:
        if lived_s >= SHORT_LIFE_S:
            self._pause_s = 0.0
            return
        self._not_before = self._clock() + self._pause_s
        self._pause_s = min(max(1.0, 2 * self._pause_s), PAUSE_MAX_S)

    def _tell(self) -> None:
        for name in list(self._untold):
            try:
                self._lost(name)
            except Exception as error:
                log.warning("cannot end the leases of %s yet: %s", name, error)
            else:
                self._untold.remove(name)


class LedPool:
    """A pool that is tended while this process leads, and taken over as it is then whenever it begins to lead."""

    def __init__(
        self, pool: Pool, leadership: Leadership, living: Callable[[], Iterable[WorkerHandle]]
    ) -> None:
        """`living` finds the workers of this cluster, whoever has started them."""
        self.pool = pool
        self._leadership = leadership
        self._living = living

    def tend(self) -> None:
        """Tend the pool, if this process leads; raises `StoreUnavailable`."""
        led = self._leadership.is_held
        if not self._leadership.hold():
            return
        if not led:
            self.pool.adopt(self._living())
            log.info("leading a pool of %d workers", len(self.pool.names))
        self.pool.tend()

    def drain(self, timeout_s: float) -> None:
        """End all workers of this cluster, whoever leads, and let another one lead."""
        self.pool.adopt(self._living())
        self.pool.drain(timeout_s)
        with contextlib.suppress(StoreUnavailable):  # it runs out by itself
            self._leadership.give_up()


def wanted_workers(settings: Settings, store: JobStore) -> int:
    """Count the workers that there should be: for all jobs that could run now, within the operator's bounds."""
    if settings.min_workers is None or settings.min_workers >= settings.workers:
        return settings.workers
    workers = math.ceil(store.wanted_slots() / settings.slots_per_worker)
    return max(settings.min_workers, min(workers, settings.workers))
