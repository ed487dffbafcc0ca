"""Taking stock: does the object store hold what the rows say, and nothing else? (`dreamserve fsck`)

It may run beside a working service: what looks wrong is looked at once more, since a row may have changed meanwhile.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from service.jobs import tables
from service.jobs.erasing import Eraser
from service.jobs.objects import ObjectInfo, ObjectMissing
from service.jobs.sweeping import GRACE_S, in_batches, sort_out

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from service.jobs.database import Database, Transaction
    from service.jobs.objects import ObjectStore

__all__ = ["Finding", "Inventory", "Trouble", "WrongStore"]

_PAGE = 500


class Trouble(StrEnum):
    """What is wrong with an object."""

    MISSING = "missing"
    """A row names it, and it is not there."""
    DAMAGED = "damaged"
    """It is there with another size or sha256 than its row says."""
    ORPHAN = "orphan"
    """It is there, and no row can ever name it."""
    UNKNOWN = "unknown"
    """It is there, of a job that this database has never known."""
    NOT_ERASED = "not-erased"
    """Its job was erased, and the deletion of its objects was not finished."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong."""

    trouble: Trouble
    key: str
    """The object's; of an erasure, the job's id."""
    table: sa.Table | None
    """Where the row is that names it."""
    detail: str
    remedy: str | None
    """What `repair` does about it; None when that is left to a person."""


class WrongStore(Exception):
    """Nothing that the rows name is in the object store: it is probably not the one of this database."""


class Inventory:
    """Compares the rows of one database with the objects of one store."""

    def __init__(self, database: Database, objects: ObjectStore, grace_s: float = GRACE_S) -> None:
        """`grace_s`: objects younger than this are no orphans yet."""
        self._database = database
        self._objects = objects
        self._grace_s = grace_s
        self._eraser = Eraser(database, objects)
        self.num_sound = 0
        """Objects that `find` has seen to be as their rows say."""

    def find(self, *, quick: bool = False) -> Iterator[Finding]:
        """Look at everything; `quick` believes what the store says of size and sha256 instead of reading the bytes."""
        measure = self._objects.head if quick else self._read
        yield from self._wrong(tables.artifacts, "id", _artifact_is_due, measure)
        yield from self._wrong(tables.checkpoints, "key", _checkpoint_is_due, measure)
        for job_id in self._eraser.unfinished():
            detail = f"{job_id} was erased, but its objects may still be there"
            yield Finding(Trouble.NOT_ERASED, job_id, None, detail, "deletes them")
        yield from self._strays()

    def repair(self, finding: Finding) -> bool:
        """Do what can be done about a finding; whether anything was. Raises `WrongStore`.

        An artifact that is lost or damaged is declared gone (410 instead of a lie), a checkpoint is forgotten, so
        that its job resumes from the one before; orphans are deleted.
        """
        match finding.trouble:
            case Trouble.MISSING | Trouble.DAMAGED:
                if not self.num_sound:
                    raise WrongStore(
                        "nothing that the database names is sound in the object store; check DREAMSERVE_OBJECTS_URL "
                        "and DREAMSERVE_DATABASE_URL: one of them belongs to another service"
                    )
                self._withdraw(finding)
            case Trouble.ORPHAN:
                self._objects.delete(finding.key)
            case Trouble.NOT_ERASED:
                self._eraser.delete_objects(finding.key)
            case Trouble.UNKNOWN:
                return False
        return True

    def _wrong(
        self,
        table: sa.Table,
        order: str,
        is_due: Callable[[Transaction], sa.ColumnElement[bool]],
        measure: Callable[[str], ObjectInfo | None],
    ) -> Iterator[Finding]:
        """Compare each object that the rows of a table name."""
        column, last = table.c[order], ""
        while True:
            with self._database.reading() as tx:
                query = sa.select(table).where(is_due(tx), column > last).order_by(column).limit(_PAGE)
                rows = tx.execute(query).all()
            for row in rows:
                found = measure(row.key)
                if found == ObjectInfo(row.sha256, row.size_bytes):
                    self.num_sound += 1
                elif self._is_still_named(table, row.key, is_due):
                    yield _finding(table, row, found)
            if len(rows) < _PAGE:
                return
            last = getattr(rows[-1], order)

    def _is_still_named(
        self, table: sa.Table, key: str, is_due: Callable[[Transaction], sa.ColumnElement[bool]]
    ) -> bool:
        with self._database.reading() as tx:
            query = sa.select(table.c.key).where(table.c.key == key, is_due(tx)).limit(1)
            return tx.execute(query).one_or_none() is not None

    def _read(self, key: str) -> ObjectInfo | None:
        """Hash what is really there."""
        digest, size_bytes = hashlib.sha256(), 0
        try:
            for chunk in self._objects.open_range(key):
                digest.update(chunk)
                size_bytes += len(chunk)
        except ObjectMissing:
            return None
        return ObjectInfo(digest.hexdigest(), size_bytes)

    def _strays(self) -> Iterator[Finding]:
        old = (found.key for found in self._objects.list() if found.age_s > self._grace_s)
        for keys in in_batches(old):
            with self._database.reading() as tx:
                strays = sort_out(tx, keys)
            for key in strays.orphans:
                yield Finding(Trouble.ORPHAN, key, None, "no row names it, and none will", "deletes it")
            for key in strays.unknown:
                detail = (
                    "its job is not in this database; if no other service uses this store, delete it by hand"
                )
                yield Finding(Trouble.UNKNOWN, key, None, detail, None)

    def _withdraw(self, finding: Finding) -> None:
        """Make the rows stop saying that an object is there; a damaged one is an orphan from then on."""
        table = finding.table
        assert table is not None, "a missing or damaged object is named by a row"
        with self._database.writing() as tx:
            if table is tables.artifacts:
                ended = sa.case((table.c.expires_at > tx.now, tx.now), else_=table.c.expires_at)
                gone = sa.update(table).values(expires_at=ended, removed_at=tx.now)
                tx.execute(gone.where(table.c.key == finding.key))
            else:
                tx.execute(sa.delete(table).where(table.c.key == finding.key))


def _artifact_is_due(tx: Transaction) -> sa.ColumnElement[bool]:
    """Select the artifacts that must be there."""
    columns = tables.artifacts.c
    return columns.removed_at.is_(None) & (columns.expires_at > tx.now)


def _checkpoint_is_due(tx: Transaction) -> sa.ColumnElement[bool]:
    return sa.true()


def _finding(table: sa.Table, row: Any, found: ObjectInfo | None) -> Finding:
    what = "artifact" if table is tables.artifacts else "checkpoint"
    remedy = "declares the artifact gone" if table is tables.artifacts else "forgets the checkpoint"
    named = f"{what} of {row.job_id}"
    if found is None:
        return Finding(Trouble.MISSING, row.key, table, f"{named}: it is not there", remedy)
    detail = (
        f"{named}: found {found.size_bytes} bytes with sha256 {found.sha256}, "
        f"expected {row.size_bytes} with {row.sha256}"
    )
    return Finding(Trouble.DAMAGED, row.key, table, detail, remedy)
