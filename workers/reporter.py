"""The one thread of a worker that speaks to the job store while the others work.

It renews leases, tells progress, brings back cancels and deadlines, and keeps the worker's own rows
(heartbeat, capabilities, seconds) fresh, also during a long export.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING

from service.jobs.errors import StoreUnavailable
from service.jobs.states import StaleLease

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from service.jobs.capabilities import Capabilities
    from service.jobs.store import JobStore
    from workers.attempt import Attempt
    from workers.worker_seconds import WorkerSeconds

__all__ = ["Reporter"]

log = logging.getLogger(__name__)

HOUSEKEEPING_S = 5.0
"""How often the worker's own rows are renewed; they live for 60 s."""


class Reporter:
    """Report all attempts of one worker every `interval_s`, and at once after `wake()`."""

    def __init__(
        self,
        store: JobStore,
        worker: str,
        attempts: Callable[[], Sequence[Attempt]],
        seconds: WorkerSeconds,
        interval_s: float,
        discard: Callable[[str], None],
    ) -> None:
        """`attempts` lists what is held now; `discard` takes keys of checkpoints that nobody needs."""
        self._store = store
        self._worker = worker
        self._attempts = attempts
        self._seconds = seconds
        self._interval_s = interval_s
        self._discard = discard
        self._wake = threading.Event()
        self._stopping = False
        self._kept_house_at = float("-inf")
        self._thread = threading.Thread(target=self._run, name="reporter", daemon=True)
        self.state = "starting"
        self.slots = 1
        self.capabilities: Capabilities | None = None

    def start(self) -> None:
        """Begin to report."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread; what it still had to tell about the worker is told."""
        self._stopping = True
        self._wake.set()
        self._thread.join()
        self._kept_house_at = float("-inf")
        self.keep_house()

    def wake(self) -> None:
        """Report now."""
        self._wake.set()

    def announce(self, state: str) -> None:
        """Tell the worker's new state (`starting | idle | busy | draining`) now."""
        if state != self.state:
            self.state = state
            self._kept_house_at = float("-inf")
            self._wake.set()

    def report_all(self) -> None:
        """Report every attempt once. Never raises: an attempt that cannot be reported stops by itself."""
        for attempt in self._attempts():
            if attempt.ended:
                continue
            try:
                self._report(attempt)
            except StaleLease as stale:
                if not attempt.ended:
                    log.warning("%s", stale)
                attempt.ended = True
            except StoreUnavailable as error:
                log.warning("could not report %s: %s", attempt.lease.job_id, error)
            except Exception:
                log.exception("could not report %s", attempt.lease.job_id)

    def keep_house(self) -> None:
        """Renew the worker's own rows when it is time. Never raises."""
        if time.monotonic() - self._kept_house_at < HOUSEKEEPING_S:
            return
        self._kept_house_at = time.monotonic()
        seconds = self._seconds.take()
        try:
            self._store.add_worker_seconds(self._worker, seconds)
            seconds = {}
            busy_slots = min(len(self._attempts()), self.slots)
            self._store.heartbeat(self._worker, state=self.state, slots=self.slots, busy_slots=busy_slots)
            if self.capabilities is not None:
                self._store.publish_capabilities(self._worker, self.capabilities)
        except StoreUnavailable as error:
            self._seconds.give_back(seconds)
            log.warning("could not renew the rows of worker %s: %s", self._worker, error)
        except Exception:
            self._seconds.give_back(seconds)
            log.exception("could not renew the rows of worker %s", self._worker)

    def _run(self) -> None:
        while not self._stopping:
            self.report_all()
            self.keep_house()
            self._wake.wait(self._interval_s)
            self._wake.clear()

    def _report(self, attempt: Attempt) -> None:
        asked_at = time.monotonic()
        attempt.measure_pace(asked_at)
        checkpoint, warnings = attempt.untold_checkpoint, tuple(attempt.untold_warnings)
        resumed_from_step = attempt.untold_resumption
        scores = tuple(attempt.untold_scores)
        answer = self._store.report(
            attempt.lease,
            stage=attempt.stage,
            step=attempt.step,
            steps_total=attempt.lease.spec.steps,
            steps_per_s=attempt.steps_per_s,
            worker_s=attempt.held_s(asked_at),
            checkpoint=checkpoint,
            resumed_from_step=resumed_from_step,
            scores=scores,
            warnings=warnings,
        )
        attempt.renewed(asked_at, answer)
        if resumed_from_step is not None:  # else it may have been set while this report was under way
            attempt.untold_resumption = None
        del attempt.untold_warnings[: len(warnings)]
        del attempt.untold_scores[: len(scores)]
        if attempt.untold_checkpoint is checkpoint:
            attempt.untold_checkpoint = None
        for key in answer.superseded:
            self._discard(key)
