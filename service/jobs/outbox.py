"""The outbox of webhooks: messages written in the transaction of the event they tell, and sent afterwards.

So nothing that happened goes untold, and nothing is told that did not happen. A message keeps its id over all
tries (`webhook_tries.py`), and receivers drop what they have seen: at least once, in no particular order.
"""

from __future__ import annotations

import hashlib
import json
from enum import StrEnum
from functools import cache
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa
from ulid import ULID

from service.jobs import tables
from service.jobs.documents import rfc3339
from service.jobs.webhook_signing import new_secret

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from service.jobs.database import Transaction
    from service.jobs.documents import Document, Row
    from service.jobs.events import Event

__all__ = ["JOB_ENDS", "MessageState", "default_endpoint", "put", "tell", "tell_jobs"]

JOB_ENDS: Final = frozenset({"job.succeeded", "job.failed", "job.canceled"})
"""What the URL in a job's own `webhook` is told."""


class MessageState(StrEnum):
    """What became of a message: to be sent (again), arrived, or given up."""

    WAITING = "waiting"
    DELIVERED = "delivered"
    FAILED = "failed"


def tell_jobs(tx: Transaction, told: Sequence[tuple[str, str, Event]]) -> None:
    """Write the messages that events of jobs ask for; each event comes with the owner and the id of its job."""
    endpoints = _endpoints(tx, {owner for owner, _, _ in told})
    for owner, job_id, event in told:
        subscribed = [row.id for row in endpoints if row.owner == owner and event["type"] in row.event_types]
        if subscribed or event["type"] in JOB_ENDS:
            _tell_job(tx, owner, job_id, event, subscribed)


def _tell_job(tx: Transaction, owner: str, job_id: str, event: Event, endpoints: Sequence[str]) -> None:
    """Write the messages of one event: to some of the owner's endpoints, and to the job's own URL."""
    columns = tables.jobs.c
    job = tx.execute(sa.select(columns.spec, columns.batch_id).where(columns.id == job_id)).one()
    metadata = job.spec.get("metadata", {})
    data = {"job_id": job_id, "batch_id": job.batch_id, "metadata": metadata, "event": event}
    targets: list[tuple[str, str | None]] = [(endpoint, None) for endpoint in endpoints]
    if event["type"] in JOB_ENDS and (url := job.spec.get("webhook")):
        targets.append((default_endpoint(tx, owner).id, url))
    for endpoint_id, url in targets:
        put(tx, endpoint_id, event["type"], data, url=url, source=(job_id, event["id"]))


def tell(tx: Transaction, owner: str, type_: str, data: Document, subject: str, number: int) -> None:
    """Write the messages for what is no event of a job; `subject` and `number` name it, once and for all."""
    for row in _endpoints(tx, {owner}):
        if type_ in row.event_types:
            put(tx, row.id, type_, data, source=(subject, number))


def put(
    tx: Transaction,
    endpoint_id: str,
    type_: str,
    data: Document,
    *,
    url: str | None = None,
    source: tuple[str, int] | None = None,
) -> str:
    """Write one message, to be sent at once; returns its id."""
    message_id = f"msg_{ULID.from_timestamp(tx.now)}"
    subject, number = source or (None, None)
    body = {"type": type_, "timestamp": rfc3339(tx.now), "data": data}
    tx.execute(
        sa.insert(tables.webhook_messages).values(
            id=message_id,
            endpoint_id=endpoint_id,
            url=url,
            subject=subject,
            number=number,
            type=type_,
            body=json.dumps(body, separators=(",", ":")),
            created_at=tx.now,
            state=MessageState.WAITING.value,
            next_try_at=tx.now,
            tries=0,
            failures=0,
        )
    )
    return message_id


def default_endpoint(tx: Transaction, owner: str) -> Row:
    """Read an owner's default endpoint, which has no URL and signs what goes to jobs' own; make it if need be."""
    table = tables.webhook_endpoints
    # An id that follows from the owner: two transactions cannot make two of them.
    digest = hashlib.sha256(f"default webhook endpoint of {owner}".encode()).digest()
    endpoint_id = f"whk_{ULID.from_bytes(digest[:16])}"
    query = sa.select(table).where(table.c.id == endpoint_id)
    known = tx.execute(query).one_or_none()
    if known is None:
        tx.insert_or_keep(
            table,
            {
                "id": endpoint_id,
                "owner": owner,
                "event_types": sorted(JOB_ENDS),
                "secret": new_secret(),
                "previous_secrets": [],
                "created_at": tx.now,
            },
        )
        known = tx.execute(query).one()
    return known


def _endpoints(tx: Transaction, owners: Collection[str]) -> Sequence[Row]:
    """Read the endpoints of some owners that are to be told anything."""
    return tx.execute(_listening(), {"owners": sorted(owners)}).all()


@cache
def _listening() -> sa.Select[Any]:
    columns = tables.webhook_endpoints.c
    theirs = columns.owner.in_(sa.bindparam("owners", expanding=True))
    query = sa.select(columns.id, columns.owner, columns.event_types)
    return query.where(theirs, columns.url.is_not(None), columns.disabled_at.is_(None)).order_by(columns.id)
