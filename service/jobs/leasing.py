"""What a worker does to a job: claim, report, finish, fail, give back; each write guarded by the lease's fence.

All functions run inside one writing transaction. They lock the job's row first and check the lease then,
so a worker that was declared lost can change nothing any more.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa
from pydantic import ValidationError
from ulid import ULID

from service.jobs import budgets, events, fleet, series, shares, tables, tallies
from service.jobs.batch_items import may_run
from service.jobs.documents import progress_document
from service.jobs.events import EventType
from service.jobs.runnable import has_parts
from service.jobs.spec import JobSpec
from service.jobs.states import (
    ACTIVE,
    Checkpoint,
    FailureCode,
    JobState,
    Lease,
    LeaseAnswer,
    NewArtifact,
    Outcome,
    Stage,
    StaleLease,
)
from service.jobs.tallies import Histogram, Total
from service.jobs.transitions import end_attempt, end_attempt_in_failure, end_job, lock, move, update

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from service.jobs.capabilities import Capabilities
    from service.jobs.database import Transaction
    from service.jobs.documents import Document, Row
    from service.jobs.series import ScorePoint
    from service.jobs.shares import Share

__all__ = [
    "OUTAGE_S",
    "SWEEP_EVERY_S",
    "Report",
    "claim",
    "held",
    "publish",
    "report",
    "sweep",
    "worker_lost",
]

_NUM_CHECKPOINTS = 2
"""A torn checkpoint falls back to the one before."""
_SWEEP_LIMIT = 100
_MOST_LEFT_ALONE = 50
"""Jobs of one owner that a claim passes by because they are for other workers."""
_SWEEPS = "sweep of leases"
SWEEP_EVERY_S: Final = 5.0
"""How often leases are looked at, where no worker claims anything and so does it."""
OUTAGE_S: Final = 30.0
"""Every frontend and every idle worker sweeps: if none has for so long, the database was away, or everything was."""
_MAX_WARNINGS = 50


@dataclass(frozen=True, slots=True)
class Report:
    """What a worker tells of one running job."""

    stage: Stage
    step: int
    steps_total: int
    steps_per_s: float | None = None
    worker_s: float | None = None
    checkpoint: Checkpoint | None = None
    resumed_from_step: int | None = None
    preview: Mapping[str, Any] | None = None
    scores: Sequence[ScorePoint] = field(default=())
    warnings: Sequence[Mapping[str, str]] = field(default=())


def claim(tx: Transaction, worker: str, lease_s: float, can: Capabilities | None = None) -> Lease | None:
    """Take the next job whose turn it is, as `shares.py` says.

    `can`, what the worker can run: what it cannot and another live worker can is left to that one.
    """
    sweep(tx)
    passed_over: list[Share] = []
    for share in shares.in_order(shares.waiting(tx)):
        if not shares.has_room(tx, share):
            passed_over.append(share)
        elif (lease := _claim_of(tx, share.owner, worker, lease_s, can)) is not None:
            shares.forgo(tx, passed_over, share)
            return lease
    return None


def _claim_of(
    tx: Transaction, owner: str, worker: str, lease_s: float, can: Capabilities | None
) -> Lease | None:
    """Take the next job of one owner; None when all of its jobs wait, for time or other workers, or are being taken."""
    columns = tables.jobs.c
    turn = (
        sa.select(tables.jobs)
        .where(*shares.claimable(tables.jobs), columns.owner == owner, columns.not_before <= tx.now)
        .order_by(columns.turn_at, columns.id)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    num_left_alone = 0
    while (row := tx.execute(turn).one_or_none()) is not None:
        try:
            spec = JobSpec.model_validate(row.spec)
        except ValidationError as error:
            # A row of another release: it must not stop the queue.
            detail = f"this release cannot read the job's spec: {error}"
            end_job(tx, row, JobState.FAILED, error=(FailureCode.INTERNAL, detail))
            continue
        if can is None or has_parts(spec, can) or not fleet.another_has_parts(tx, worker, spec):
            return _grant(tx, row, spec, worker, lease_s)
        num_left_alone += 1
        if num_left_alone == _MOST_LEFT_ALONE:
            return None
        turn = turn.where(columns.id != row.id)
    return None


def _grant(tx: Transaction, row: Row, spec: JobSpec, worker: str, lease_s: float) -> Lease:
    checkpoints = _newest_checkpoints(tx, row.id)
    attempt, started_at = row.attempt + 1, tx.now if row.started_at is None else row.started_at
    move(
        tx,
        row,
        JobState.RUNNING,
        attempt=attempt,
        worker=worker,
        lease_until=tx.now + lease_s,
        started_at=started_at,
        stage=Stage.LOADING.value,
        stage_since=tx.now,
        step=checkpoints[0].step if checkpoints else 0,
        steps_total=spec.steps,
        steps_per_s=None,
    )
    _open_attempt(tx, row, attempt, worker, checkpoints[0].step if checkpoints else None)
    return Lease(
        job_id=row.id,
        attempt=attempt,
        worker=worker,
        spec=spec,
        checkpoints=checkpoints,
        failures=row.failures,
        lease_s=lease_s,
        created_at=row.created_at,
        started_at=started_at,
        deadline_at=row.deadline_at,
        deadline_in_s=row.deadline_at - tx.now,
        max_step=row.max_step,
    )


def _open_attempt(tx: Transaction, row: Row, number: int, worker: str, from_step: int | None) -> None:
    """Write down that a worker begins, at `from_step` when there is a checkpoint."""
    values = {"job_id": row.id, "number": number, "worker": worker, "started_at": tx.now}
    tx.execute(sa.insert(tables.attempts).values(**values, resumed_from_step=from_step, worker_s=0.0))
    data = {"attempt": number, "worker": worker}
    if row.started_at is None:
        tallies.observe(tx, Histogram.QUEUE_TIME, tx.now - row.created_at)
        events.append(tx, row.id, EventType.STARTED, data)
    else:
        events.append(tx, row.id, EventType.RESUMED, {**data, "from_step": from_step or 0})


def held(tx: Transaction, lease: Lease) -> Row:
    """Lock the job of a lease that is still valid; raise `StaleLease` otherwise."""
    row = lock(tx, lease.job_id)
    if row is None:
        raise StaleLease(lease.job_id, lease.attempt, "the job does not exist")
    if row.attempt != lease.attempt:
        raise StaleLease(lease.job_id, lease.attempt, f"the job is at attempt {row.attempt}")
    if row.state not in ACTIVE:
        raise StaleLease(lease.job_id, lease.attempt, f"the job is {row.state}")
    return row


def report(tx: Transaction, lease: Lease, told: Report) -> LeaseAnswer:
    """Renew a lease and write down what its worker tells."""
    row = held(tx, lease)
    if told.resumed_from_step is not None:
        row = _correct_resumption(tx, row, told.resumed_from_step)
    advanced = max(0, told.step - row.step)
    redone = max(0, min(told.step, row.max_step) - row.step)
    tallies.count(tx, Total.STEPS, advanced)
    tallies.count(tx, Total.STEPS_REDONE, redone)
    values: dict[str, Any] = {
        "lease_until": tx.now + lease.lease_s,
        "step": told.step,
        "max_step": max(row.max_step, told.step),
        "steps_total": told.steps_total,
        "steps_per_s": told.steps_per_s,
    }
    if told.stage != row.stage:
        tallies.observe(tx, Histogram.STAGE_TIME, tx.now - row.stage_since, stage=row.stage)
        values |= {"stage": told.stage.value, "stage_since": tx.now}
    update(tx, row, **values)
    if told.worker_s is not None:
        _charge_attempt(tx, row, told.worker_s)
    _tell(tx, row, told)
    return LeaseAnswer(
        cancel_requested=row.cancel_requested,
        deadline_passed=tx.now >= row.deadline_at,
        overdrawn=budgets.overdrawn(tx, row),
        keep_partial=row.keep_partial,
        superseded=() if told.checkpoint is None else _keep_checkpoint(tx, row, told.checkpoint),
    )


def _correct_resumption(tx: Transaction, row: Row, step: int) -> Row:
    """Write down that the attempt began at another step than its newest checkpoint's: those after it are damaged."""
    damaged = tables.checkpoints.c.job_id == row.id, tables.checkpoints.c.step > step
    tx.execute(sa.delete(tables.checkpoints).where(*damaged))
    _update_attempt(tx, row, resumed_from_step=step)
    update(tx, row, step=step)
    corrected = lock(tx, row.id)
    assert corrected is not None
    return corrected


def _charge_attempt(tx: Transaction, row: Row, worker_s: float) -> None:
    """Write down how long the attempt has held its worker, and let the job's owner have it."""
    columns = tables.attempts.c
    mine = columns.job_id == row.id, columns.number == row.attempt
    before_s = tx.execute(sa.select(columns.worker_s).where(*mine)).scalar_one()
    _update_attempt(tx, row, worker_s=worker_s)
    shares.charge(tx, row.owner, worker_s - before_s)


def _update_attempt(tx: Transaction, row: Row, **values: Any) -> None:
    columns = tables.attempts.c
    tx.execute(
        sa.update(tables.attempts)
        .where(columns.job_id == row.id, columns.number == row.attempt)
        .values(**values)
    )


def _tell(tx: Transaction, before: Row, told: Report) -> None:
    """Write the events of a report, and its warnings, each of them once."""
    job_id = before.id
    if told.stage != before.stage:
        events.append(tx, job_id, EventType.STAGE, {"stage": told.stage.value})
    if told.step != before.step and events.progress_is_due(
        tx.now, before.started_at, before.progress_at, before.progress_events
    ):
        now = lock(tx, job_id)
        assert now is not None
        events.append(tx, job_id, EventType.PROGRESS, {"stage": now.stage, **progress_document(now)})
        update(tx, before, progress_at=tx.now, progress_events=before.progress_events + 1)
    if told.preview is not None:
        events.append(tx, job_id, EventType.PREVIEW, dict(told.preview))
    series.keep(tx, before, told.scores)
    known = list(before.warnings)
    for warning in told.warnings:
        if dict(warning) not in known and len(known) < _MAX_WARNINGS:
            known.append(dict(warning))
            events.append(tx, job_id, EventType.WARNING, dict(warning))
    if len(known) > len(before.warnings):
        update(tx, before, warnings=known)


def _newest_checkpoints(tx: Transaction, job_id: str) -> tuple[Checkpoint, ...]:
    columns = tables.checkpoints.c
    rows = tx.execute(
        sa.select(columns.key, columns.sha256, columns.step, columns.size_bytes)
        .where(columns.job_id == job_id)
        # By time, not by step: an attempt that fell back to an older one continues from there.
        .order_by(columns.attempt.desc(), columns.step.desc())
        .limit(_NUM_CHECKPOINTS)
    )
    return tuple(Checkpoint(row.key, row.sha256, row.step, row.size_bytes) for row in rows)


def _keep_checkpoint(tx: Transaction, row: Row, checkpoint: Checkpoint) -> tuple[str, ...]:
    """Name a checkpoint in the job's row; returns the keys that it makes superfluous."""
    table = tables.checkpoints
    known = tx.execute(
        sa.select(table.c.key).where(table.c.job_id == row.id, table.c.key == checkpoint.key)
    ).one_or_none()
    if known is not None:  # the same report again, after an answer that got lost
        return ()
    values = {"job_id": row.id, "attempt": row.attempt, "created_at": tx.now, **asdict(checkpoint)}
    tx.execute(sa.insert(table).values(values))
    tallies.count(tx, Total.CHECKPOINTS)
    tallies.count(tx, Total.CHECKPOINT_BYTES, checkpoint.size_bytes)
    kept = [one.key for one in _newest_checkpoints(tx, row.id)]
    dropped = (
        sa.delete(table).where(table.c.job_id == row.id, table.c.key.not_in(kept)).returning(table.c.key)
    )
    return tuple(tx.execute(dropped).scalars())


def publish(
    tx: Transaction,
    row: Row,
    to: JobState,
    result: Document | None,
    artifacts: Sequence[NewArtifact],
    scores: Sequence[ScorePoint],
    retention_s: float,
) -> tuple[str, ...]:
    """End a held job with what it made; returns the keys of checkpoints that nobody needs any more."""
    series.keep(tx, row, scores)
    for number, artifact in enumerate(artifacts):
        artifact_id = f"art_{ULID.from_timestamp(tx.now)}"
        place = {"id": artifact_id, "job_id": row.id, "number": number}
        life = {"created_at": tx.now, "expires_at": tx.now + retention_s}
        tx.execute(sa.insert(tables.artifacts).values(**place, **life, **asdict(artifact)))
        data = {"id": artifact_id, "kind": artifact.kind, "name": artifact.name}
        events.append(tx, row.id, EventType.ARTIFACT, data)
        tallies.count(tx, Total.ARTIFACT_BYTES, artifact.size_bytes, kind=artifact.kind)
    if result is not None:
        _measure(tx, result)
    end_attempt(tx, row, Outcome.SUCCEEDED if to is JobState.SUCCEEDED else Outcome.CANCELED)
    return end_job(tx, row, to, result=result)


def _measure(tx: Transaction, result: Document) -> None:
    """Count scores and mesh of a result; a part that the worker left out is not counted."""
    for candidate in result.get("candidates") or []:
        for name, score in (candidate.get("scores") or {}).items():
            tallies.observe(tx, Histogram.REWARD_SCORE, score, reward=name)
        if candidate.get("referee"):
            referee = candidate["referee"]
            tallies.observe(tx, Histogram.REFEREE_SCORE, referee["score"], reward=referee["name"])
    mesh = result.get("mesh") or {}
    if mesh.get("faces") is not None:
        tallies.observe(tx, Histogram.MESH_FACES, mesh["faces"])
    if mesh.get("agreement") is not None:
        tallies.observe(tx, Histogram.MESH_AGREEMENT, mesh["agreement"])


def worker_lost(tx: Transaction, worker: str) -> list[str]:
    """End every lease of a worker that is known to be dead."""
    columns = tables.jobs.c
    rows = tx.execute(
        sa.select(tables.jobs)
        .where(columns.state.in_(sorted(ACTIVE)), columns.worker == worker)
        .order_by(columns.id)
        .with_for_update()
    ).all()
    for row in rows:
        end_attempt_in_failure(tx, row, FailureCode.WORKER_LOST, f"worker {worker} died")
    return [row.id for row in rows]


def sweep(tx: Transaction) -> int:
    """Take back leases that ran out and end queued jobs past their deadline; how many jobs changed.

    Leases that ran out while nobody could renew them are nobody's fault.
    """
    columns = tables.jobs.c
    blind_s = _blind_s(tx)
    expired = _some(tx, columns.state.in_(sorted(ACTIVE)), columns.lease_until < tx.now)
    for row in expired:
        tallies.count(tx, Total.LEASES_EXPIRED)
        code, silence = FailureCode.WORKER_LOST, f"worker {row.worker} has not reported in time"
        if blind_s > OUTAGE_S:
            code = FailureCode.PREEMPTED
            silence = f"nobody has reached the database for {blind_s:.0f} s, worker {row.worker} neither"
        end_attempt_in_failure(tx, row, code, f"{silence}; its lease ran out")
    late = _some(tx, columns.state == JobState.QUEUED.value, columns.deadline_at <= tx.now, may_run(columns))
    for row in late:
        waited = f"the job did not end within {row.deadline_at - row.created_at:g} s of its submission"
        end_job(tx, row, JobState.FAILED, error=(FailureCode.DEADLINE_EXCEEDED, waited))
    return len(expired) + len(late)


def _blind_s(tx: Transaction) -> float:
    """Tell how long before this sweep there was none, seconds, give or take `SWEEP_EVERY_S`; 0 for the first one."""
    columns = tables.turns.c
    due_at = tx.execute(sa.select(columns.next_at).where(columns.name == _SWEEPS)).scalar_one_or_none()
    if due_at is None or due_at <= tx.now:  # not at each claim: it is a write
        tx.upsert(tables.turns, "name", {"name": _SWEEPS, "next_at": tx.now + SWEEP_EVERY_S})
    return 0.0 if due_at is None else max(0.0, tx.now - due_at)


def _some(tx: Transaction, *conditions: sa.ColumnElement[bool]) -> Sequence[Row]:
    """Lock some jobs that meet all conditions, passing over those that another process holds."""
    query = sa.select(tables.jobs).where(*conditions).order_by(tables.jobs.c.id).limit(_SWEEP_LIMIT)
    return tx.execute(query.with_for_update(skip_locked=True)).all()
