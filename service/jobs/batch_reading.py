"""Batches and their results as the API's documents."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import sqlalchemy as sa

from service.jobs import tables
from service.jobs.batch_items import ItemState, count_states
from service.jobs.batch_progress import ENDED, HIDDEN, find
from service.jobs.documents import artifact_document, choice_of, foremost, kept_only, rfc3339

if TYPE_CHECKING:
    from collections.abc import Sequence

    from service.jobs.database import Transaction
    from service.jobs.documents import Document, Row

__all__ = ["get", "list_batches", "results"]


def get(tx: Transaction, batch_id: str, owner: str | None) -> Document | None:
    """Build one batch's document; None if it does not exist for `owner`."""
    row = find(tx, batch_id, owner)
    return None if row is None else _document(tx, row)


def list_batches(
    tx: Transaction, owner: str | None, limit: int, cursor: str | None
) -> tuple[list[Document], str | None]:
    """Build a page of documents, newest first, and the cursor of the next page."""
    columns = tables.batches.c
    query = sa.select(tables.batches).where(columns.state.not_in(HIDDEN))
    if owner is not None:
        query = query.where(columns.owner == owner)
    if cursor is not None:
        query = query.where(columns.id < cursor)
    rows = tx.execute(query.order_by(columns.id.desc()).limit(limit + 1)).all()
    page = rows[:limit]
    return [_document(tx, row) for row in page], page[-1].id if len(rows) > limit else None


def _document(tx: Transaction, row: Row) -> Document:
    """Build a batch's document. An ended one has its counts in its row: nothing changes them any more."""
    return {
        "id": row.id,
        "status": row.state,
        "created_at": rfc3339(row.created_at),
        "ended_at": None if row.ended_at is None else rfc3339(row.ended_at),
        "counts": row.counts if row.state in ENDED else count_states(tx, row.id),
        "max_parallel": row.max_parallel,
        "defaults": row.defaults,
        "sweep": row.sweep,
        "metadata": row.metadata,
        "problems": row.problems,
    }


def results(
    tx: Transaction, batch_id: str, after: int, limit: int, state: ItemState | None
) -> tuple[list[Document], int | None]:
    """Build a page of items in order, those with a number > `after`, and the last number if more follow."""
    columns = tables.batch_items.c
    query = sa.select(tables.batch_items).where(columns.batch_id == batch_id, columns.number > after)
    if state is not None:
        query = query.where(columns.state == state.value)
    rows = tx.execute(query.order_by(columns.number).limit(limit + 1)).all()
    page = rows[:limit]
    jobs, files = _jobs(tx, [row.job_id for row in page if _has_job(row)])
    documents = [_result(row, jobs.get(row.job_id), files[row.job_id]) for row in page]
    return documents, page[-1].number if len(rows) > limit else None


def _has_job(row: Row) -> bool:
    """Tell whether the item's job is its newest try; after a retry it is the one before, until there is another."""
    return row.job_id is not None and row.state != ItemState.PENDING


def _jobs(tx: Transaction, ids: Sequence[str]) -> tuple[dict[str, Row], defaultdict[str, list[Row]]]:
    """Read the results of some jobs and their artifacts, by job."""
    jobs, made = tables.jobs.c, tables.artifacts.c
    rows = tx.execute(
        sa.select(jobs.id, jobs.result, jobs.choice, jobs.error, jobs.retry_of).where(jobs.id.in_(ids))
    )
    files: defaultdict[str, list[Row]] = defaultdict(list)
    for row in tx.execute(
        sa.select(tables.artifacts).where(made.job_id.in_(ids)).order_by(made.job_id, made.number)
    ):
        files[row.job_id].append(row)
    return {row.id: row for row in rows}, files


def _result(item: Row, job: Row | None, files: list[Row]) -> Document:
    """Tell what became of one item; `job_id` is null as long as it has none, or when that was erased."""
    best = (foremost(job) if job else None) or {}
    kept = kept_only(files, choice_of(job)) if job else []
    return {
        "number": item.number,
        "line": item.line,
        "custom_id": item.custom_id,
        "sweep": item.sweep,
        "status": item.state,
        "job_id": job.id if job else None,
        "retry_of": job.retry_of if job else None,
        "scores": best.get("scores"),
        "referee": best.get("referee"),
        "artifacts": [artifact_document(row) for row in kept],
        "error": job.error if job else None,
        "problems": item.problems,
    }
