"""Where queued jobs stand: an estimate of `queue.position`, and which owners their quota holds back.

Within an owner the place is exact. Between owners it is what `shares.py` would do next if every job took as long as
recent ones did, nobody came or went, and no quota were reached: so it is right for the next claim, and for any
number of jobs of one owner, and drifts from there. Counting reads the index of the queue, once for a whole page.
"""

from __future__ import annotations

import math
from collections import defaultdict
from typing import TYPE_CHECKING, NamedTuple

import sqlalchemy as sa

from service.jobs import shares, tables
from service.jobs.shares import RUNNING_S, Share, claimable

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from service.jobs.database import Transaction
    from service.jobs.documents import Row

__all__ = ["Place", "find_places"]


class Place(NamedTuple):
    """Where one queued job stands."""

    position: int
    """1 is next."""
    over_quota: bool
    """Whether its owner's quota lets no further job run now."""


def find_places(tx: Transaction, rows: Sequence[Row], job_s: float | None) -> dict[str, Place]:
    """Find the places of some queued jobs, by id; `job_s`: how long a job takes, None when nobody knows."""
    if not rows:
        return {}
    present = {share.owner: share for share in shares.waiting(tx)}
    num_queued = _num_queued(tx)
    ranks = _ranks(tx, rows)
    places = {}
    for row in rows:
        # An owner all of whose queued jobs are held back stands where `shares.enter` would put it.
        floor = min((share.served_s for share in present.values()), default=0.0)
        mine = present.get(row.owner) or Share(row.owner, floor, 1.0, None, row.turn_at, 0)
        others = (
            _served_before(mine, ranks[row.id], other, num_queued[other.owner], job_s or RUNNING_S)
            for other in present.values()
            if other.owner != row.owner
        )
        places[row.id] = Place(1 + ranks[row.id] + sum(others), mine.exhausted)
    return places


def _served_before(mine: Share, rank: int, other: Share, num_queued: int, job_s: float) -> int:
    """Count the jobs of another owner that start before job number `rank` (from 0) of mine.

    Its k-th job does when clock + k · job_s / weight is less than mine is then: c + rank · job_s / w.
    """
    if other.exhausted:
        return 0
    then = mine.clock + rank * job_s / mine.weight
    turns = (then - other.clock) * other.weight / job_s
    on_ties = shares.in_order([mine, other])[0] is other and mine.clock == other.clock
    ahead = math.floor(turns) + 1 if on_ties else math.ceil(turns)
    return max(0, min(num_queued, ahead))


def _num_queued(tx: Transaction) -> dict[str, int]:
    owner = tables.jobs.c.owner
    query = sa.select(owner, sa.func.count()).where(*claimable(tables.jobs)).group_by(owner)
    return {row[0]: row[1] for row in tx.execute(query)}


def _ranks(tx: Transaction, rows: Iterable[Row]) -> dict[str, int]:
    """Count, for each job, those of its owner that go first; from one to the next, so that none is counted twice."""
    by_owner: defaultdict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_owner[row.owner].append(row)
    jobs = tables.jobs.c
    turn = sa.tuple_(jobs.turn_at, jobs.id)
    ranks = {}
    for owner, mine in by_owner.items():
        query = sa.select(sa.func.count()).where(*claimable(tables.jobs), jobs.owner == owner)
        rank = 0
        since: sa.ColumnElement[bool] = sa.true()
        for row in sorted(mine, key=lambda one: (one.turn_at, one.id)):
            here = sa.tuple_(sa.literal(row.turn_at), sa.literal(row.id))
            rank += tx.execute(query.where(since, turn < here)).scalar_one()
            ranks[row.id], since = rank, turn >= here
    return ranks
