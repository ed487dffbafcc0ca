"""The life of jobs under random interleavings of workers, clock jumps and cancels.

An independent model knows, of each job, only who holds it. Whatever happens: no job is lost, no stale
attempt writes, no final state changes, every log is complete, and the counters agree with the rows.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis.strategies as st
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from service.jobs import events, store, tables, transitions
from service.jobs.events import EventType
from service.jobs.states import ACTIVE, FINAL, TRANSITIONS, FailureCode, JobState, Lease, Stage, StaleLease
from service.jobs.store import JobStore
from tests.unit.service.jobs.job_samples import ARTIFACTS, FakeClock, checkpoint, result_of, spec_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from service.jobs.database import Transaction
    from service.jobs.documents import Row

WORKERS = ("worker-1", "worker-2", "worker-3")
END_OF = {"succeeded": "job.succeeded", "failed": "job.failed", "canceled": "job.canceled"}
WRITES = ("report", "report", "checkpoint", "finish", "fail", "retry", "release", "confirm")


def reachable(state: JobState) -> set[JobState]:
    """States that a job may show next, any number of transitions later."""
    found = {state}
    while True:
        more = found | {after for each in found for after in TRANSITIONS[each]}
        if more == found:
            return found
        found = more


class JobLife(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.clock = FakeClock()
        self.store = JobStore(f"sqlite:///{self.folder / 'jobs.sqlite3'}", clock=self.clock)
        self.specs = [
            spec_of(priority=priority, limits={"max_attempts": attempts, "deadline_s": 3_000})
            for priority, attempts in (("low", 2), ("normal", 3), ("high", 6))
        ]
        self.jobs: dict[str, dict[str, Any]] = {}
        self.leases: list[Lease] = []
        self.num_refused = 0
        for kind in range(3):
            self.submit(kind)

    def teardown(self) -> None:
        try:
            self.run_to_the_end()
        finally:
            self.store.close()
            shutil.rmtree(self.folder)

    # ---- what may happen

    @rule(kind=st.integers(0, 2))
    def submit(self, kind: int) -> None:
        self.clock.advance(0.001)
        document, is_new = self.store.submit(self.specs[kind])
        assert is_new
        self.jobs[document["id"]] = document

    @rule(worker=st.sampled_from(WORKERS))
    def claim(self, worker: str) -> None:
        self.clock.advance(2)  # idle workers ask again and again: most backoffs pass meanwhile
        lease = self.store.claim(worker, lease_s=60)
        if lease is not None:
            self.leases.append(lease)

    @rule(seconds=st.sampled_from([-30.0, 0.3, 1.0, 5.0, 30.0, 61.0, 61.0, 1_000.0]))
    def jump(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule(choice=st.integers(0, 10**6), what=st.sampled_from(WRITES))
    def write(self, choice: int, what: str) -> None:
        if not self.leases:
            return
        lease = self.leases[choice % len(self.leases)]
        before = self.store.get(lease.job_id)
        assert before is not None
        holds = before["status"] in ACTIVE and len(before["attempts"]) == lease.attempt
        repeats = (
            before["status"] == "succeeded" and what == "finish" and len(before["attempts"]) == lease.attempt
        )
        repeats |= (
            before["status"] == "canceled" and what == "confirm" and len(before["attempts"]) == lease.attempt
        )
        try:
            self.perform(lease, what, choice % 300)
        except StaleLease:
            assert not holds
            self.num_refused += 1
            assert self.store.get(lease.job_id) == before, "a refused write changed something"
        else:
            assert holds or repeats, f"a stale {what} was accepted"

    def perform(self, lease: Lease, what: str, step: int) -> None:
        match what:
            case "report":
                self.store.report(lease, stage=Stage.COARSE, step=step, steps_total=300)
            case "checkpoint":
                saved = checkpoint(step, lease.attempt)
                self.store.report(lease, stage=Stage.COARSE, step=step, steps_total=300, checkpoint=saved)
            case "finish":
                self.store.finish(lease, result_of(lease.attempt), ARTIFACTS)
            case "fail":
                self.store.fail(lease, FailureCode.NAN_DIVERGENCE, "nan")
            case "retry":
                self.store.fail(lease, FailureCode.STORAGE_ERROR, "the bucket is away")
            case "release":
                self.store.release(lease)
            case _:
                self.store.cancel_confirmed(lease)

    @rule(choice=st.integers(0, 10**6))
    def cancel(self, choice: int) -> None:
        if choice % 4:  # seldom, for a canceled job has little life left to test
            return
        job_id = sorted(self.jobs)[choice // 4 % len(self.jobs)]
        document = self.store.cancel(job_id)
        assert document is not None
        assert document["cancel_requested"] or document["status"] in FINAL

    @rule(worker=st.sampled_from(WORKERS))
    def lose(self, worker: str) -> None:
        self.store.worker_lost(worker)

    @rule()
    def sweep(self) -> None:
        self.store.sweep()

    # ---- what must hold

    @invariant()
    def every_job_is_there_and_went_a_lawful_way(self) -> None:
        documents = {document["id"]: document for document in self.store.list_jobs(limit=1_000)[0]}
        assert documents.keys() == self.jobs.keys(), "a job was lost"
        for job_id, document in documents.items():
            before = self.jobs[job_id]
            if before["status"] in FINAL:
                assert document == before, "a final document changed"
            elif document != before:
                assert JobState(document["status"]) in reachable(JobState(before["status"]))
                self.check(document)
            self.jobs[job_id] = document

    def check(self, document: dict[str, Any]) -> None:
        attempts, status = document["attempts"], document["status"]
        assert [attempt["number"] for attempt in attempts] == list(range(1, len(attempts) + 1))
        still_open = [attempt["number"] for attempt in attempts if attempt["ended_at"] is None]
        assert still_open == ([len(attempts)] if status in ACTIVE else []), (
            "an active job without an open attempt"
        )
        assert document["failures"] <= document["spec"]["limits"]["max_attempts"]
        assert (document["ended_at"] is not None) == (status in FINAL)
        assert (document["error"] is not None) == (status == "failed")
        assert (document["result"] is not None) == (status == "succeeded")
        if status == "succeeded":
            assert document["result"]["provenance"]["attempt"] == len(attempts), "an older attempt's result"
            assert len(document["result"]["artifacts"]) == len(ARTIFACTS)
        log = self.store.events(document["id"])
        assert [event["id"] for event in log] == list(range(1, len(log) + 1)), "a gap in the events"
        types = [event["type"] for event in log]
        assert [one for one in types if one in END_OF.values()] == (
            [END_OF[status]] if status in END_OF else []
        )
        assert sum(one in ("job.started", "job.resumed") for one in types) == len(attempts)
        failed = [one for one in attempts if one["outcome"] not in (None, "succeeded", "canceled")]
        # The attempt whose failure ends the job has no event of its own; a deadline may also pass in the queue.
        untold = len(failed) - types.count("job.attempt_lost")
        assert untold in ((0, 1) if status == "failed" else (0,)), "an event is missing"

    def run_to_the_end(self) -> None:
        """Let one good worker do what is left: every accepted job ends."""
        for _ in range(6 * len(self.jobs) + 1):
            self.clock.advance(70)
            while (lease := self.store.claim("worker-4")) is not None:
                self.store.finish(lease, result_of(lease.attempt), ARTIFACTS)
        self.every_job_is_there_and_went_a_lawful_way()
        ended = [document["status"] for document in self.jobs.values()]
        assert set(ended) <= FINAL, "a job never ends"
        tallies = self.store.snapshot().tallies
        totals = {
            name: sum(one.value for one in tallies if one.name == name) for name in {t.name for t in tallies}
        }
        assert totals.get("jobs_submitted", 0) == len(self.jobs)
        assert totals.get("jobs_finished", 0) == len(self.jobs)
        assert totals.get("fenced_writes", 0) == self.num_refused


QUICK = settings(
    max_examples=12,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    database=None,
)
THOROUGH = settings(QUICK, max_examples=100, stateful_step_count=60)
SEARCH = settings(QUICK, max_examples=200, phases=[Phase.generate], derandomize=True)
"""To find a bug, not its shortest example."""


def test_no_interleaving_loses_a_job_or_lets_a_stale_attempt_write() -> None:
    run_state_machine_as_test(JobLife, settings=QUICK)


@pytest.mark.slow
def test_no_interleaving_loses_a_job_or_lets_a_stale_attempt_write_in_6000_steps() -> None:
    run_state_machine_as_test(JobLife, settings=THOROUGH)


def unfenced_finish(monkeypatch: pytest.MonkeyPatch) -> None:
    """A late worker may end a job that another one holds."""

    def held(tx: Transaction, lease: Lease) -> Row:
        row = transitions.lock(tx, lease.job_id)
        if row is None or row.state not in ACTIVE:
            raise StaleLease(lease.job_id, lease.attempt, "the job has ended")
        return row

    monkeypatch.setattr(store, "held", held)


def lost_requeue(monkeypatch: pytest.MonkeyPatch) -> None:
    """An attempt that failed gives up its lease, but nobody puts the job back into the queue."""
    move = transitions.move

    def forgetful(tx: Transaction, row: Row, to: JobState, **values: Any) -> None:
        if to is JobState.QUEUED:
            transitions.update(tx, row, **values)
        else:
            move(tx, row, to, **values)

    monkeypatch.setattr(transitions, "move", forgetful)


def reused_sequence(monkeypatch: pytest.MonkeyPatch) -> None:
    """A resumption takes the number of the event before it, and its place."""
    append = events.append

    def reuse(tx: Transaction, job_id: str, type_: EventType, data: dict[str, Any]) -> None:
        if type_ is EventType.RESUMED:
            jobs, log = tables.jobs.c, tables.events.c
            last = tx.execute(sa.select(jobs.last_event).where(jobs.id == job_id)).scalar_one()
            tx.execute(sa.delete(tables.events).where(log.job_id == job_id, log.number == last))
            tx.execute(sa.update(tables.jobs).where(jobs.id == job_id).values(last_event=last - 1))
        append(tx, job_id, type_, data)

    monkeypatch.setattr(events, "append", reuse)


@pytest.mark.parametrize(
    ("plant", "found"),
    [
        (unfenced_finish, "a stale|an older attempt's result"),
        (lost_requeue, "an active job without an open attempt"),
        (reused_sequence, "an event is missing"),
    ],
)
def test_a_planted_bug_is_found(
    monkeypatch: pytest.MonkeyPatch, plant: Callable[[pytest.MonkeyPatch], None], found: str
) -> None:
    plant(monkeypatch)
    with pytest.raises(AssertionError, match=found):
        run_state_machine_as_test(JobLife, settings=SEARCH)
