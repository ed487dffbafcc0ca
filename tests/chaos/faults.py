"""The faults, all of them from outside the processes: signals, and connections that fail."""

from __future__ import annotations

import collections
import random
import signal
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.chaos.crew import Crew
    from tests.chaos.proxy import FaultProxy

__all__ = ["Faults"]

LEAST_OF_EACH = 10
PAUSE_S = (0.2, 1.2)
"""Between two faults, until each kind was done often enough."""
LATER_PAUSE_S = (2.0, 6.0)
"""From then on: a worker that dies takes seconds to come back, and most work of a long run is to get done."""
OUTAGE_S = (0.3, 2.5)


class Faults:
    """Does faults in random order, from `start` until each kind was done often enough and `may_stop` is set."""

    def __init__(
        self, crew: Crew, database: FaultProxy, objects: FaultProxy, lease_s: float, seed: int
    ) -> None:
        self._crew, self._database, self._objects, self._lease_s = crew, database, objects, lease_s
        self._random = random.Random(seed)
        self.counts: collections.Counter[str] = collections.Counter()
        self.may_stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.kinds: dict[str, Callable[[], bool]] = {
            "worker killed": lambda: crew.signal(self._worker(), signal.SIGKILL),
            "worker frozen past its lease": self._freeze,
            "frontend killed": lambda: crew.signal("frontend", signal.SIGKILL),
            "database connections reset": lambda: self._reset(database),
            "database refused": lambda: self._outage(database, "refuse"),
            "database silent": lambda: self._outage(database, "silent"),
            "object store connections reset": lambda: self._reset(objects),
            "object store refused": lambda: self._outage(objects, "refuse"),
        }

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def join(self) -> None:
        """Wait for the end."""
        self._thread.join()

    def _run(self) -> None:
        while not (self.may_stop.is_set() and self._are_enough()):
            # The rarest kinds first, in random order: so that all of them have been met soon.
            least = min((self.counts[kind] for kind in self.kinds), default=0)
            kind = self._random.choice([one for one in self.kinds if self.counts[one] <= least + 1])
            if self.kinds[kind]():
                self.counts[kind] += 1
            time.sleep(self._random.uniform(*LATER_PAUSE_S if self._are_enough() else PAUSE_S))

    def _are_enough(self) -> bool:
        return all(self.counts[kind] >= LEAST_OF_EACH for kind in self.kinds)

    def _worker(self) -> str:
        return self._random.choice(self._crew.workers())

    def _freeze(self) -> bool:
        slot = self._worker()
        if not self._crew.signal(slot, signal.SIGSTOP):
            return False
        time.sleep(self._lease_s + self._random.uniform(0.5, 2.0))
        return self._crew.signal(slot, signal.SIGCONT)

    def _reset(self, proxy: FaultProxy) -> bool:
        proxy.reset()
        return True

    def _outage(self, proxy: FaultProxy, mode: str) -> bool:
        proxy.set_mode(mode)  # type: ignore[arg-type]
        time.sleep(self._random.uniform(*OUTAGE_S))
        proxy.set_mode("pass")
        return True
