"""Making the items of batches into jobs, a few at a time, by any number of processes at once.

Only as many children exist as are soon to run: so a batch of 100,000 fills no queue, holds up nobody else's jobs, and
its children's deadlines count from when their turn is near. A chunk is one transaction, which makes jobs and marks
their items: a crash in it makes nothing. As a second guard a child's id follows from its batch and number.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import sqlalchemy as sa
from pydantic import ValidationError
from ulid import ULID

from service.jobs import batch_progress, tables
from service.jobs.batch_items import LIVE, ItemState, num_live
from service.jobs.batch_progress import OPEN, BatchState, settle, tell
from service.jobs.errors import QuotaExceeded
from service.jobs.fleet import pace
from service.jobs.quotas import Allowance
from service.jobs.spec import JobSpec
from service.jobs.states import JobState
from service.jobs.submission import NewJob, insert_jobs
from service.jobs.transitions import ask_to_end

if TYPE_CHECKING:
    from service.jobs.database import Transaction
    from service.jobs.documents import Row

__all__ = ["advance", "cancel_some", "child_id", "due", "erase"]

CHUNK: Final = 100
"""Children that one transaction makes, or ends: it holds SQLite's only write lock for a fraction of a second."""
MAX_CHANGED: Final = 5_000
"""Items without jobs that one transaction cancels or erases, which is much cheaper."""
NUM_AHEAD: Final = 8
"""Children that a batch may have beyond twice what live workers run: work for a fleet that is still starting."""
QUEUE_SHARE: Final = 0.5
"""Of the operator's bound on queued jobs: what batches leave to single submissions."""
UPLOAD_TIMEOUT_S: Final = 3_600.0
"""An upload that has brought nothing for so long has lost its frontend."""
_NAMESPACE: Final = uuid.UUID("d4c16dd4-91a9-5a52-8b3e-6c0f2a6c7b10")


def child_id(batch_id: str, created_at: float, number: int, tries: int) -> str:
    """Name the job of one item: the same for ever, and sorted by the age of its batch and by number within it.

    The 128 bits of a ULID: 48 of the batch's time, 24 of the number, 56 of a UUIDv5.
    """
    name = uuid.uuid5(_NAMESPACE, f"{batch_id}/{number}/{tries}")
    milliseconds = int(created_at * 1_000) % 2**48
    return f"job_{ULID.from_int(milliseconds << 80 | number << 56 | name.int % 2**56)}"


class _Room(NamedTuple):
    """What the service can take now."""

    queue: int
    """Jobs until batches have their share of the queue."""
    live: int
    """Children that a batch may have, queued and running."""

    def left(self, row: Row, live: int) -> int:
        allowed = self.live if row.max_parallel is None else min(self.live, row.max_parallel)
        return max(0, min(self.queue, allowed - live))


def _room(tx: Transaction, max_queued: int | None) -> _Room:
    live = 2 * pace(tx).slots + NUM_AHEAD
    if max_queued is None:
        return _Room(CHUNK, live)
    columns = tables.jobs.c
    waiting = (
        sa.select(sa.func.count()).select_from(tables.jobs).where(columns.state == JobState.QUEUED.value)
    )
    share = max(1, int(max_queued * QUEUE_SHARE))
    return _Room(min(CHUNK, share - tx.execute(waiting).scalar_one()), live)


def due(tx: Transaction, max_queued: int | None) -> list[str]:
    """Name the batches for which something is to be done now; the one that has waited longest comes first."""
    batches, items = tables.batches.c, tables.batch_items.c
    mine = sa.select(sa.func.count()).where(items.batch_id == batches.id)
    live = mine.where(items.state.in_(LIVE)).scalar_subquery()
    pending = (
        sa.select(items.number)
        .where(items.batch_id == batches.id, items.state == ItemState.PENDING.value)
        .exists()
    )
    lost = (batches.state == BatchState.UPLOADING.value) & (batches.touched_at < tx.now - UPLOAD_TIMEOUT_S)
    rows = tx.execute(
        sa.select(tables.batches, live.label("live"), pending.label("has_pending"))
        .where(batches.state.in_([*OPEN, BatchState.DISCARDED.value]) | lost)
        .order_by(batches.touched_at)
    ).all()
    room = _room(tx, max_queued) if rows else _Room(0, 0)
    return [row.id for row in rows if _is_due(tx, row, room)]


def _is_due(tx: Transaction, row: Row, room: _Room) -> bool:
    match BatchState(row.state):
        case BatchState.UPLOADING | BatchState.DISCARDED:
            return True
        case _ if not row.live and not row.has_pending:
            return True
        case BatchState.CANCELING if row.has_pending or tx.execute(_unasked(row.id).limit(1)).first():
            return True
        case BatchState.EXPANDING if not row.has_pending or room.left(row, row.live):
            return True
        case _:
            return row.live > 0 and batch_progress.news(tx, row) is not None


def advance(tx: Transaction, max_queued: int | None) -> int:
    """Do a bounded part of what is due for all batches; how many changes were made (0: nothing is due).

    Never waits for another process: what one has locked, it does itself.
    """
    batches = due(tx, max_queued)
    if not batches:
        return 0
    room, changed = _room(tx, max_queued), 0
    for batch_id in batches:
        query = sa.select(tables.batches).where(tables.batches.c.id == batch_id)
        row = tx.execute(query.with_for_update(skip_locked=True)).one_or_none()
        if row is None:
            continue
        made = 0
        match BatchState(row.state):
            case BatchState.UPLOADING | BatchState.DISCARDED:
                changed += erase(tx, batch_id)
                continue
            case BatchState.CANCELING:
                changed += cancel_some(tx, batch_id)
            case BatchState.EXPANDING:
                made = _expand(tx, row, room)
                room = room._replace(queue=room.queue - made)
            case BatchState.COMPLETED | BatchState.CANCELED:  # another process was faster
                continue
            case BatchState.RUNNING | BatchState.PAUSED:
                pass
        changed += made + (settle(tx, batch_id) or tell(tx, row))
    return changed


def _expand(tx: Transaction, row: Row, room: _Room) -> int:
    """Make the next items of a locked batch into jobs; how many."""
    columns = tables.batch_items.c
    items = tx.execute(
        sa.select(tables.batch_items)
        .where(columns.batch_id == row.id, columns.state == ItemState.PENDING.value)
        .order_by(columns.number)
        .limit(room.left(row, num_live(tx, row.id)))
    ).all()
    made, quotas = 0, Allowance(tx)
    for item in items:
        try:
            quotas.take(row.owner)
        except QuotaExceeded:
            break
        made += 1
        change = sa.update(tables.batch_items).where(
            columns.batch_id == row.id, columns.number == item.number
        )
        tx.execute(change.values(spec=None, **_make(tx, row, item)))
    if made:
        batch_progress.update(tx, row.id, touched_at=tx.now)
    return made


def _make(tx: Transaction, row: Row, item: Row) -> dict[str, object]:
    """Make an item's job; what the item's row says then."""
    try:
        spec = JobSpec.model_validate(item.spec)
    except ValidationError as error:
        # Written by another release: it must not stop the batch.
        problem = {
            "pointer": f"/items/{item.line - 1}",
            "detail": f"this release cannot read the job: {error}"[:300],
            "code": "internal",
        }
        return {"state": ItemState.INVALID.value, "problems": [problem]}
    job_id = child_id(row.id, row.created_at, item.number, item.tries)
    job = NewJob(job_id, spec, row.owner, item.warnings, item.job_id, (row.id, item.number))
    insert_jobs(tx, [job])
    return {"state": ItemState.QUEUED.value, "job_id": job_id, "tries": item.tries + 1}


def cancel_some(tx: Transaction, batch_id: str) -> int:
    """End a bounded part of what a locked batch still has: jobs, which are many statements each, and items without."""
    asked = _unasked(batch_id).limit(CHUNK).with_for_update(skip_locked=True)
    children = tx.execute(asked).all()
    for child in children:
        ask_to_end(tx, child, keep_partial=child.keep_partial)
    columns = tables.batch_items.c
    some = (
        sa.select(columns.number)
        .where(columns.batch_id == batch_id, columns.state == ItemState.PENDING.value)
        .limit(MAX_CHANGED)
    )
    canceled = tx.execute(
        sa.update(tables.batch_items)
        .where(columns.batch_id == batch_id, columns.number.in_(some))
        .values(state=ItemState.CANCELED.value, spec=None)
    )
    return len(children) + canceled.rowcount


def _unasked(batch_id: str) -> sa.Select[*tuple[Any, ...]]:
    """Select a batch's jobs that have not ended and were not asked to."""
    columns = tables.jobs.c
    states = (JobState.QUEUED.value, JobState.RUNNING.value)
    query = sa.select(tables.jobs).where(columns.batch_id == batch_id, columns.state.in_(states))
    return query.order_by(columns.id)


def erase(tx: Transaction, batch_id: str) -> int:
    """Erase some lines of a batch that never came to be, and at last its row; how many."""
    batch_progress.update(tx, batch_id, state=BatchState.DISCARDED.value)
    columns = tables.batch_items.c
    some = sa.select(columns.number).where(columns.batch_id == batch_id).limit(MAX_CHANGED)
    erased = tx.execute(
        sa.delete(tables.batch_items).where(columns.batch_id == batch_id, columns.number.in_(some))
    )
    if erased.rowcount < MAX_CHANGED:
        tx.execute(sa.delete(tables.batches).where(tables.batches.c.id == batch_id))
    return erased.rowcount + 1
