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
        place = {"mine": owner, "turn": max(row.turn_at for row in mine), "most": MAX_PLACE}
        if len(mine) == 1:  # counting costs a sixth of numbering
            before = tx.execute(_before(), {**place, "id": mine[0].id}).scalar_one()
            if before < MAX_PLACE and not mine[0].held:
                ranks[mine[0].id] = before
        else:
            numbers = tx.execute(_numbered(), {**place, "wanted": [row.id for row in mine]})
            ranks |= {job_id: number - 1 for job_id, number in numbers}
    return ranks


@cache
def _before() -> sa.Select[Any]:
    """Count the jobs of an owner that go before one of them, up to `most`."""
    jobs = tables.jobs.c
    here = sa.tuple_(sa.bindparam("turn"), sa.bindparam("id"))
    before = sa.tuple_(jobs.turn_at, jobs.id) < here
    line = sa.select(jobs.id).where(*claimable(tables.jobs), jobs.owner == sa.bindparam("mine"), before)
    return sa.select(sa.func.count()).select_from(line.limit(sa.bindparam("most")).subquery())


@cache
def _numbered() -> sa.Select[Any]:
    """Number the first jobs of an owner in the order of their turns, and select those that are wanted."""
    jobs = tables.jobs.c
    turn = (jobs.turn_at, jobs.id)
    line = (
        sa.select(jobs.id, sa.func.row_number().over(order_by=turn).label("rank"))
        .where(
            *claimable(tables.jobs), jobs.owner == sa.bindparam("mine"), jobs.turn_at <= sa.bindparam("turn")
        )
        .order_by(*turn)
        .limit(sa.bindparam("most"))
        .subquery()
    )
    return sa.select(line).where(line.c.id.in_(sa.bindparam("wanted", expanding=True)))


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
