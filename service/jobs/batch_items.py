"""The lines of a batch: their states, kept in step with the jobs made of them, in the same transactions.

A line becomes one item for each combination of the batch's sweep. Every item has one state at every moment, so the
counts of a batch, which are counts of its items' states, always add up to its total.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa

from service.jobs import tables
from service.jobs.states import JobState

if TYPE_CHECKING:
    from collections.abc import Collection

    from service.jobs.database import Transaction
    from service.jobs.documents import Row

__all__ = ["LIVE", "ItemState", "count_states", "exists", "follow", "may_run", "num_live"]


class ItemState(StrEnum):
    """Where an item stands: that of its newest job, or before and instead of a job."""

    INVALID = "invalid"
    """Never to become a job; `problems` says why."""
    PENDING = "pending"
    """To become a job, or another one after a retry, when there is room in the queue."""
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"


LIVE: Final = (ItemState.QUEUED.value, ItemState.RUNNING.value)
"""The states in which an item has a job that has not ended."""


def follow(tx: Transaction, row: Row, to: JobState) -> None:
    """Bring the item of a locked job along to the job's new state; an older try of its item is not heard."""
    if row.batch_id is None:
        return
    state = ItemState.RUNNING if to is JobState.CANCELING else ItemState(to.value)
    columns = tables.batch_items.c
    tx.execute(
        sa.update(tables.batch_items)
        .where(
            columns.batch_id == row.batch_id,
            columns.number == row.batch_number,
            columns.job_id == row.id,
        )
        .values(state=state.value)
    )


def may_run(columns: Any) -> sa.ColumnElement[bool]:
    """Say, as a condition on columns of `jobs`, that a job's batch is not paused: claim and deadlines heed it.

    `max_parallel` needs no condition, since no more children than that are in the queue or run at any time.
    """
    condition: sa.ColumnElement[bool] = columns.held.is_(False)
    return condition


def count_states(tx: Transaction, batch_id: str) -> dict[str, int]:
    """Count a batch's items by state: `total` and every state, zeros included."""
    columns = tables.batch_items.c
    found = tx.execute(
        sa.select(columns.state, sa.func.count()).where(columns.batch_id == batch_id).group_by(columns.state)
    )
    by_state = {row[0]: int(row[1]) for row in found}
    counts = {"total": sum(by_state.values())}
    return counts | {state.value: by_state.get(state.value, 0) for state in ItemState}


def exists(tx: Transaction, batch_id: str, states: Collection[str]) -> bool:
    """Tell whether any item is in one of the states."""
    columns = tables.batch_items.c
    query = sa.select(columns.number).where(columns.batch_id == batch_id, columns.state.in_(states)).limit(1)
    return tx.execute(query).first() is not None


def num_live(tx: Transaction, batch_id: str) -> int:
    """Count the items whose jobs are queued or run."""
    columns = tables.batch_items.c
    query = sa.select(sa.func.count()).where(columns.batch_id == batch_id, columns.state.in_(LIVE))
    return int(tx.execute(query).scalar_one())
