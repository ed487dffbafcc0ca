"""BatchStore: many jobs as one thing, made from lines, counted truly, to be paused, resumed, canceled and retried."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from ulid import ULID

from service.jobs import batch_expansion, batch_progress, batch_reading, shares, tables
from service.jobs.batch_items import ItemState, exists
from service.jobs.batch_progress import BatchState, lock, settle
from service.jobs.errors import BatchConflict, IdempotencyKeyReused
from service.jobs.states import ACTIVE, JobState

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from service.jobs.batch_input import BatchOptions, Item
    from service.jobs.database import Database, Transaction
    from service.jobs.documents import Document, Row
    from service.jobs.events import Event

__all__ = ["ADVANCE_EVERY_S", "BatchStore"]

ADVANCE_EVERY_S: Final = 0.5
"""How often a frontend drives batches, beside workers, which do it whenever they find no job."""

_RETRIED_AT_ONCE: Final = 2_000
"""Failed items that one transaction takes back."""
_WORKING: Final = (BatchState.EXPANDING, BatchState.RUNNING)


class BatchStore:
    """The truth about batches, over the database of a `JobStore`.

    Every method is one transaction, or says otherwise, and may be called from any thread or process. `owner`: None
    for anybody's. What belongs to another owner is answered as what never existed: None.
    """

    def __init__(self, database: Database, *, max_queued: int | None = None) -> None:
        """`max_queued`: the operator's bound on queued jobs, of which batches take a share only."""
        self._database = database
        self._max_queued = max_queued

    # ---- making one: begin, add any number of times, accept or discard

    def begin(self, owner: str, options: BatchOptions) -> str:
        """Open a batch that nobody sees yet; its id."""
        with self._database.writing() as tx:
            row = {
                "id": f"batch_{ULID.from_timestamp(tx.now)}",
                "owner": owner,
                "state": BatchState.UPLOADING.value,
                "created_at": tx.now,
                "touched_at": tx.now,
                "max_parallel": options.max_parallel,
                "defaults": options.defaults,
                "sweep": options.sweep,
                "metadata": options.metadata or {},
                "problems": [],
            }
            tx.execute(sa.insert(tables.batches).values(row))
        return str(row["id"])

    def add(self, batch_id: str, items: Sequence[Item], first: int) -> None:
        """Write items of a batch that was begun; the first one's number is `first` (they count from 0)."""
        with self._database.writing() as tx:
            _touch_upload(tx, batch_id)
            tx.execute(
                sa.insert(tables.batch_items),
                [_item_row(batch_id, first + index, item) for index, item in enumerate(items)],
            )

    def accept(
        self,
        batch_id: str,
        problems: Sequence[Mapping[str, Any]] = (),
        *,
        idempotency_key: str | None = None,
        body_hash: str | None = None,
    ) -> tuple[Document, bool]:
        """Make a batch of what was added: its document, and whether it is new (False: this key has made another).

        `problems`: those of invalid lines that its document shows. Raises `IdempotencyKeyReused`.
        """
        try:
            with self._database.writing() as tx:
                owner = _touch_upload(tx, batch_id)
                known = _known(tx, owner, idempotency_key, body_hash)
                if known is None:
                    values = {"problems": list(problems), "idempotency_key": idempotency_key}
                    state = BatchState.EXPANDING.value
                    batch_progress.update(tx, batch_id, state=state, body_hash=body_hash, **values)
                    settle(tx, batch_id)
                else:
                    batch_progress.update(tx, batch_id, state=BatchState.DISCARDED.value)
                document = batch_reading.get(tx, known or batch_id, None)
        except IntegrityError:
            # Another request with this key committed first (possible on PostgreSQL only): it is found now.
            return self.accept(batch_id, problems, idempotency_key=idempotency_key, body_hash=body_hash)
        assert document is not None
        return document, known is None

    def discard(self, batch_id: str) -> None:
        """Give up a batch that was begun and not accepted; `advance` erases what it had."""
        columns = tables.batches.c
        begun = (columns.id == batch_id) & (columns.state == BatchState.UPLOADING.value)
        with self._database.writing() as tx:
            change = sa.update(tables.batches).where(begun)
            tx.execute(change.values(state=BatchState.DISCARDED.value))

    def made_before(self, owner: str, idempotency_key: str, body_hash: str) -> Document | None:
        """Find the batch that this key has made; raises `IdempotencyKeyReused` if it came with another body."""
        with self._database.reading() as tx:
            known = _known(tx, owner, idempotency_key, body_hash)
            return None if known is None else batch_reading.get(tx, known, owner)

    # ---- reading

    def get(self, batch_id: str, owner: str | None = None) -> Document | None:
        """Tell all about one batch."""
        with self._database.reading() as tx:
            return batch_reading.get(tx, batch_id, owner)

    def list_batches(
        self, owner: str | None = None, *, limit: int = 50, cursor: str | None = None
    ) -> tuple[list[Document], str | None]:
        """List batches, newest first, and the cursor of the next page (None at the end)."""
        with self._database.reading() as tx:
            return batch_reading.list_batches(tx, owner, limit, cursor)

    def results(
        self,
        batch_id: str,
        owner: str | None = None,
        *,
        after: int = -1,
        limit: int = 100,
        state: ItemState | None = None,
    ) -> tuple[list[Document], int | None] | None:
        """List items in order, from behind number `after`, and the last number of this page if more follow."""
        with self._database.reading() as tx:
            if batch_progress.find(tx, batch_id, owner) is None:
                return None
            return batch_reading.results(tx, batch_id, after, limit, state)

    def events(
        self, batch_id: str, owner: str | None = None, *, after: int = 0, limit: int = 1_000
    ) -> list[Event] | None:
        """List a batch's events with `id` > `after`, in order."""
        with self._database.reading() as tx:
            if batch_progress.find(tx, batch_id, owner) is None:
                return None
            return batch_progress.read_events(tx, batch_id, after, limit)

    # ---- steering: harmless to repeat; `BatchConflict` where the batch's state forbids it

    def pause(self, batch_id: str, owner: str | None = None) -> Document | None:
        """Start no more jobs of a batch; what runs runs on."""
        with self._database.writing() as tx:
            row = lock(tx, batch_id, owner)
            if row is not None and row.state != BatchState.PAUSED:
                _demand(row, _WORKING, "paused")
                live = _lock_children(tx, batch_id)
                _update_jobs(tx, [one.id for one in live], held=True)
                batch_progress.update(tx, batch_id, state=BatchState.PAUSED.value, paused_at=tx.now)
            return batch_reading.get(tx, batch_id, owner)

    def resume(self, batch_id: str, owner: str | None = None) -> Document | None:
        """Go on with a paused batch: the time of the pause does not count for its jobs' deadlines."""
        with self._database.writing() as tx:
            row = lock(tx, batch_id, owner)
            if row is not None and row.state not in _WORKING:
                _demand(row, (BatchState.PAUSED,), "resumed")
                live = _lock_children(tx, batch_id)
                queued = [one.id for one in live if one.state == JobState.QUEUED]
                paused_s = max(0.0, tx.now - row.paused_at)
                _update_jobs(tx, queued, deadline_at=tables.jobs.c.deadline_at + paused_s)
                shares.enter(tx, row.owner)
                _update_jobs(tx, [one.id for one in live], held=False)
                batch_progress.update(tx, batch_id, state=BatchState.RUNNING.value, paused_at=None)
                settle(tx, batch_id)
            return batch_reading.get(tx, batch_id, owner)

    def cancel(self, batch_id: str, owner: str | None = None) -> Document | None:
        """End a batch: what waits is canceled, what runs is asked to end; one that has ended stays as it is."""
        with self._database.writing() as tx:
            row = lock(tx, batch_id, owner)
            if row is not None and row.state in (*_WORKING, BatchState.PAUSED):
                batch_progress.update(tx, batch_id, state=BatchState.CANCELING.value, paused_at=None)
                # From now on none of them starts; those that this transaction does not reach, `advance` ends.
                _update_jobs(tx, [one.id for one in _lock_children(tx, batch_id)], held=True)
                batch_expansion.cancel_some(tx, batch_id)
                settle(tx, batch_id)
            return batch_reading.get(tx, batch_id, owner)

    def retry_failed(self, batch_id: str, owner: str | None = None) -> Document | None:
        """Make new jobs for the items that have failed, in several transactions; a failure meanwhile is left alone."""
        after: int | None = -1
        while after is not None:
            with self._database.writing() as tx:
                row = lock(tx, batch_id, owner)
                if row is None:
                    return None
                _demand(row, (*_WORKING, BatchState.PAUSED, BatchState.COMPLETED), "retried")
                after = _take_back(tx, row, after)
                document = batch_reading.get(tx, batch_id, owner)
        return document

    # ---- driving: called again and again by frontends and idle workers, any number at once

    def advance(self) -> int:
        """Do a bounded part of what is due for all batches; how many changes were made (0: call again later)."""
        with self._database.reading() as tx:
            if not batch_expansion.due(tx, self._max_queued):
                return 0
        with self._database.writing() as tx:
            return batch_expansion.advance(tx, self._max_queued)


def _item_row(batch_id: str, number: int, item: Item) -> dict[str, Any]:
    state = ItemState.INVALID if item.spec is None else ItemState.PENDING
    return {
        "batch_id": batch_id,
        "number": number,
        "line": item.line,
        "custom_id": item.custom_id,
        "sweep": item.sweep,
        "state": state.value,
        "spec": item.spec,
        "warnings": [dict(one) for one in item.warnings],
        "problems": [dict(one) for one in item.problems],
    }


def _touch_upload(tx: Transaction, batch_id: str) -> str:
    """Say that an upload goes on, and lock it; its owner."""
    columns = tables.batches.c
    owner = tx.execute(
        sa.update(tables.batches)
        .where(columns.id == batch_id, columns.state == BatchState.UPLOADING.value)
        .values(touched_at=tx.now)
        .returning(columns.owner)
    ).scalar_one_or_none()
    if owner is None:
        raise BatchConflict(f"the upload of {batch_id} was given up since nothing arrived; send it again")
    return str(owner)


def _known(tx: Transaction, owner: str, key: str | None, body_hash: str | None) -> str | None:
    """Find the batch that an idempotency key of this owner has made."""
    if key is None:
        return None
    columns = tables.batches.c
    query = sa.select(columns.id, columns.body_hash)
    row = tx.execute(query.where(columns.owner == owner, columns.idempotency_key == key)).one_or_none()
    if row is None:
        return None
    if row.body_hash != body_hash:
        raise IdempotencyKeyReused(
            f"this Idempotency-Key was used for {row.id} with another body; use a new key for a new batch"
        )
    return str(row.id)


def _demand(row: Row, states: Sequence[BatchState], what: str) -> None:
    if row.state not in states:
        raise BatchConflict(
            f"{row.id} is {row.state}; only a batch that is {' or '.join(states)} can be {what}"
        )


def _lock_children(tx: Transaction, batch_id: str) -> Sequence[Row]:
    """Lock the jobs of a locked batch that have not ended, in the order in which everybody locks jobs."""
    columns = tables.jobs.c
    states = [JobState.QUEUED.value, *sorted(ACTIVE)]
    query = sa.select(tables.jobs).where(columns.batch_id == batch_id, columns.state.in_(states))
    return tx.execute(query.order_by(columns.id).with_for_update()).all()


def _update_jobs(tx: Transaction, ids: list[str], **values: Any) -> None:
    tx.execute(sa.update(tables.jobs).where(tables.jobs.c.id.in_(ids)).values(**values))


def _take_back(tx: Transaction, row: Row, after: int) -> int | None:
    """Make failed items of a locked batch wait for another job; the last number looked at if more may follow.

    An item whose job was erased stays as it is: nobody knows any more what it was to make.
    """
    items, jobs = tables.batch_items.c, tables.jobs.c
    numbers = tx.execute(
        sa.select(items.number)
        .where(items.batch_id == row.id, items.state == ItemState.FAILED.value, items.number > after)
        .where(items.job_id.in_(sa.select(jobs.id)))
        .order_by(items.number)
        .limit(_RETRIED_AT_ONCE)
    ).scalars()
    found = list(numbers)
    spec = sa.select(jobs.spec).where(jobs.id == items.job_id).scalar_subquery()
    tx.execute(
        sa.update(tables.batch_items)
        .where(items.batch_id == row.id, items.number.in_(found))
        .values(state=ItemState.PENDING.value, spec=spec)
    )
    if found and row.state == BatchState.COMPLETED:
        batch_progress.update(tx, row.id, state=BatchState.EXPANDING.value, ended_at=None)
    if row.state != BatchState.PAUSED and exists(tx, row.id, [ItemState.PENDING.value]):
        batch_progress.update(tx, row.id, state=BatchState.EXPANDING.value)
    return found[-1] if len(found) == _RETRIED_AT_ONCE else None
