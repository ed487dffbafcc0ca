"""The only places where a job's state changes: lock its row, move it along `TRANSITIONS`, end it.

Whatever a change of state entails (event, counters, the end of the lease) is written with it.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from service.jobs import budgets, events, shares, tables, tallies
from service.jobs.batch_items import follow
from service.jobs.events import EventType
from service.jobs.states import TRANSITIONS, FailureCode, JobState, Outcome, outcome_of
from service.jobs.tallies import Histogram, Total
from service.jobs.wakeup import announce

if TYPE_CHECKING:
    from service.jobs.database import Transaction
    from service.jobs.documents import Row

__all__ = ["ask_to_end", "end_attempt", "end_attempt_in_failure", "end_job", "lock", "move", "update"]

_BACKOFF_S = 1.0
_MAX_BACKOFF_S = 60.0
_MAX_DETAIL = 2_000
_NO_LEASE: dict[str, Any] = {"worker": None, "lease_until": None}

_END_EVENTS = {
    JobState.SUCCEEDED: EventType.SUCCEEDED,
    JobState.FAILED: EventType.FAILED,
    JobState.CANCELED: EventType.CANCELED,
}


def lock(tx: Transaction, job_id: str, owner: str | None = None) -> Row | None:
    """Read a job's row and keep others from changing it until this transaction ends.

    None when there is no such job, or when it is another's than `owner`.
    """
    query = sa.select(tables.jobs).where(tables.jobs.c.id == job_id)
    if owner is not None:
        query = query.where(tables.jobs.c.owner == owner)
    return tx.execute(query.with_for_update()).one_or_none()


def update(tx: Transaction, row: Row, **values: Any) -> None:
    """Write columns of a locked job other than its state."""
    assert "state" not in values, "a state changes by move()"
    tx.execute(sa.update(tables.jobs).where(tables.jobs.c.id == row.id).values(**values))


def move(tx: Transaction, row: Row, to: JobState, **values: Any) -> None:
    """Change the state of a locked job, and other columns with it; its item in a batch follows."""
    assert to in TRANSITIONS[JobState(row.state)], f"{row.id}: no way from {row.state} to {to}"
    tx.execute(sa.update(tables.jobs).where(tables.jobs.c.id == row.id).values(state=to.value, **values))
    follow(tx, row, to)


def end_job(
    tx: Transaction,
    row: Row,
    to: JobState,
    *,
    result: dict[str, Any] | None = None,
    error: tuple[FailureCode, str] | None = None,
) -> tuple[str, ...]:
    """Bring a locked job to a final state; returns the keys of its checkpoints, which nobody needs any more."""
    document = None
    if error is not None:
        code, detail = error
        document = {"code": code.value, "detail": _printable(detail), "retryable": code.retryable}
        if code in (FailureCode.EMPTY_MESH, FailureCode.INVALID_GLB):
            tallies.count(tx, Total.INVALID_MESHES)
    move(tx, row, to, ended_at=tx.now, result=result, error=document, **_NO_LEASE)
    events.append(tx, row.id, _END_EVENTS[to], {"error": document} if document else {})
    outcome = to.value if error is None else error[0].value
    tallies.count(tx, Total.JOBS_FINISHED, method=row.method, outcome=outcome)
    if row.started_at is not None:
        tallies.observe(tx, Histogram.RUN_TIME, tx.now - row.started_at, method=row.method)
    keys = tx.execute(
        sa.delete(tables.checkpoints)
        .where(tables.checkpoints.c.job_id == row.id)
        .returning(tables.checkpoints.c.key)
    )
    return tuple(keys.scalars())


def ask_to_end(tx: Transaction, row: Row, *, keep_partial: bool = False) -> None:
    """Cancel a locked job: at once when it is queued, through its worker when it runs; an ended one stays as it is."""
    match JobState(row.state):
        case JobState.QUEUED:
            update(tx, row, cancel_requested=True)
            end_job(tx, row, JobState.CANCELED)
        case JobState.RUNNING:
            move(tx, row, JobState.CANCELING, cancel_requested=True, keep_partial=keep_partial)
        case JobState.CANCELING:
            update(tx, row, keep_partial=keep_partial)


def end_attempt(tx: Transaction, row: Row, outcome: Outcome) -> None:
    """Close the running attempt of a locked job."""
    columns = tables.attempts.c
    tx.execute(
        sa.update(tables.attempts)
        .where(columns.job_id == row.id, columns.number == row.attempt)
        .values(ended_at=tx.now, outcome=outcome.value)
    )
    if row.stage is not None:
        tallies.observe(tx, Histogram.STAGE_TIME, tx.now - row.stage_since, stage=row.stage)


def end_attempt_in_failure(tx: Transaction, row: Row, code: FailureCode, detail: str) -> tuple[str, ...]:
    """End the attempt of a locked, active job, and decide what becomes of the job.

    Canceled when that was wished; queued again when another attempt may help; failed otherwise. Returns the
    keys of checkpoints that nobody needs any more.
    """
    end_attempt(tx, row, outcome_of(code))
    tallies.count(tx, Total.ATTEMPTS_FAILED, code=code.value)
    if code is FailureCode.WORKER_LOST:
        shares.charge(tx, row.owner, _untold_s(tx, row))
    failures = row.failures + (code is not FailureCode.PREEMPTED)
    update(tx, row, failures=failures)
    lost = {"number": row.attempt, "worker": row.worker, "code": code.value, "detail": _printable(detail)}
    if row.cancel_requested:
        events.append(tx, row.id, EventType.ATTEMPT_LOST, lost)
        return end_job(tx, row, JobState.CANCELED)
    if code.retryable and (spent := budgets.overdrawn(tx, row)) is not None:
        code, detail = FailureCode.GPU_BUDGET_EXCEEDED, spent
    if code.retryable and failures < row.max_attempts:
        pause_s = 0.0 if code is FailureCode.PREEMPTED else _backoff_s(failures)
        move(tx, row, JobState.QUEUED, not_before=tx.now + pause_s, **_NO_LEASE)
        events.append(tx, row.id, EventType.ATTEMPT_LOST, {**lost, "retry_in_s": round(pause_s, 1)})
        if not pause_s:
            announce(tx)
        return ()
    if code is FailureCode.WORKER_LOST:
        code = FailureCode.POISON_JOB
        detail = f"{failures} attempts failed, the last one by losing its worker: {detail}"
    return end_job(tx, row, JobState.FAILED, error=(code, detail))


def _untold_s(tx: Transaction, row: Row) -> float:
    """Compute how long a lost attempt held its worker beyond what was reported: its owner pays for that too."""
    columns = tables.attempts.c
    attempt = sa.select(columns.started_at, columns.worker_s).where(
        columns.job_id == row.id, columns.number == row.attempt
    )
    started_at, worker_s = tx.execute(attempt).one()
    return float(max(0.0, tx.now - started_at - worker_s))


def _backoff_s(failures: int) -> float:
    """Wait 1, 2, 4 … 60 s, less up to half by chance, so that many jobs do not come back in step."""
    longest_s = min(_MAX_BACKOFF_S, _BACKOFF_S * 2.0 ** min(failures - 1, 10))
    return longest_s * random.uniform(0.5, 1.0)  # noqa: S311 - guards nothing


def _printable(detail: str) -> str:
    """Bound an error's text and make sure that any database and any answer can carry it."""
    text = detail.replace("\0", "�").encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= _MAX_DETAIL else text[: _MAX_DETAIL - 1] + "…"
