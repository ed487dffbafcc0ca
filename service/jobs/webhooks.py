"""Webhook endpoints and their delivery log: what an owner sees of the outbox, and may change.

Secrets are stored in the clear, since every sending is signed with them (HMAC has no public half); whoever can
read or write this database could also read the jobs that the messages tell of, and write messages into the
outbox. Documents show a secret only where one was asked for: at creation, at rotation, and of the default
endpoint.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from ulid import ULID

from service.jobs import outbox, tables, webhook_tries
from service.jobs.errors import IdempotencyKeyReused
from service.jobs.events import EventType
from service.jobs.outbox import MessageState
from service.jobs.webhook_documents import endpoint_document, message_documents
from service.jobs.webhook_signing import new_secret

if TYPE_CHECKING:
    from collections.abc import Sequence

    from service.jobs.database import Database, Transaction
    from service.jobs.documents import Document, Row
    from service.jobs.webhook_tries import Answer, Message

__all__ = [
    "DEFAULT_EVENT_TYPES",
    "EVENT_TYPES",
    "TEST_TYPE",
    "DefaultEndpoint",
    "TooManyEndpoints",
    "WebhookStore",
]

EVENT_TYPES: Final = (*EventType, "batch.progress", "batch.completed")
DEFAULT_EVENT_TYPES: Final = (*sorted(outbox.JOB_ENDS), "batch.completed")
TEST_TYPE: Final = "webhook.test"
MAX_ENDPOINTS: Final = 20
"""Of one owner: each event writes a row for each of them."""
ROTATION_S: Final = 86_400.0
"""How long an earlier secret still signs. Source: product."""
_MAX_PREVIOUS = 4
"""Earlier secrets that sign beside the newest: a rotation repeated after a lost answer must not end the first."""
_LOG_S = 30 * 86_400.0
"""How long messages and their tries are kept: the longest schedule takes 28 hours."""
_FORGET_LIMIT = 1_000


class DefaultEndpoint(ValueError):
    """The default endpoint has no URL of its own: it cannot be changed, deleted or tried."""


class TooManyEndpoints(Exception):
    """The owner has as many webhooks as one may have: HTTP 409."""


class WebhookStore:
    """Endpoints, messages and tries of one database.

    Every method is one transaction and raises `StoreUnavailable` when the database does not answer. What
    belongs to another owner does not exist.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    # ---- for the frontend

    def create(
        self,
        owner: str,
        url: str,
        event_types: Sequence[str] = DEFAULT_EVENT_TYPES,
        *,
        idempotency_key: str | None = None,
        body_hash: str | None = None,
    ) -> Document:
        """Make an endpoint; the document shows its secret. The same key and body: the same endpoint again.

        Raises `IdempotencyKeyReused` (same key, other `body_hash`), and `TooManyEndpoints`.
        """
        values = {
            "owner": owner,
            "url": url,
            "event_types": list(event_types),
            "secret": new_secret(),
            "previous_secrets": [],
            "idempotency_key": idempotency_key,
            "body_hash": body_hash,
        }
        try:
            with self._database.writing() as tx:
                row = _made_before(tx, owner, idempotency_key, body_hash)
                if row is None:
                    _check_room(tx, owner)
                    endpoint_id = f"whk_{ULID.from_timestamp(tx.now)}"
                    table = tables.webhook_endpoints
                    tx.execute(sa.insert(table).values(id=endpoint_id, created_at=tx.now, **values))
                    row = _find(tx, endpoint_id, owner)
        except IntegrityError:
            # Another request with this key committed first (possible on PostgreSQL only).
            with self._database.reading() as tx:
                row = _made_before(tx, owner, idempotency_key, body_hash)
        assert row is not None
        return endpoint_document(row) | {"secret": row.secret}

    def default(self, owner: str) -> Document:
        """Tell the endpoint that signs what goes to the URLs of single jobs, with its secret; made at first use."""
        with self._database.writing() as tx:
            row = outbox.default_endpoint(tx, owner)
            return endpoint_document(row) | {"secret": row.secret}

    def list_endpoints(
        self, owner: str | None = None, *, limit: int = 50, cursor: str | None = None
    ) -> tuple[list[Document], str | None]:
        """List endpoints, newest first, without the default ones; and the cursor of the next page."""
        columns = tables.webhook_endpoints.c
        query = sa.select(tables.webhook_endpoints).where(columns.url.is_not(None))
        if owner is not None:
            query = query.where(columns.owner == owner)
        if cursor is not None:
            query = query.where(columns.id < cursor)
        with self._database.reading() as tx:
            rows = tx.execute(query.order_by(columns.id.desc()).limit(limit + 1)).all()
        page = rows[:limit]
        return [endpoint_document(row) for row in page], page[-1].id if len(rows) > limit else None

    def get(self, endpoint_id: str, owner: str | None = None) -> Document | None:
        """Tell one endpoint; None when it does not exist."""
        with self._database.reading() as tx:
            row = _find(tx, endpoint_id, owner)
        return None if row is None else endpoint_document(row)

    def update(
        self,
        endpoint_id: str,
        owner: str | None = None,
        *,
        url: str | None = None,
        event_types: Sequence[str] | None = None,
        enabled: bool | None = None,
    ) -> Document | None:
        """Change what is given. What waits for a disabled endpoint is sent when it is enabled again."""
        values: dict[str, Any] = {}
        if url is not None:
            values["url"] = url
        if event_types is not None:
            values["event_types"] = list(event_types)
        with self._database.writing() as tx:
            row = _find(tx, endpoint_id, owner, lock=True)
            if row is None:
                return None
            _refuse_default(row)
            if enabled:
                values |= {"disabled_at": None, "disabled_reason": None, "failing_since": None}
            elif enabled is not None and row.disabled_at is None:
                values |= {"disabled_at": tx.now, "disabled_reason": "its owner disabled it"}
            return endpoint_document(_change(tx, row, values))

    def delete(self, endpoint_id: str, owner: str | None = None) -> bool:
        """Forget an endpoint with its messages; False when it does not exist."""
        messages = tables.webhook_messages.c
        with self._database.writing() as tx:
            row = _find(tx, endpoint_id, owner)
            if row is None:
                return False
            _refuse_default(row)
            # Messages first, as whoever records a try locks them.
            webhook_tries.delete(tx, sa.select(messages.id).where(messages.endpoint_id == row.id))
            table = tables.webhook_endpoints
            tx.execute(sa.delete(table).where(table.c.id == row.id))
            return True

    def rotate(self, endpoint_id: str, owner: str | None = None) -> Document | None:
        """Draw a new secret and show it; the one before goes on signing beside it for a day."""
        with self._database.writing() as tx:
            row = _find(tx, endpoint_id, owner, lock=True)
            if row is None:
                return None
            kept = [{"secret": row.secret, "until": tx.now + ROTATION_S}]
            kept += [one for one in row.previous_secrets if one["until"] > tx.now]
            values = {"secret": new_secret(), "previous_secrets": kept[:_MAX_PREVIOUS]}
            row = _change(tx, row, values)
            return endpoint_document(row) | {"secret": row.secret}

    def test(self, endpoint_id: str, owner: str | None = None) -> Document | None:
        """Put a test message into the outbox, subscribed or not."""
        with self._database.writing() as tx:
            row = _find(tx, endpoint_id, owner)
            if row is None:
                return None
            _refuse_default(row)
            message_id = outbox.put(tx, row.id, TEST_TYPE, {"webhook_id": row.id})
            return _message(tx, row, message_id)

    def deliveries(
        self, endpoint_id: str, owner: str | None = None, *, limit: int = 50, cursor: str | None = None
    ) -> tuple[list[Document], str | None] | None:
        """List an endpoint's messages with their tries, newest first; None when it does not exist."""
        columns = tables.webhook_messages.c
        with self._database.reading() as tx:
            endpoint = _find(tx, endpoint_id, owner)
            if endpoint is None:
                return None
            query = sa.select(tables.webhook_messages).where(columns.endpoint_id == endpoint_id)
            if cursor is not None:
                query = query.where(columns.id < cursor)
            rows = tx.execute(query.order_by(columns.id.desc()).limit(limit + 1)).all()
            page = rows[:limit]
            return message_documents(tx, endpoint, page), page[-1].id if len(rows) > limit else None

    def replay(self, endpoint_id: str, message_id: str, owner: str | None = None) -> Document | None:
        """Send a message again, with its id and the whole schedule; None when it does not exist."""
        table = tables.webhook_messages
        with self._database.writing() as tx:
            endpoint = _find(tx, endpoint_id, owner)
            if endpoint is None:
                return None
            # A lease that somebody holds stays: what is being sent now is not sent twice at a time.
            tx.execute(
                sa.update(table)
                .where(table.c.id == message_id, table.c.endpoint_id == endpoint_id)
                .values(state=MessageState.WAITING.value, next_try_at=tx.now, failures=0)
            )
            return _message(tx, endpoint, message_id)

    # ---- for the senders

    def claim(self, limit: int, lease_s: float) -> list[Message]:
        """Take messages to send now; others leave them alone for `lease_s` seconds."""
        with self._database.reading() as tx:
            if not webhook_tries.any_due(tx):
                return []
        with self._database.writing() as tx:
            return webhook_tries.claim(tx, limit, lease_s)

    def record(self, message: Message, answer: Answer) -> None:
        """Write down what came of a try; without effect when another sender has taken the message over."""
        with self._database.writing() as tx:
            webhook_tries.record(tx, message, answer)

    def forget_old(self) -> int:
        """Delete some messages that are older than the log; how many."""
        with self._database.writing() as tx:
            return webhook_tries.forget_older(tx, tx.now - _LOG_S, _FORGET_LIMIT)


def _find(tx: Transaction, endpoint_id: str, owner: str | None, *, lock: bool = False) -> Row | None:
    columns = tables.webhook_endpoints.c
    query = sa.select(tables.webhook_endpoints).where(columns.id == endpoint_id)
    if owner is not None:
        query = query.where(columns.owner == owner)
    return tx.execute(query.with_for_update() if lock else query).one_or_none()


def _made_before(tx: Transaction, owner: str, key: str | None, body_hash: str | None) -> Row | None:
    columns = tables.webhook_endpoints.c
    query = sa.select(tables.webhook_endpoints).where(columns.owner == owner, columns.idempotency_key == key)
    row = None if key is None else tx.execute(query).one_or_none()
    if row is not None and row.body_hash != body_hash:
        raise IdempotencyKeyReused(
            f"this Idempotency-Key was used for {row.id} with another body; use a new key for a new webhook"
        )
    return row


def _check_room(tx: Transaction, owner: str) -> None:
    columns = tables.webhook_endpoints.c
    query = sa.select(sa.func.count()).where(columns.owner == owner, columns.url.is_not(None))
    if tx.execute(query).scalar_one() >= MAX_ENDPOINTS:
        raise TooManyEndpoints(f"there are {MAX_ENDPOINTS} webhooks already, which is the most")


def _refuse_default(row: Row) -> None:
    if row.url is None:
        raise DefaultEndpoint(
            f"{row.id} is the default webhook, which only signs what goes to jobs' own URLs"
        )


def _change(tx: Transaction, row: Row, values: dict[str, Any]) -> Row:
    table = tables.webhook_endpoints
    if values:
        tx.execute(sa.update(table).where(table.c.id == row.id).values(values))
    return tx.execute(sa.select(table).where(table.c.id == row.id)).one()


def _message(tx: Transaction, endpoint: Row, message_id: str) -> Document | None:
    columns = tables.webhook_messages.c
    query = sa.select(tables.webhook_messages).where(columns.id == message_id)
    rows = tx.execute(query.where(columns.endpoint_id == endpoint.id)).all()
    return next(iter(message_documents(tx, endpoint, rows)), None)
