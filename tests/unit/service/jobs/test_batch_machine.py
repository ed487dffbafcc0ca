"""Batches under random interleavings of advances, workers, cancels, pauses, retries and crashes.

An independent model looks at jobs only: of each item, which jobs carry its number. Whatever happens, the counts add up,
are those of the newest tries, nothing is made twice, a paused batch starts nothing and `max_parallel` holds.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis.strategies as st
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from service.jobs import tables
from service.jobs.batch_items import ItemState
from service.jobs.batches import BatchStore
from service.jobs.database import Transaction
from service.jobs.errors import BatchConflict
from service.jobs.states import FailureCode, StaleLease
from service.jobs.store import JobStore
from tests.unit.service.jobs.batch_samples import batch_of, finish, lines_of
from tests.unit.service.jobs.job_samples import FakeClock

if TYPE_CHECKING:
    from service.jobs.states import Lease

FINAL = {"succeeded", "failed", "canceled"}
OF_JOB = {"canceling": "running"}


class Crash(BaseException):
    """The process dies."""


class CrashingTransactions:
    """Make some statement of the next transactions the last one that their process gets to."""

    def __init__(self) -> None:
        self.after: int | None = None
        self._execute = Transaction.execute

    def __enter__(self) -> None:
        machine = self

        def execute(tx: Transaction, *arguments: object) -> object:
            if machine.after is not None:
                machine.after -= 1
                if machine.after < 0:
                    raise Crash
            return machine._execute(tx, *arguments)  # type: ignore[arg-type]

        Transaction.execute = execute  # type: ignore[method-assign, assignment]

    def __exit__(self, *_: object) -> None:
        Transaction.execute = self._execute  # type: ignore[method-assign]


class BatchLife(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.clock = FakeClock()
        self.store = JobStore(f"sqlite:///{self.folder / 'jobs.sqlite3'}", clock=self.clock, max_queued=12)
        self.batches = BatchStore(self.store.database, max_queued=12)
        self.leases: list[Lease] = []
        self.made: dict[str, int | None] = {}
        self.make(3)
        self.make(1)

    def teardown(self) -> None:
        try:
            self.run_to_the_end()
        finally:
            self.store.close()
            shutil.rmtree(self.folder)

    # ---- what may happen

    @rule(kind=st.integers(0, 3))
    def make(self, kind: int) -> None:
        if len(self.made) == 4:
            return
        self.clock.advance(0.001)
        max_parallel = (None, 1, 2, 3)[kind]
        lines = [*lines_of(3 + 3 * kind, limits={"max_attempts": 2}), *["nonsense"] * kind]
        options = {} if max_parallel is None else {"max_parallel": max_parallel}
        self.made[batch_of(self.batches, lines, **options)["id"]] = max_parallel

    @rule()
    def advance(self) -> None:
        self.clock.advance(0.4)
        self.batches.advance()

    @rule(after=st.integers(0, 60))
    def crash_while_advancing(self, after: int) -> None:
        crashing = CrashingTransactions()
        with crashing, suppress(Crash):
            crashing.after = after
            self.batches.advance()

    @rule(worker=st.sampled_from(("worker-1", "worker-2")))
    def claim(self, worker: str) -> None:
        self.clock.advance(2)
        paused = {one for one in self.made if self.document(one)["status"] == "paused"}
        lease = self.store.claim(worker)
        if lease is not None:
            self.leases.append(lease)
            job = self.store.get(lease.job_id)
            assert job is not None
            assert job["batch_id"] not in paused, "a paused batch has started a job"

    @rule(
        choice=st.integers(0, 10**6), how=st.sampled_from(("finish", "fail", "retry", "release", "confirm"))
    )
    def end(self, choice: int, how: str) -> None:
        if not self.leases:
            return
        lease = self.leases.pop(choice % len(self.leases))
        with suppress(StaleLease):
            match how:
                case "finish":
                    finish(self.store, lease)
                case "fail":
                    self.store.fail(lease, FailureCode.NAN_DIVERGENCE, "nan")
                case "retry":
                    self.store.fail(lease, FailureCode.STORAGE_ERROR, "the bucket is away")
                case "release":
                    self.store.release(lease)
                case _:
                    self.store.cancel_confirmed(lease)

    @rule(choice=st.integers(0, 10**6))
    def cancel_one(self, choice: int) -> None:
        jobs = self.store.list_jobs(limit=1_000)[0]
        if jobs:
            self.store.cancel(jobs[choice % len(jobs)]["id"])

    @rule(
        choice=st.integers(0, 10**6),
        what=st.sampled_from(("pause", "resume", "retry", "cancel")),
        crash_after=st.none() | st.integers(0, 30),
    )
    def steer(self, choice: int, what: str, crash_after: int | None) -> None:
        batch_id = sorted(self.made)[choice % len(self.made)]
        crashing = CrashingTransactions()
        with crashing, suppress(BatchConflict, Crash):
            crashing.after = crash_after
            match what:
                case "pause":
                    self.batches.pause(batch_id)
                case "resume":
                    self.batches.resume(batch_id)
                case "retry":
                    self.batches.retry_failed(batch_id)
                case _ if choice % 3 == 0:  # seldom, for a canceled batch has little life left to test
                    self.batches.cancel(batch_id)

    @rule(seconds=st.sampled_from([0.3, 5.0, 61.0, 1_000.0]))
    def jump(self, seconds: float) -> None:
        self.clock.advance(seconds)

    # ---- what must hold

    def document(self, batch_id: str) -> dict[str, object]:
        found = self.batches.get(batch_id)
        assert found is not None
        return found

    @invariant()
    def counts_are_those_of_the_newest_tries_and_add_up(self) -> None:
        for batch_id, max_parallel in self.made.items():
            document = self.document(batch_id)
            counts = document["counts"]
            assert isinstance(counts, dict)
            assert sum(counts[state] for state in ItemState) == counts["total"]
            with self.store.database.reading() as tx:
                items, jobs = tables.batch_items.c, tables.jobs.c
                rows = tx.execute(sa.select(tables.batch_items).where(items.batch_id == batch_id)).all()
                tries = tx.execute(sa.select(tables.jobs).where(jobs.batch_id == batch_id)).all()
            by_number: dict[int, list[sa.Row[*tuple[object, ...]]]] = {}
            for job in tries:
                by_number.setdefault(job.batch_number, []).append(job)
            expected: Counter[str] = Counter()
            for item in rows:
                mine = {job.id: job for job in by_number.get(item.number, [])}
                assert len(mine) == item.tries, "made twice, or lost"
                assert sum(job.state not in FINAL for job in mine.values()) <= 1
                newest = mine.get(item.job_id)
                made = item.state not in ("pending", "invalid") and newest is not None
                if made and not (item.state == "canceled" and newest.state == "failed"):
                    assert item.state == OF_JOB.get(newest.state, newest.state)
                expected[item.state] += 1
            assert {name: count for name, count in counts.items() if count and name != "total"} == expected
            live = sum(job.state not in FINAL for job in tries)
            assert max_parallel is None or live <= max_parallel
            if document["status"] in ("completed", "canceled"):
                assert live == counts["pending"] == 0

    def run_to_the_end(self) -> None:
        """Whatever was left half-way, every batch comes to an end."""
        for batch_id in self.made:
            with suppress(BatchConflict):
                self.batches.resume(batch_id)
        for _ in range(400):
            self.clock.advance(61)
            while self.batches.advance():
                pass
            while (lease := self.store.claim("worker-1", 3_600.0)) is not None:
                with suppress(StaleLease):
                    finish(self.store, lease)
            if all(self.document(one)["status"] in ("completed", "canceled") for one in self.made):
                break
        else:
            raise AssertionError("a batch does not end")
        self.counts_are_those_of_the_newest_tries_and_add_up()


QUICK = settings(
    max_examples=4,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    database=None,
)
THOROUGH = settings(QUICK, max_examples=40, stateful_step_count=50)


def test_counts_add_up_and_nothing_is_made_twice_whatever_happens() -> None:
    run_state_machine_as_test(BatchLife, settings=QUICK)  # type: ignore[no-untyped-call]


@pytest.mark.slow
def test_counts_add_up_and_nothing_is_made_twice_in_2000_steps() -> None:
    run_state_machine_as_test(BatchLife, settings=THOROUGH)  # type: ignore[no-untyped-call]
