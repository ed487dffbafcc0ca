"""Where queued jobs stand: an estimate of `queue.position`, and which owners their quota holds back.

Within an owner the place is exact. Between owners it is what `shares.py` would do next if every job took as long as
recent ones did, nobody came or went, and no quota were reached: so it is right for the next claim, and for any
number of jobs of one owner, and drifts from there. Nobody is told a place beyond `MAX_PLACE`: counting steps through
the index of the queue, and looking at a job must not take longer the longer the queue is.
"""

from __future__ import annotations

import math
from collections import defaultdict
from functools import cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import sqlalchemy as sa

from service.jobs import shares, tables
from service.jobs.shares import RUNNING_S, Share, claimable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from service.jobs.database import Transaction
    from service.jobs.documents import Row

__all__ = ["MAX_PLACE", "Place", "find_places"]

MAX_PLACE: Final = 1_000
"""Hours of work for most fleets: how many hours exactly, nobody can tell anyway."""


class Place(NamedTuple):
    """Where one queued job stands."""

    position: int | None
    """1 is next; None: further back than `MAX_PLACE`, or not in the line because its batch is paused."""
    over_quota: bool
    """Whether its owner's quota lets no further job run now."""


def find_places(tx: Transaction, rows: Sequence[Row], job_s: float | None) -> dict[str, Place]:
    """Find the places of some queued jobs, by id; `job_s`: how long a job takes, None when nobody knows."""
    if not rows:
        return {}
    present = {share.owner: share for share in shares.waiting(tx)}
    ranks = _ranks(tx, rows)
    ahead = {
        row.id: {
            other.owner: _served_before(present[row.owner], ranks[row.id], other, job_s or RUNNING_S)
            for other in present.values()
            if other.owner != row.owner
        }
        for row in rows
        if row.id in ranks and row.owner in present
    }
    # More than what is left to `MAX_PLACE` need not be told apart.
    wanted = (
        min(max(turns.values(), default=0), MAX_PLACE - ranks[job_id]) for job_id, turns in ahead.items()
    )
    lengths = _lengths(tx, max(wanted, default=0))
    places = {}
    for row in rows:
        position = None
        if row.id in ahead:
            others = sum(min(lengths.get(owner, 0), turns) for owner, turns in ahead[row.id].items())
            position = 1 + ranks[row.id] + others
        over_quota = row.owner in present and present[row.owner].exhausted
        places[row.id] = Place(position if position and position <= MAX_PLACE else None, over_quota)
    return places


def _served_before(mine: Share, rank: int, other: Share, job_s: float) -> int:
    """Count the turns that another owner has before job number `rank` (from 0) of mine starts.

    Its k-th job starts when clock + k · job_s / weight is less than mine is then: c + rank · job_s / w.
    """
    if other.exhausted:
        return 0
    then = mine.clock + rank * job_s / mine.weight
    turns = (then - other.clock) * other.weight / job_s
    on_ties = shares.in_order([mine, other])[0] is other and mine.clock == other.clock
    return max(0, math.floor(turns) + 1 if on_ties else math.ceil(turns))


def _ranks(tx: Transaction, rows: Sequence[Row]) -> dict[str, int]:
    """Count, for each job, those of its owner that go first; jobs with `MAX_PLACE` or more before them are left out."""
    by_owner: defaultdict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_owner[row.owner].append(row)
    ranks: dict[str, int] = {}
    for owner, mine in by_owner.items():
        mine.sort(key=lambda row: (row.turn_at, row.id))
        first = {"mine": owner, "turn": mine[0].turn_at, "id": mine[0].id}
        # Counting is cheaper than numbering, and jobs that are looked at together mostly stand together.
        before = tx.execute(_before(), {**first, "most": MAX_PLACE}).scalar_one()
        rest = {"last_turn": mine[-1].turn_at, "most": MAX_PLACE - before}
        wanted = {row.id for row in mine}
        line = enumerate(tx.execute(_from_there(), first | rest).scalars(), before)
        ranks |= {job_id: rank for rank, job_id in line if job_id in wanted}
    return ranks


@cache
def _before() -> sa.Select[Any]:
    """Count the jobs of an owner that go before one of them, up to `most`."""
    line = sa.select(tables.jobs.c.id).where(*_mine(), _turn() < _here())
    return sa.select(sa.func.count()).select_from(line.limit(sa.bindparam("most")).subquery())


@cache
def _from_there() -> sa.Select[Any]:
    """Select the jobs of an owner from one of them on, in the order of their turns, up to `most`."""
    jobs = tables.jobs.c
    line = sa.select(jobs.id).where(*_mine(), _turn() >= _here(), jobs.turn_at <= sa.bindparam("last_turn"))
    return line.order_by(jobs.turn_at, jobs.id).limit(sa.bindparam("most"))


def _mine() -> list[sa.ColumnElement[bool]]:
    return [*claimable(tables.jobs), tables.jobs.c.owner == sa.bindparam("mine")]


def _turn() -> sa.Tuple:
    return sa.tuple_(tables.jobs.c.turn_at, tables.jobs.c.id)


def _here() -> sa.Tuple:
    return sa.tuple_(sa.bindparam("turn"), sa.bindparam("id"))


def _lengths(tx: Transaction, most: int) -> dict[str, int]:
    """Count the jobs of each owner in the line, up to `most`."""
    if not most:
        return {}
    return {row[0]: row[1] for row in tx.execute(_counted(), {"most": min(most, MAX_PLACE)})}


@cache
def _counted() -> sa.Select[Any]:
    names = shares.owners_in_line()
    jobs = tables.jobs
    mine = sa.select(sa.literal(1)).where(*claimable(jobs), jobs.c.owner == names.c.owner)
    bounded = mine.limit(sa.bindparam("most")).correlate(names).subquery()
    count = sa.select(sa.func.count()).select_from(bounded).scalar_subquery()
    return sa.select(names.c.owner, count).where(names.c.owner.is_not(None))
