"""Webhook endpoints and messages as the API's JSON documents."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import sqlalchemy as sa

from service.jobs import tables
from service.jobs.documents import rfc3339
from service.jobs.outbox import MessageState

if TYPE_CHECKING:
    from collections.abc import Sequence

    from service.jobs.database import Transaction
    from service.jobs.documents import Document, Row

__all__ = ["endpoint_document", "message_documents"]


def endpoint_document(row: Row) -> Document:
    """Describe an endpoint, without its secret."""
    return {
        "id": row.id,
        "url": row.url,
        "event_types": row.event_types,
        "enabled": row.disabled_at is None,
        "disabled_at": _time(row.disabled_at),
        "disabled_reason": row.disabled_reason,
        "failing_since": _time(row.failing_since),
        "created_at": rfc3339(row.created_at),
    }


def message_documents(tx: Transaction, endpoint: Row, rows: Sequence[Row]) -> list[Document]:
    """Describe messages of one endpoint, each with its tries."""
    table = tables.webhook_tries
    query = sa.select(table).where(table.c.message_id.in_([row.id for row in rows]))
    tries: dict[str, list[Document]] = {row.id: [] for row in rows}
    for one in tx.execute(query.order_by(table.c.number)):
        tries[one.message_id].append(
            {
                "number": one.number,
                "at": rfc3339(one.at),
                "duration_s": round(one.duration_s, 3),
                "status": one.status,
                "error": one.error,
                "answer": one.answer,
            }
        )
    return [
        {
            "id": row.id,
            "webhook_id": endpoint.id,
            "url": row.url or endpoint.url,
            "type": row.type,
            "payload": json.loads(row.body),
            "status": row.state,
            "created_at": rfc3339(row.created_at),
            "next_try_at": rfc3339(row.next_try_at) if row.state == MessageState.WAITING else None,
            "tries": tries[row.id],
        }
        for row in rows
    ]


def _time(seconds: float | None) -> str | None:
    return None if seconds is None else rfc3339(seconds)
