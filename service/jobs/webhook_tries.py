"""Sending what the outbox holds: who may send a message now, what came of it, and when to try again.

Senders, any number of them, claim due messages with a lease; a message's `tries` is the fence of what is
written about a try. One that dies before writing leaves a gap in the numbers, and the message is sent again.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import sqlalchemy as sa
from ulid import ULID

from service.jobs import tables, tallies
from service.jobs.outbox import MessageState
from service.jobs.tallies import Total

if TYPE_CHECKING:
    from collections.abc import Sequence

    from service.jobs.database import Transaction
    from service.jobs.documents import Row

__all__ = [
    "DISABLE_AFTER_S",
    "JITTER",
    "RETRY_AFTER_S",
    "Answer",
    "Message",
    "any_due",
    "claim",
    "delete",
    "forget_older",
    "forget_subject",
    "record",
]

RETRY_AFTER_S: Final = (5.0, 300.0, 1_800.0, 7_200.0, 18_000.0, 36_000.0, 36_000.0)
"""Pauses after the first, second … failed try, eight tries in about 28 hours. Source: product; Standard Webhooks
asks for exponential backoff with jitter over days."""
JITTER: Final = 0.1
"""Each pause is longer by up to this share, so that what failed together does not come back together."""
DISABLE_AFTER_S: Final = 5 * 86_400.0
"""An endpoint is disabled when a message is given up and nothing has arrived for this long. Source: product."""
_GONE = 410
_PER_ENDPOINT = 2
"""Messages of one endpoint that are claimed together, so that a dead one leaves room for others. The URLs that an
owner's jobs name are one endpoint: however many they are, they delay nobody else's."""


@dataclass(frozen=True, slots=True)
class Message:
    """A message that is this sender's to send, once, before its lease runs out."""

    id: str
    number: int
    """Of the try; the fence."""
    url: str
    body: bytes
    secrets: tuple[str, ...]
    at: float
    """The time of the claim, seconds since 1970."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of one try: a status, or an error where none came. `text` is the beginning of the answer."""

    duration_s: float
    status: int | None = None
    error: str | None = None
    text: str = ""

    @property
    def delivered(self) -> bool:
        """Whether the receiver has taken the message: any 2xx, whole and in time."""
        return self.error is None and self.status is not None and 200 <= self.status < 300


def claim(tx: Transaction, limit: int, lease_s: float) -> list[Message]:
    """Take due messages, those first that are due for longest; few of each endpoint.

    What goes to a disabled endpoint waits, and what goes to one that was deleted meanwhile is never sent.
    """
    messages, endpoints = tables.webhook_messages, tables.webhook_endpoints
    due = _due(tx.now)
    ranked = sa.select(
        messages.c.id,
        sa.func.row_number()
        .over(partition_by=messages.c.endpoint_id, order_by=messages.c.next_try_at)
        .label("rank"),
    )
    first = ranked.where(*due).subquery()
    rows = tx.execute(
        sa.select(
            messages.c.id,
            messages.c.tries,
            messages.c.body,
            sa.func.coalesce(messages.c.url, endpoints.c.url).label("url"),
            endpoints.c.secret,
            endpoints.c.previous_secrets,
        )
        .join(endpoints, endpoints.c.id == messages.c.endpoint_id)
        .join(first, first.c.id == messages.c.id)
        # What is due is asked again: another process may have claimed the row since it was ranked.
        .where(*due, endpoints.c.disabled_at.is_(None), first.c.rank <= _PER_ENDPOINT)
        .order_by(messages.c.next_try_at, messages.c.id)
        .limit(limit)
        .with_for_update(of=messages, skip_locked=True)
    ).all()
    if not rows:
        return []
    claimed = {"tries": messages.c.tries + 1, "leased_until": tx.now + lease_s}
    tx.execute(sa.update(messages).where(messages.c.id.in_([row.id for row in rows])).values(claimed))
    return [
        Message(
            id=row.id,
            number=row.tries + 1,
            url=row.url,
            body=row.body.encode("ascii"),
            secrets=(row.secret, *(one["secret"] for one in row.previous_secrets if one["until"] > tx.now)),
            at=tx.now,
        )
        for row in rows
    ]


def any_due(tx: Transaction) -> bool:
    """Tell whether there is anything to claim, without locking anything."""
    messages, endpoints = tables.webhook_messages, tables.webhook_endpoints
    query = sa.select(messages.c.id).join(endpoints, endpoints.c.id == messages.c.endpoint_id)
    query = query.where(*_due(tx.now), endpoints.c.disabled_at.is_(None)).limit(1)
    return tx.execute(query).one_or_none() is not None


def _due(now: float) -> tuple[sa.ColumnElement[bool], ...]:
    columns = tables.webhook_messages.c
    free = columns.leased_until.is_(None) | (columns.leased_until <= now)
    return columns.state == MessageState.WAITING.value, columns.next_try_at <= now, free


def record(tx: Transaction, message: Message, answer: Answer) -> None:
    """Write down what came of a try, and when the next one is; nothing if another sender has taken over."""
    table = tables.webhook_messages
    query = sa.select(table).where(table.c.id == message.id, table.c.tries == message.number)
    row = tx.execute(query.where(table.c.leased_until.is_not(None)).with_for_update()).one_or_none()
    if row is None:
        return
    tx.execute(
        sa.insert(tables.webhook_tries).values(
            message_id=message.id,
            number=message.number,
            at=message.at,
            duration_s=answer.duration_s,
            status=answer.status,
            error=answer.error,
            answer=answer.text,
        )
    )
    values, outcome = _after(tx.now, row, answer)
    tx.execute(sa.update(table).where(table.c.id == message.id).values(leased_until=None, **values))
    tallies.count(tx, Total.WEBHOOK_DELIVERIES, outcome=outcome)
    _note_health(tx, row.endpoint_id, answer, given_up=outcome == "given_up")


def _after(
    now: float, row: Row, answer: Answer
) -> tuple[dict[str, Any], Literal["delivered", "retried", "given_up"]]:
    """Decide what becomes of a message after a try."""
    if answer.delivered:
        return {"state": MessageState.DELIVERED.value}, "delivered"
    if answer.status == _GONE or row.failures >= len(RETRY_AFTER_S):
        return {"state": MessageState.FAILED.value, "failures": row.failures + 1}, "given_up"
    pause_s = RETRY_AFTER_S[row.failures] * random.uniform(1.0, 1.0 + JITTER)  # noqa: S311 - guards nothing
    return {"next_try_at": now + pause_s, "failures": row.failures + 1}, "retried"


def _note_health(tx: Transaction, endpoint_id: str, answer: Answer, *, given_up: bool) -> None:
    """Keep since when an endpoint fails; disable one that is gone, or has taken nothing for days."""
    table = tables.webhook_endpoints
    row = tx.execute(sa.select(table).where(table.c.id == endpoint_id)).one_or_none()
    if row is None or row.url is None:  # deleted meanwhile, or the default one, which has many URLs
        return
    values: dict[str, Any] = {}
    if answer.delivered:
        values = {"failing_since": None}
    elif answer.status == _GONE:
        reason = "the receiver answered 410 Gone"
        values = {
            "failing_since": row.failing_since or tx.now,
            "disabled_at": tx.now,
            "disabled_reason": reason,
        }
    elif row.failing_since is None:
        values = {"failing_since": tx.now}
    elif given_up and tx.now - row.failing_since >= DISABLE_AFTER_S:
        days = (tx.now - row.failing_since) / 86_400
        reason = f"nothing has arrived for {days:.1f} days"
        values = {"disabled_at": tx.now, "disabled_reason": reason}
    if any(row._mapping[name] != value for name, value in values.items()):
        tx.execute(
            sa.update(table).where(table.c.id == endpoint_id, table.c.disabled_at.is_(None)).values(values)
        )


def forget_older(tx: Transaction, than: float, limit: int) -> int:
    """Delete messages made before a time (seconds since 1970) and their tries; how many messages."""
    table = tables.webhook_messages
    old = sa.select(table.c.id).where(table.c.id < f"msg_{ULID.from_timestamp(than)}").limit(limit)
    return delete(tx, tx.execute(old.with_for_update(skip_locked=True)).scalars().all())


def forget_subject(tx: Transaction, subject: str) -> None:
    """Delete all messages about a job or a batch, also those that were not delivered yet."""
    table = tables.webhook_messages
    delete(tx, sa.select(table.c.id).where(table.c.subject == subject))


def delete(tx: Transaction, message_ids: Sequence[str] | sa.Select[tuple[str]]) -> int:
    """Delete messages and their tries."""
    tries, messages = tables.webhook_tries, tables.webhook_messages
    tx.execute(sa.delete(tries).where(tries.c.message_id.in_(message_ids)))
    return tx.execute(sa.delete(messages).where(messages.c.id.in_(message_ids))).rowcount
