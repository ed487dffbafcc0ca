"""Erasing an ended job: first its rows, for a stone that says what it was; then its objects; then that they are gone.

Whatever happens in between, the stone remembers whose objects are still to be deleted (`sweeping.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa

from service.jobs import tables, webhook_tries
from service.jobs.errors import JobActive
from service.jobs.objects import job_prefix
from service.jobs.states import FINAL, JobState
from service.jobs.transitions import lock

if TYPE_CHECKING:
    from service.jobs.database import Database, Transaction
    from service.jobs.objects import ObjectStore

__all__ = ["Eraser"]

_BATCH = 100


class Eraser:
    """Erases jobs from the database and from the object store."""

    def __init__(self, database: Database, objects: ObjectStore) -> None:
        self._database = database
        self._objects = objects

    def forget(self, job_id: str, owner: str | None = None) -> bool:
        """Erase all rows of an ended job; also true when that was done before, false when it never existed.

        Raises `JobActive`. What it has used, and how it ended, stays in the usage of its owner.
        """
        with self._database.writing() as tx:
            row = lock(tx, job_id, owner)
            if row is None:
                return _was_erased(tx, job_id, owner)
            if JobState(row.state) not in FINAL:
                raise JobActive(job_id, row.state, "erased")
            stone = {"id": row.id, "owner": row.owner, "outcome": row.state, "ended_at": row.ended_at}
            tx.execute(sa.insert(tables.erased_jobs).values(**stone, erased_at=tx.now))
            for table in _children():
                tx.execute(sa.delete(table).where(table.c.job_id == job_id))
            webhook_tries.forget_subject(tx, job_id)
            tx.execute(sa.delete(tables.jobs).where(tables.jobs.c.id == job_id))
            return True

    def delete_objects(self, job_id: str) -> None:
        """Delete all that an erased job has in the object store."""
        for found in self._objects.list(job_prefix(job_id)):
            self._objects.delete(found.key)
        columns = tables.erased_jobs.c
        with self._database.writing() as tx:
            gone = sa.update(tables.erased_jobs).where(columns.id == job_id).values(objects_gone_at=tx.now)
            tx.execute(gone)

    def unfinished(self) -> list[str]:
        """List some erased jobs that may still have objects."""
        columns = tables.erased_jobs.c
        query = sa.select(columns.id).where(columns.objects_gone_at.is_(None)).order_by(columns.id)
        with self._database.reading() as tx:
            return list(tx.execute(query.limit(_BATCH)).scalars())


def _was_erased(tx: Transaction, job_id: str, owner: str | None) -> bool:
    columns = tables.erased_jobs.c
    query = sa.select(columns.id).where(columns.id == job_id)
    query = query if owner is None else query.where(columns.owner == owner)
    return tx.execute(query).one_or_none() is not None


def _children() -> list[sa.Table]:
    """List the tables whose rows belong to a job: all that point to it, so that no later one is forgotten."""
    return [
        table
        for table in tables.metadata.sorted_tables
        if "job_id" in table.c and any(key.column.table is tables.jobs for key in table.c.job_id.foreign_keys)
    ]
