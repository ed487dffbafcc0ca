"""Reading jobs: one, or a page of them, as the API's documents."""

from __future__ import annotations

from collections import defaultdict
from functools import cache
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from service.jobs import series, tables
from service.jobs.documents import artifact_document, best_first, choice_of, job_document, queue_document
from service.jobs.fleet import pace
from service.jobs.places import find_places
from service.jobs.states import JobState

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from service.jobs.database import Transaction
    from service.jobs.documents import Document, Row

__all__ = ["artifact", "artifacts", "exists", "get", "get_many", "list_jobs"]


def get(tx: Transaction, job_id: str, owner: str | None = None) -> Document | None:
    """Build one job's document; None when it never existed, or is another's than `owner`."""
    rows = tx.execute(_by_id(), {"ids": [job_id]}).all()
    return next(iter(_documents(tx, [row for row in rows if owner in (None, row.owner)])), None)


def get_many(tx: Transaction, job_ids: Collection[str]) -> dict[str, Document]:
    """Build the documents of some jobs, by id."""
    rows = tx.execute(_by_id(), {"ids": sorted(job_ids)}).all()
    return {document["id"]: document for document in _documents(tx, rows)}


@cache
def _by_id() -> sa.Select[Any]:
    return sa.select(tables.jobs).where(tables.jobs.c.id.in_(sa.bindparam("ids", expanding=True)))


def exists(tx: Transaction, job_id: str, owner: str | None = None) -> bool:
    """Tell whether there is such a job, and `owner` may see it."""
    query = sa.select(tables.jobs.c.id).where(tables.jobs.c.id == job_id, *_of(owner))
    return tx.execute(query).one_or_none() is not None


def _of(owner: str | None) -> list[sa.ColumnElement[bool]]:
    """Keep to the jobs of one owner; None: those of all, for operators and workers."""
    return [] if owner is None else [tables.jobs.c.owner == owner]


def list_jobs(
    tx: Transaction,
    owner: str | None,
    status: JobState | None,
    batch_id: str | None,
    method: str | None,
    metadata: Mapping[str, str],
    limit: int,
    cursor: str | None,
) -> tuple[list[Document], str | None]:
    """Build a page of documents, newest first; the cursor is the last id of the page before."""
    columns = tables.jobs.c
    query = sa.select(tables.jobs).where(*_of(owner)).order_by(columns.id.desc()).limit(limit + 1)
    if status is not None:
        query = query.where(columns.state == status.value)
    if batch_id is not None:
        query = query.where(columns.batch_id == batch_id)
    if method is not None:
        query = query.where(columns.method == method)
    for key, value in metadata.items():
        query = query.where(columns.spec["metadata", key].as_string() == value)
    if cursor is not None:
        query = query.where(columns.id < cursor)
    rows = tx.execute(query).all()
    page = rows[:limit]
    return _documents(tx, page), page[-1].id if len(rows) > limit else None


def artifacts(tx: Transaction, job_id: str, owner: str | None = None) -> list[Document]:
    """List a job's artifacts, those of the candidate that is kept foremost first; none of another's than `owner`."""
    query = sa.select(tables.jobs).where(tables.jobs.c.id == job_id, *_of(owner))
    job = tx.execute(query).one_or_none()
    if job is None:
        return []
    made = _children(tx, tables.artifacts, "number", [job_id])[job_id]
    return [artifact_document(row) for row in best_first(made, choice_of(job))]


def artifact(tx: Transaction, artifact_id: str, owner: str | None = None) -> tuple[Document, str] | None:
    """Describe one artifact and name its object; None when it never existed, or is another's than `owner`."""
    table = tables.artifacts
    query = sa.select(table).join(tables.jobs).where(table.c.id == artifact_id, *_of(owner))
    row = tx.execute(query).one_or_none()
    return None if row is None else (artifact_document(row), row.key)


def _documents(tx: Transaction, rows: Sequence[Row]) -> list[Document]:
    tried = [row.id for row in rows if row.attempt]  # the others have nothing yet
    attempts = _children(tx, tables.attempts, "number", tried)
    made = _children(tx, tables.artifacts, "number", tried)
    scores = series.read(tx, tried)
    queues = _queues(tx, [row for row in rows if row.state == JobState.QUEUED])
    return [
        job_document(row, attempts[row.id], made[row.id], queues.get(row.id))
        | {"score_series": scores[row.id]}
        for row in rows
    ]


def _children(tx: Transaction, table: sa.Table, order: str, ids: list[str]) -> defaultdict[str, list[Any]]:
    """Read the rows that belong to some jobs, in order, by job."""
    by_job: defaultdict[str, list[Any]] = defaultdict(list)
    if ids:
        for row in tx.execute(_of_jobs(table, order), {"ids": ids}):
            by_job[row.job_id].append(row)
    return by_job


@cache
def _of_jobs(table: sa.Table, order: str) -> sa.Select[Any]:
    wanted = table.c.job_id.in_(sa.bindparam("ids", expanding=True))
    return sa.select(table).where(wanted).order_by(table.c[order])


def _queues(tx: Transaction, rows: Sequence[Row]) -> dict[str, Document]:
    """Find the places of queued jobs in the queue."""
    if not rows:
        return {}
    moving = pace(tx)
    places = find_places(tx, rows, None if moving.run_s is None else sum(moving.run_s) / 2)
    return {row.id: queue_document(row, places[row.id], moving, tx.now) for row in rows}
