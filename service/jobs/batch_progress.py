"""The life of a batch: its states, its event log, and what follows from how far its items are.

`uploading → expanding ⇄ running → completed`, with `paused` beside the middle two and `canceling → canceled` behind
all of them. A retry of failed items opens a completed batch again. Every change is made with the batch's row locked.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa

from service.jobs import outbox, tables
from service.jobs.batch_items import LIVE, ItemState, count_states, exists
from service.jobs.documents import rfc3339
from service.jobs.events import Event, progress_is_due, read_log

if TYPE_CHECKING:
    from service.jobs.database import Transaction
    from service.jobs.documents import Row

__all__ = [
    "ENDED",
    "HIDDEN",
    "OPEN",
    "BatchState",
    "find",
    "lock",
    "news",
    "read_events",
    "settle",
    "tell",
    "update",
]


class BatchState(StrEnum):
    """Where a batch stands."""

    UPLOADING = "uploading"
    """Not a batch yet: its lines arrive."""
    DISCARDED = "discarded"
    """Never to be a batch: its lines are being erased."""
    EXPANDING = "expanding"
    """Some of its items have no job yet: jobs are made as the queue takes them."""
    RUNNING = "running"
    PAUSED = "paused"
    CANCELING = "canceling"
    COMPLETED = "completed"
    CANCELED = "canceled"


HIDDEN: Final = (BatchState.UPLOADING.value, BatchState.DISCARDED.value)
OPEN: Final = tuple(
    state.value
    for state in (BatchState.EXPANDING, BatchState.RUNNING, BatchState.PAUSED, BatchState.CANCELING)
)
"""The states in which something is still to come."""
ENDED: Final = (BatchState.COMPLETED.value, BatchState.CANCELED.value)


def find(tx: Transaction, batch_id: str, owner: str | None) -> Row | None:
    """Read a batch's row; None if it does not exist for `owner`."""
    return tx.execute(_visible(batch_id, owner)).one_or_none()


def lock(tx: Transaction, batch_id: str, owner: str | None) -> Row | None:
    """Read a batch's row and keep others from changing it; before any of its jobs is locked, so nobody deadlocks."""
    return tx.execute(_visible(batch_id, owner).with_for_update()).one_or_none()


def _visible(batch_id: str, owner: str | None) -> sa.Select[*tuple[Any, ...]]:
    columns = tables.batches.c
    query = sa.select(tables.batches).where(columns.id == batch_id, columns.state.not_in(HIDDEN))
    return query if owner is None else query.where(columns.owner == owner)


def update(tx: Transaction, batch_id: str, **values: Any) -> None:
    """Write columns of a locked batch."""
    tx.execute(sa.update(tables.batches).where(tables.batches.c.id == batch_id).values(**values))


def settle(tx: Transaction, batch_id: str) -> bool:
    """Bring the state of a locked, open batch in line with its items; whether it changed."""
    row = tx.execute(sa.select(tables.batches).where(tables.batches.c.id == batch_id)).one()
    pending, live = exists(tx, batch_id, [ItemState.PENDING.value]), exists(tx, batch_id, LIVE)
    state = BatchState(row.state)
    if not pending and not live:
        canceled = state is BatchState.CANCELING
        _end(tx, row, BatchState.CANCELED if canceled else BatchState.COMPLETED)
        return True
    if state in (BatchState.EXPANDING, BatchState.RUNNING):
        fits = BatchState.EXPANDING if pending else BatchState.RUNNING
        if fits is not state:
            update(tx, batch_id, state=fits.value)
            return True
    return False


def _end(tx: Transaction, row: Row, state: BatchState) -> None:
    counts = count_states(tx, row.id)
    update(tx, row.id, state=state.value, ended_at=tx.now, paused_at=None, counts=counts)
    _append(tx, row, "batch.completed", {"status": state.value, "counts": counts})


def news(tx: Transaction, row: Row) -> dict[str, int] | None:
    """Count the items of an open batch if that is due to be told and not what was told last."""
    if not progress_is_due(tx.now, row.created_at, row.progress_at, row.progress_events):
        return None
    counts = count_states(tx, row.id)
    return None if counts == row.counts else counts


def tell(tx: Transaction, row: Row) -> bool:
    """Write the progress of a locked, open batch if it is due; whether it was."""
    counts = news(tx, row)
    if counts is None:
        return False
    update(tx, row.id, counts=counts, progress_at=tx.now, progress_events=row.progress_events + 1)
    _append(tx, row, "batch.progress", {"status": row.state, "counts": counts})
    return True


def _append(tx: Transaction, batch: Row, type_: str, data: dict[str, Any]) -> None:
    """Write the next event of a locked batch, and the messages to webhooks that it asks for."""
    columns = tables.batches.c
    number = tx.execute(
        sa.update(tables.batches)
        .where(columns.id == batch.id)
        .values(last_event=columns.last_event + 1)
        .returning(columns.last_event)
    ).scalar_one()
    row = {"batch_id": batch.id, "number": number, "type": type_, "at": tx.now, "data": data}
    tx.execute(sa.insert(tables.batch_events).values(row))
    event = Event(id=number, type=type_, at=rfc3339(tx.now), data=data)
    told = {"batch_id": batch.id, "metadata": batch.metadata, "event": event}
    outbox.tell(tx, batch.owner, type_, told, batch.id, number)


def read_events(tx: Transaction, batch_id: str, after: int, limit: int) -> list[Event]:
    """List a batch's events with `id` > `after` in order, at most `limit`."""
    return read_log(tx, tables.batch_events, tables.batch_events.c.batch_id == batch_id, after, limit)
