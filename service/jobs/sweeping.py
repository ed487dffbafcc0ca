"""Keeping the object store clean: what has expired, what belongs to erased jobs, what no row will ever name.

Any number of processes may sweep at once, beside workers that upload. An object that no row names is deleted only
when no attempt can name it any more: the fence that refuses the late write of an old attempt proves that.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import sqlalchemy as sa

from service.jobs import tables
from service.jobs.erasing import Eraser
from service.jobs.objects import attempt_of
from service.jobs.states import ACTIVE, JobState

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from service.jobs.database import Database, Transaction
    from service.jobs.objects import ObjectStore

__all__ = ["GRACE_S", "SWEEP_EVERY_S", "Strays", "Sweeper", "in_batches", "sort_out"]

GRACE_S = 3_600.0
"""An expired artifact, or an orphan, is kept for so long: a download from a presigned URL (at most 15 minutes), and
whoever looks at a store by hand, are not cut off."""
SWEEP_EVERY_S = 60.0
_LIST_EVERY_S = 6 * 3_600.0
"""Listing a whole bucket costs a request per thousand objects."""
_BATCH = 500


@dataclass(frozen=True, slots=True)
class Strays:
    """Keys that no row names."""

    orphans: list[str]
    """Of attempts that have ended without them, of erased jobs: nothing can ever name them."""
    unknown: list[str]
    """Of jobs that this database has never known: perhaps another service's."""


class Sweeper:
    """Sweeps one object store by the rows of one database."""

    def __init__(self, database: Database, objects: ObjectStore, grace_s: float = GRACE_S) -> None:
        self._database = database
        self._objects = objects
        self._grace_s = grace_s
        self._eraser = Eraser(database, objects)

    def sweep(self) -> None:
        """Do what is due, unless another process does it."""
        if self._my_turn("sweep expired", SWEEP_EVERY_S):
            self.finish_erasures()
            self.remove_expired()
        if self._my_turn("sweep orphans", _LIST_EVERY_S):
            self.remove_orphans()
            self._objects.discard_unfinished(self._grace_s)

    def finish_erasures(self) -> int:
        """Delete the objects of erased jobs whose erasure was interrupted; of how many jobs."""
        erased = self._eraser.unfinished()
        for job_id in erased:
            self._eraser.delete_objects(job_id)
        return len(erased)

    def remove_expired(self) -> int:
        """Delete the objects of artifacts that have expired; how many."""
        columns = tables.artifacts.c
        num_removed = 0
        while True:
            with self._database.reading() as tx:
                due = columns.removed_at.is_(None) & (columns.expires_at <= tx.now - self._grace_s)
                query = sa.select(columns.id, columns.key).where(due).order_by(columns.expires_at)
                rows = tx.execute(query.limit(_BATCH)).all()
            if not rows:
                return num_removed
            for row in rows:
                self._objects.delete(row.key)
            with self._database.writing() as tx:
                gone = columns.id.in_([row.id for row in rows])
                tx.execute(sa.update(tables.artifacts).where(gone).values(removed_at=tx.now))
            num_removed += len(rows)

    def remove_orphans(self) -> int:
        """Delete the objects that nothing can ever name; how many."""
        num_removed = 0
        old = (found.key for found in self._objects.list() if found.age_s > self._grace_s)
        for keys in in_batches(old):
            # The rows are read after the listing: an attempt that has ended by now will never name anything.
            with self._database.reading() as tx:
                orphans = sort_out(tx, keys).orphans
            for key in orphans:
                self._objects.delete(key)
            num_removed += len(orphans)
        return num_removed

    def _my_turn(self, name: str, every_s: float) -> bool:
        columns = tables.turns.c
        with self._database.writing() as tx:
            query = sa.select(columns.next_at).where(columns.name == name).with_for_update()
            next_at = tx.execute(query).scalar_one_or_none()
            if next_at is not None and next_at > tx.now:
                return False
            tx.upsert(tables.turns, "name", {"name": name, "next_at": tx.now + every_s})
            return True


def in_batches(keys: Iterable[str]) -> Iterator[list[str]]:
    """Cut a long listing into parts that one query can hold."""
    rest = iter(keys)
    while batch := list(islice(rest, _BATCH)):
        yield batch


def sort_out(tx: Transaction, keys: Sequence[str]) -> Strays:
    """Find the keys that no row names, and of these the ones that none will name; foreign ones are passed over."""
    written_by = {key: writer for key in keys if (writer := attempt_of(key)) is not None}
    ids = sorted({job_id for job_id, _ in written_by.values()})
    jobs = tables.jobs.c
    rows = tx.execute(sa.select(jobs.id, jobs.state, jobs.attempt).where(jobs.id.in_(ids)))
    known = {row.id: (JobState(row.state), row.attempt) for row in rows}
    stones = tables.erased_jobs.c.id
    erased = set(tx.execute(sa.select(stones).where(stones.in_(ids))).scalars())
    named = _named(tx, list(written_by))
    strays = Strays([], [])
    for key, (job_id, attempt) in written_by.items():
        if key in named:
            continue
        if job_id in known:
            state, newest = known[job_id]
            if state not in ACTIVE or attempt < newest:
                strays.orphans.append(key)
        elif job_id in erased:
            strays.orphans.append(key)
        else:
            strays.unknown.append(key)
    return strays


def _named(tx: Transaction, keys: list[str]) -> set[str]:
    """Find the keys that a row needs: checkpoints, and artifacts whose object was not removed."""
    kept, made = tables.checkpoints.c, tables.artifacts.c
    found = set(tx.execute(sa.select(kept.key).where(kept.key.in_(keys))).scalars())
    there = made.key.in_(keys) & made.removed_at.is_(None)
    return found | set(tx.execute(sa.select(made.key).where(there)).scalars())
