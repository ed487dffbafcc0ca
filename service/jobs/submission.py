"""How a job comes to be: its row, its first events and its count, in the transaction of whoever wants it made."""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa
from ulid import ULID

from service.jobs import events, shares, tables, tallies
from service.jobs.events import EventType
from service.jobs.states import JobState
from service.jobs.tallies import Total
from service.jobs.wakeup import announce

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from service.jobs.database import Transaction
    from service.jobs.spec import JobSpec

__all__ = ["insert_job"]


def insert_job(
    tx: Transaction,
    spec: JobSpec,
    warnings: Sequence[Mapping[str, str]] = (),
    *,
    owner: str,
    job_id: str | None = None,
    retry_of: str | None = None,
    child_of: tuple[str, int] | None = None,
) -> str:
    """Queue a job; its id, which is made up unless given. `child_of`: its batch and its number there."""
    job_id = job_id or f"job_{ULID.from_timestamp(tx.now)}"
    batch_id, batch_number = child_of or (None, None)
    shares.enter(tx, owner)
    tx.execute(
        sa.insert(tables.jobs).values(
            id=job_id,
            owner=owner,
            retry_of=retry_of,
            batch_id=batch_id,
            batch_number=batch_number,
            state=JobState.QUEUED.value,
            spec=spec.model_dump(mode="json"),
            method=spec.method.name,
            turn_at=shares.turn_at(spec, tx.now),
            created_at=tx.now,
            not_before=tx.now,
            deadline_at=tx.now + spec.limits.deadline_s,
            max_attempts=spec.limits.max_attempts,
            steps_total=spec.steps,
            warnings=[dict(warning) for warning in warnings],
        )
    )
    events.append(tx, job_id, EventType.QUEUED, {})
    for warning in warnings:
        events.append(tx, job_id, EventType.WARNING, dict(warning))
    tallies.count(tx, Total.JOBS_SUBMITTED)
    announce(tx)
    return job_id
