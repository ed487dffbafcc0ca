"""A worker's life: claim → load or resume → engine → checkpoint → publish, for a few scenes at a time.

One thread lives this life; beside it the reporter speaks to the job store, the checkpoint writer uploads, and what
is finished is exported and published while the next scenes step.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from service.jobs.errors import StoreUnavailable
from service.jobs.states import Stage
from workers.attempt import Attempt, Verdict
from workers.candidates import make_team
from workers.checkpoints import CheckpointWriter, open_team
from workers.ending import Ending
from workers.engine import Engine
from workers.opening import prior_of, prompt_warnings
from workers.patience import pauses
from workers.reporter import Reporter
from workers.scene import NanDivergence
from workers.scoring import score_checkpoint
from workers.starting import note_trouble, public_words, trouble_noted
from workers.worker_seconds import WorkerSeconds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from service.jobs.objects import ObjectStore
    from service.jobs.store import JobStore
    from service.settings import Settings
    from workers.candidates import Team
    from workers.engine import Outcome
    from workers.networks import Networks

__all__ = ["Worker"]

log = logging.getLogger(__name__)

POLL_S = 0.25
"""Pause between two looks into the queue while scenes are under way."""
IDLE_S = 1.0
"""How long an idle worker waits for word of a job before it looks by itself, or notices that it is to end."""
POLL_AFTER_FAILURE_S = 5.0
FLUSH_S = 5.0
"""How long a drain waits for the upload of a checkpoint; the one before will do otherwise."""


@dataclass(slots=True)
class _Held:
    """A job's scenes in the engine, and the attempt that they belong to."""

    attempt: Attempt
    team: Team
    saved_at: float
    """When its last checkpoint was begun, monotonic."""


@dataclass(slots=True)
class _Unopened:
    """A claimed job whose checkpoint the object store did not give yet; the reporter keeps its lease."""

    attempt: Attempt
    pauses: Iterator[float]
    try_at: float = 0.0
    """Monotonic."""


class Worker:
    """Optimize jobs of one store until `drain` is called.

    `load` loads the networks, in the thread that lives this life.
    """

    def __init__(
        self,
        name: str,
        store: JobStore,
        objects: ObjectStore,
        load: Callable[[], Networks],
        settings: Settings,
    ) -> None:
        self.name = name
        self._store = store
        self._objects = objects
        self._load = load
        self._settings = settings
        self._attempts: list[Attempt] = []
        self._held: list[_Held] = []
        self._unopened: list[_Unopened] = []
        self._engine = Engine()
        self._exporter = ThreadPoolExecutor(max_workers=1, thread_name_prefix="export")
        self._exports: set[Future[None]] = set()
        self._draining = threading.Event()
        self._leaving = threading.Event()
        self._look_at = 0.0
        self._seconds = WorkerSeconds("loading")
        self._checkpoints = CheckpointWriter(objects, saved=lambda: self._reporter.wake())
        self._reporter = Reporter(
            store,
            name,
            lambda: self.attempts,
            self._seconds,
            settings.report_interval_s,
            self._checkpoints.discard,
        )
        self._ending = Ending(
            store,
            objects,
            self._checkpoints.discard,
            self._enter,
            storage_budget_s=settings.storage_budget_s,
            draining=self._draining,
        )

    @property
    def state(self) -> str:
        """`starting | idle | busy | draining`."""
        return self._reporter.state

    @property
    def attempts(self) -> tuple[Attempt, ...]:
        """What it holds now."""
        return tuple(self._attempts)

    def drain(self) -> None:
        """Make `run` end soon: checkpoint what is under way and give it back. From any thread."""
        self._draining.set()

    def end_when_idle(self) -> None:
        """Make `run` end as soon as there is nothing to do: what is claimed until then is finished. From any thread."""
        self._leaving.set()

    def run(self) -> None:
        """Live. Returns after `drain`; raises what makes this worker unfit, such as missing weights."""
        if self._settings.torch_threads is not None:
            torch.set_num_threads(self._settings.torch_threads)
        self._reporter.slots = self._settings.slots_per_worker
        self._reporter.start()
        try:
            with trouble_noted(self._store):
                self._await_objects()
                self._networks = self._load()
            if not self._draining.is_set():
                self._reporter.capabilities = self._networks.capabilities()
                log.info("worker %s is ready", self.name)
            while not self._draining.is_set():
                self._fill_slots()
                self._obey()
                self._open_again()
                if self._held:
                    self._step()
                elif self._exports:
                    self._await_export()
                elif self._unopened:
                    self._await_store()
                elif self._leaving.is_set():
                    break
                else:
                    self._rest()
            self._give_everything_back()
        finally:
            self._exporter.shutdown()
            self._checkpoints.stop()
            self._reporter.stop()
        with contextlib.suppress(StoreUnavailable):  # its rows run out by themselves
            self._store.retire(self.name)

    def _await_objects(self) -> None:
        """Wait until the object store answers, or this worker is to end: what it made meanwhile would be lost."""
        while not self._draining.is_set():
            if self._leaving.is_set():
                self.drain()
            try:
                self._objects.check()
            except StoreUnavailable as error:
                log.warning("worker %s cannot start yet: %s", self.name, error)
                note_trouble(self._store, "worker", public_words(error))
                self._draining.wait(POLL_AFTER_FAILURE_S)
            else:
                return

    # ---- taking jobs

    def _fill_slots(self) -> None:
        """Claim jobs for the free slots, at most every `POLL_S`."""
        while self._has_room() and time.monotonic() >= self._look_at:
            asked_at = time.monotonic()
            try:
                lease = self._store.claim(self.name, self._settings.lease_s, self._reporter.capabilities)
            except StoreUnavailable as error:
                log.warning("cannot claim: %s", error)
                self._look_at = asked_at + POLL_AFTER_FAILURE_S
                return
            if lease is None:
                self._look_at = asked_at + POLL_S
                return
            log.info("claimed attempt %d of %s", lease.attempt, lease.job_id)
            attempt = Attempt(lease, claimed_at=asked_at)
            self._attempts.append(attempt)
            self._reporter.announce("busy")
            self._seconds.switch("loading")
            self._open(_Unopened(attempt, pauses(self._settings.storage_budget_s)))
            self._drop_ended()

    def _has_room(self) -> bool:
        """A job that is being exported needs no slot; but no second one may wait for its export behind it."""
        slots = self._settings.slots_per_worker
        return len(self._held) + len(self._unopened) < slots and len(self._attempts) <= slots

    def _open(self, one: _Unopened) -> None:
        """Bring a claimed job into the engine; a preview is made at once."""
        attempt, lease = one.attempt, one.attempt.lease
        try:
            attempt.untold_warnings += prompt_warnings(lease.spec, prior_of(lease.spec, self._networks))
            if lease.spec.effort == "preview":
                made = self._ending.draw_preview(attempt, self._networks)
                self._exports.add(self._exporter.submit(self._ending.publish, attempt, *made))
                return
            team, resumed_from_step = open_team(
                lambda: make_team(lease.spec, self._networks), lease.checkpoints, self._objects
            )
        except StoreUnavailable as error:
            self._put_off(one, error)
            return
        except Exception as error:
            self._ending.fail(attempt, error)
            return
        supposed = lease.checkpoints[0].step if lease.checkpoints else None
        if resumed_from_step != supposed:
            attempt.untold_resumption = resumed_from_step or 0
        attempt.step = team.step
        for scene in team.scenes:
            self._engine.admit(scene)
        self._held.append(_Held(attempt, team, saved_at=time.monotonic()))
        self._enter_optimization(attempt)

    def _put_off(self, one: _Unopened, error: StoreUnavailable) -> None:
        """Try to open a job again later, beside the steps of the others; fail when the store was away for too long."""
        pause_s = next(one.pauses, None)
        if pause_s is None:
            self._ending.fail(one.attempt, error)
            return
        log.warning("cannot open %s yet: %s", one.attempt.lease.job_id, error)
        one.attempt.store_failures += 1
        one.try_at = time.monotonic() + pause_s
        self._unopened.append(one)

    def _open_again(self) -> None:
        """Open the jobs whose time for another try has come."""
        now = time.monotonic()
        for one in [one for one in self._unopened if now >= one.try_at]:
            self._unopened.remove(one)
            self._seconds.switch("loading")
            self._open(one)
        self._drop_ended()

    # ---- working on them

    def _rest(self) -> None:
        """Wait for work."""
        self._seconds.switch("idle")
        self._reporter.announce("idle")
        away_s = self._look_at - time.monotonic()
        if away_s > POLL_S:  # the store did not answer
            self._draining.wait(away_s)
        else:
            self._store.wait_for_work(IDLE_S)
        self._look_at = 0.0

    def _step(self) -> None:
        """Take one engine step, and see to each job that took part."""
        held = {id(scene): one for one in self._held for scene in one.team.scenes}
        redone = sum(one.team.step < one.attempt.lease.max_step for one in self._held)
        alone = len(self._held) == 1
        self._seconds.switch("optimizing", redone_share=redone / len(self._held))
        for outcome in self._engine.step():
            one = held[id(outcome.scene)]
            if outcome.error is not None and one in self._held:
                self._go_on_without(one, outcome)
        for one in tuple(self._held):
            one.attempt.step = one.team.step
            one.attempt.alone &= alone
            if one.team.finished:
                self._let_go(one)
                self._export(one)
            else:
                self._enter_optimization(one.attempt)
                self._save_when_due(one)
        self._drop_ended()

    def _go_on_without(self, one: _Held, outcome: Outcome) -> None:
        """Drop a candidate that has diverged while there are others; any other error ends the attempt."""
        assert outcome.error is not None
        if isinstance(outcome.error, NanDivergence) and len(one.team.candidates) > 1:
            index = one.team.lose(outcome.scene)
            warning = {"code": "candidate-lost", "detail": f"candidate {index}: {outcome.error}"}
            one.attempt.untold_warnings.append(warning)
            return
        self._let_go(one)
        self._ending.fail(one.attempt, outcome.error)

    def _enter_optimization(self, attempt: Attempt) -> None:
        """Name the stage: a field is coarse in the first half of its steps."""
        coarse = 2 * attempt.step < attempt.lease.spec.steps
        self._enter(attempt, Stage.COARSE if coarse else Stage.REFINE)

    def _enter(self, attempt: Attempt, stage: Stage) -> None:
        if attempt.stage != stage:
            attempt.enter(stage)
            self._reporter.wake()

    def _save_when_due(self, one: _Held) -> None:
        now = time.monotonic()
        due = now - one.saved_at >= self._settings.checkpoint_interval_s
        if due and self._checkpoints.save(one.attempt, one.team):
            one.saved_at = now
            # The series of scores is that of the first candidate.
            score_checkpoint(one.attempt, one.team.scenes[0], self._networks)

    # ---- letting them go

    def _obey(self) -> None:
        """Stop the jobs that the rest of the world wants stopped."""
        for waiting in tuple(self._unopened):
            if waiting.attempt.verdict(time.monotonic()) is not Verdict.GO_ON:
                self._unopened.remove(waiting)
                self._ending.stop(waiting.attempt)
        for one in tuple(self._held):
            verdict = one.attempt.verdict(time.monotonic())
            if verdict is Verdict.GO_ON:
                continue
            self._let_go(one)
            if verdict is Verdict.CANCEL and one.attempt.keep_partial and one.team.step:
                self._export(one)
            else:
                self._ending.stop(one.attempt)
        self._drop_ended()

    def _export(self, one: _Held) -> None:
        """Begin to export and publish what a job has come to, beside the steps of the others."""
        self._exports.add(
            self._exporter.submit(self._ending.publish_team, one.attempt, one.team, self._networks)
        )

    def _await_export(self) -> None:
        """Wait for an export, with nothing else to do, until it is time to look for work."""
        self._seconds.switch("exporting")
        wait(self._exports, timeout=POLL_S)
        self._drop_ended()

    def _await_store(self) -> None:
        """Wait for the object store, with nothing else to do, until it is time to look for work."""
        self._seconds.switch("loading")
        self._draining.wait(POLL_S)

    def _give_everything_back(self) -> None:
        """Checkpoint what is under way and return it to the queue, where it costs no failure; end the exports."""
        self._reporter.announce("draining")
        self._checkpoints.flush(FLUSH_S)
        self._reporter.report_all()
        under_way = tuple(self._held)
        for one in under_way:
            self._let_go(one)
            self._checkpoints.save(one.attempt, one.team)
        self._checkpoints.flush(FLUSH_S)
        self._reporter.report_all()
        for one in under_way:
            self._ending.give_back(one.attempt)
        while self._unopened:
            self._ending.give_back(self._unopened.pop().attempt)
        wait(self._exports)
        self._drop_ended()

    def _let_go(self, one: _Held) -> None:
        self._held.remove(one)
        for scene in one.team.scenes:
            if scene in self._engine.scenes:
                self._engine.retire(scene)

    def _drop_ended(self) -> None:
        for export in [one for one in self._exports if one.done()]:
            self._exports.remove(export)
            export.result()
        self._attempts[:] = [attempt for attempt in self._attempts if not attempt.ended]
