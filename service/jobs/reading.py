"""Reading jobs: one, or a page of them, as the API's documents."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from service.jobs import series, tables
from service.jobs.documents import artifact_document, job_document, queue_document
from service.jobs.fleet import pace
from service.jobs.states import JobState

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from service.jobs.database import Transaction
    from service.jobs.documents import Document, Row

__all__ = ["artifact", "artifacts", "get", "list_jobs"]


def get(tx: Transaction, job_id: str) -> Document | None:
    """Build one job's document; None when it never existed."""
    rows = tx.execute(sa.select(tables.jobs).where(tables.jobs.c.id == job_id)).all()
    return next(iter(_documents(tx, rows)), None)


def list_jobs(
    tx: Transaction,
    status: JobState | None,
    method: str | None,
    metadata: Mapping[str, str],
    limit: int,
    cursor: str | None,
) -> tuple[list[Document], str | None]:
    """Build a page of documents, newest first; the cursor is the last id of the page before."""
    columns = tables.jobs.c
    query = sa.select(tables.jobs).order_by(columns.id.desc()).limit(limit + 1)
    if status is not None:
        query = query.where(columns.state == status.value)
    if method is not None:
        query = query.where(columns.method == method)
    for key, value in metadata.items():
        query = query.where(columns.spec["metadata", key].as_string() == value)
    if cursor is not None:
        query = query.where(columns.id < cursor)
    rows = tx.execute(query).all()
    page = rows[:limit]
    return _documents(tx, page), page[-1].id if len(rows) > limit else None


def artifacts(tx: Transaction, job_id: str) -> list[Document]:
    """List a job's artifacts in the order of their publication."""
    return [artifact_document(row) for row in _children(tx, tables.artifacts, "number", [job_id])[job_id]]


def artifact(tx: Transaction, artifact_id: str) -> tuple[Document, str] | None:
    """Describe one artifact and name its object."""
    table = tables.artifacts
    row = tx.execute(sa.select(table).where(table.c.id == artifact_id)).one_or_none()
    return None if row is None else (artifact_document(row), row.key)


def _documents(tx: Transaction, rows: Sequence[Row]) -> list[Document]:
    ids = [row.id for row in rows]
    attempts = _children(tx, tables.attempts, "number", ids)
    made = _children(tx, tables.artifacts, "number", ids)
    scores = series.read(tx, ids)
    queues = _queues(tx, [row for row in rows if row.state == JobState.QUEUED])
    return [
        job_document(row, attempts[row.id], made[row.id], queues.get(row.id))
        | {"score_series": scores[row.id]}
        for row in rows
    ]


def _children(tx: Transaction, table: sa.Table, order: str, ids: list[str]) -> defaultdict[str, list[Any]]:
    """Read the rows that belong to some jobs, in order, by job."""
    by_job: defaultdict[str, list[Any]] = defaultdict(list)
    for row in tx.execute(sa.select(table).where(table.c.job_id.in_(ids)).order_by(table.c[order])):
        by_job[row.job_id].append(row)
    return by_job


def _queues(tx: Transaction, rows: Sequence[Row]) -> dict[str, Document]:
    """Find the places of queued jobs in the queue."""
    if not rows:
        return {}
    moving = pace(tx)
    return {row.id: queue_document(row, 1 + _num_ahead(tx, row), moving, tx.now) for row in rows}


def _num_ahead(tx: Transaction, row: Row) -> int:
    columns = tables.jobs.c
    goes_first = (columns.priority < row.priority) | (
        (columns.priority == row.priority) & (columns.id < row.id)
    )
    query = sa.select(sa.func.count()).select_from(tables.jobs)
    return int(tx.execute(query.where(columns.state == JobState.QUEUED.value, goes_first)).scalar_one())
