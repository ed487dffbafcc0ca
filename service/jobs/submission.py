"""How jobs come to be: idempotency keys and quotas first, then their rows, first events and counts.

Submissions that come together share one transaction, and what they have in common is read and written once. Each
has an answer of its own: one that is refused changes nothing for the others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import sqlalchemy as sa
from ulid import ULID

from service.jobs import events, reading, shares, tables, tallies
from service.jobs.errors import IdempotencyKeyReused, QueueFull, QuotaExceeded
from service.jobs.events import EventType
from service.jobs.quotas import Allowance
from service.jobs.states import JobState
from service.jobs.tallies import Total
from service.jobs.wakeup import announce

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from service.jobs.database import Transaction
    from service.jobs.documents import Document
    from service.jobs.spec import JobSpec

__all__ = ["Answer", "KnownJob", "NewJob", "Submission", "insert_jobs", "known_jobs", "new_ids", "submit_all"]

Refusal: TypeAlias = IdempotencyKeyReused | QueueFull | QuotaExceeded
Answer: TypeAlias = "tuple[Document, bool] | Refusal"
"""A job's document, and whether the job is new (False: this owner's key was seen with this body); or why not."""
Key: TypeAlias = tuple[str, str]
"""An owner, and one of its idempotency keys."""


class Submission(NamedTuple):
    """What a client asks for."""

    spec: JobSpec
    owner: str
    idempotency_key: str | None = None
    body_hash: str | None = None
    """Comes with the key."""
    warnings: Sequence[Mapping[str, str]] = ()
    retry_of: str | None = None

    @property
    def key(self) -> Key | None:
        """The key, which is its owner's own."""
        return None if self.idempotency_key is None else (self.owner, self.idempotency_key)


class KnownJob(NamedTuple):
    """A job that an idempotency key has made."""

    id: str
    body_hash: str | None

    def asked_again(self, body_hash: str | None) -> str:
        """Name it to whoever repeats the request that made it; raise `IdempotencyKeyReused` for another body."""
        if body_hash != self.body_hash:
            raise IdempotencyKeyReused(
                f"this Idempotency-Key was used for {self.id} with another body; use a new key for a new job"
            )
        return self.id


class NewJob(NamedTuple):
    """A job that is to be queued."""

    id: str
    spec: JobSpec
    owner: str
    warnings: Sequence[Mapping[str, str]] = ()
    retry_of: str | None = None
    child_of: tuple[str, int] | None = None
    """Its batch, and its number there."""


def submit_all(tx: Transaction, wanted: Sequence[Submission], max_queued: int | None) -> list[Answer]:
    """Queue jobs in the order of their submissions; the answer to each.

    Raises `IntegrityError` when another transaction has used one of the keys since this one looked, which can happen
    on PostgreSQL only: then nothing is queued, and all may be asked again.
    """
    known = known_jobs(tx, [one.key for one in wanted if one.key is not None])
    allowance = Allowance(tx, max_queued)
    new: list[NewJob] = []
    new_keys: dict[Key, KnownJob] = {}

    def place(one: Submission, job_id: str) -> tuple[str, bool]:
        """Find the job of a submission, and whether it is a new one; raise a `Refusal`."""
        first = known.get(one.key) or new_keys.get(one.key) if one.key is not None else None
        if first is not None:
            return first.asked_again(one.body_hash), False
        allowance.take(one.owner)
        new.append(NewJob(job_id, one.spec, one.owner, one.warnings, one.retry_of))
        if one.key is not None:
            new_keys[one.key] = KnownJob(job_id, one.body_hash)
        return job_id, True

    placed: list[tuple[str, bool] | Refusal] = []
    for one, job_id in zip(wanted, new_ids(tx, len(wanted)), strict=True):
        try:
            placed.append(place(one, job_id))
        except (IdempotencyKeyReused, QueueFull, QuotaExceeded) as refusal:
            placed.append(refusal)
    insert_jobs(tx, new)
    _remember(tx, new_keys)
    documents = reading.get_many(tx, {one[0] for one in placed if isinstance(one, tuple)})
    return [(documents[one[0]], one[1]) if isinstance(one, tuple) else one for one in placed]


def known_jobs(tx: Transaction, keys: Sequence[Key]) -> dict[Key, KnownJob]:
    """Find the jobs that idempotency keys have made."""
    if not keys:
        return {}
    columns = tables.idempotency_keys.c
    query = sa.select(tables.idempotency_keys).where(sa.tuple_(columns.owner, columns.key).in_(keys))
    return {(row.owner, row.key): KnownJob(row.job_id, row.body_hash) for row in tx.execute(query)}


def _remember(tx: Transaction, keys: Mapping[Key, KnownJob]) -> None:
    """Write down which job each key has made, in one order for all writers: so nobody deadlocks."""
    if keys:
        rows = [
            {"owner": owner, "key": key, "body_hash": job.body_hash, "job_id": job.id, "created_at": tx.now}
            for (owner, key), job in sorted(keys.items())
        ]
        tx.execute(sa.insert(tables.idempotency_keys), rows)


def new_ids(tx: Transaction, number: int) -> list[str]:
    """Make up ids of jobs that sort in their order, within this moment too."""
    return sorted(f"job_{ULID.from_timestamp(tx.now)}" for _ in range(number))


def insert_jobs(tx: Transaction, new: Sequence[NewJob]) -> None:
    """Queue jobs, whatever the quotas say."""
    if not new:
        return
    for owner in dict.fromkeys(job.owner for job in new):
        shares.enter(tx, owner)
    logs = {job.id: _first_events(job) for job in new}
    tx.execute(sa.insert(tables.jobs), [_row(tx, job, len(logs[job.id])) for job in new])
    events.begin(tx, [(job.owner, job.id, logs[job.id]) for job in new])
    tallies.count(tx, Total.JOBS_SUBMITTED, len(new))
    announce(tx)


def _first_events(job: NewJob) -> list[tuple[EventType, dict[str, Any]]]:
    """List what the log of a job begins with."""
    return [(EventType.QUEUED, {}), *((EventType.WARNING, dict(one)) for one in job.warnings)]


def _row(tx: Transaction, job: NewJob, num_events: int) -> dict[str, Any]:
    spec, (batch_id, batch_number) = job.spec, job.child_of or (None, None)
    return {
        "id": job.id,
        "owner": job.owner,
        "retry_of": job.retry_of,
        "batch_id": batch_id,
        "batch_number": batch_number,
        "state": JobState.QUEUED.value,
        "spec": spec.model_dump(mode="json"),
        "method": spec.method.name,
        "turn_at": shares.turn_at(spec, tx.now),
        "created_at": tx.now,
        "not_before": tx.now,
        "deadline_at": tx.now + spec.limits.deadline_s,
        "max_attempts": spec.limits.max_attempts,
        "steps_total": spec.steps,
        "warnings": [dict(warning) for warning in job.warnings],
        "last_event": num_events,
    }
