"""The durable event log of a job: sequenced and written in the transaction of the state it tells."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Any, TypedDict

import sqlalchemy as sa

from service.jobs import outbox, tables
from service.jobs.documents import rfc3339

if TYPE_CHECKING:
    from collections.abc import Sequence

    from service.jobs.database import Transaction

__all__ = ["Event", "EventType", "append", "begin", "progress_is_due", "read", "read_log"]


class EventType(StrEnum):
    """What happened to a job."""

    QUEUED = "job.queued"
    STARTED = "job.started"
    STAGE = "job.stage"
    PROGRESS = "job.progress"
    PREVIEW = "job.preview"
    SCORE = "job.score"
    ATTEMPT_LOST = "job.attempt_lost"
    RESUMED = "job.resumed"
    WARNING = "job.warning"
    ARTIFACT = "job.artifact"
    SUCCEEDED = "job.succeeded"
    FAILED = "job.failed"
    CANCELED = "job.canceled"
    CHOSEN = "job.chosen"
    """After the end: a person has chosen among the candidates."""


class Event(TypedDict):
    """One line of a job's log; `id` counts from 1 without gaps within the job."""

    id: int
    type: str
    at: str
    data: dict[str, Any]


MAX_PROGRESS_EVENTS = 500
"""Progress events kept of one job. Source: product."""
_PROGRESS_EVERY_S = 1.0
_PROGRESS_EVERY_SHARE = 0.025
"""A long job tells its progress every 1/40 of its age: 385 events in a week. Thinning when writing, not
afterwards, keeps the sequence free of gaps."""


def begin(
    tx: Transaction, jobs: Sequence[tuple[str, str, Sequence[tuple[EventType, dict[str, Any]]]]]
) -> None:
    """Write the first events of new jobs, and the webhooks that tell them.

    `jobs`: the owner and the id of each, and its events, whose number is its row's `last_event`.
    """
    told = [
        (owner, job_id, Event(id=number, type=type_.value, at=rfc3339(tx.now), data=data))
        for owner, job_id, log in jobs
        for number, (type_, data) in enumerate(log, 1)
    ]
    _write(tx, told)


def append(tx: Transaction, job_id: str, type_: EventType, data: dict[str, Any]) -> None:
    """Write the next event of a job, and the webhooks that tell it; the number comes from its row, which this locks."""
    jobs = tables.jobs
    number, owner = tx.execute(
        sa.update(jobs)
        .where(jobs.c.id == job_id)
        .values(last_event=jobs.c.last_event + 1)
        .returning(jobs.c.last_event, jobs.c.owner)
    ).one()
    _write(tx, [(owner, job_id, Event(id=number, type=type_.value, at=rfc3339(tx.now), data=data))])


def _write(tx: Transaction, told: Sequence[tuple[str, str, Event]]) -> None:
    """Write events, each with the owner and the id of its job."""
    rows = [
        {"job_id": job_id, "number": event["id"], "type": event["type"], "at": tx.now, "data": event["data"]}
        for _, job_id, event in told
    ]
    tx.execute(sa.insert(tables.events), rows)
    outbox.tell_jobs(tx, told)


def progress_is_due(now: float, started_at: float, last_at: float | None, written: int) -> bool:
    """Tell whether another progress event may be kept (all times in seconds)."""
    if last_at is None:
        return True
    pause_s = max(_PROGRESS_EVERY_S, (now - started_at) * _PROGRESS_EVERY_SHARE)
    return written < MAX_PROGRESS_EVENTS and now - last_at >= pause_s


def read(tx: Transaction, job_id: str, after: int, limit: int) -> list[Event]:
    """List a job's events with `id` > `after` in order, at most `limit`."""
    return read_log(tx, tables.events, tables.events.c.job_id == job_id, after, limit)


def read_log(
    tx: Transaction, log: sa.Table, whose: sa.ColumnElement[bool], after: int, limit: int
) -> list[Event]:
    """List the events of `log` (of jobs or of batches) that `whose` selects, as `read` does."""
    rows = tx.execute(sa.select(log).where(whose, log.c.number > after).order_by(log.c.number).limit(limit))
    return [Event(id=row.number, type=row.type, at=rfc3339(row.at), data=row.data) for row in rows]
