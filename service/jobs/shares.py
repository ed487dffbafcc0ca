"""Whose turn it is: fair shares between owners, priorities within each, and quotas on what runs.

**Between owners: start-time fair queueing in worker seconds.** Every owner has a clock, `served_s`, which runs by
the worker seconds its jobs have held, divided by its weight; the next job is one of the owner whose clock is
behind. So owners who always have work get worker seconds in proportion to their weights, however many jobs they
have queued and however long these take (equal turns would favor long jobs). An owner who returns from having
nothing queued has its clock lifted to that of the others: what was used while nobody else wanted it is never paid
back, and nobody saves up idle time to shut others out later; a sliding window of past use would do both. A job
that has just been claimed has consumed nothing yet, so each running one counts as `RUNNING_S` more: it spreads the
claims of many workers, and, being bounded, changes nothing in the long run.

**Within an owner: priority with ageing.** A job's place is `turn_at`, by when its turn should come: at once for
`high`, after a quarter (`AGEING`) of the time to its deadline for `normal`, after half of it for `low`. So a job
gains one priority class whenever it has waited that quarter: half-way to its deadline a `low` one goes before every
`high` one that comes then. (A fixed number of minutes would be long for jobs of a minute and nothing for those of
hours; and of two alike, the one with less time goes first.) Only finitely many jobs can ever go before a given one,
and the order never changes, which lets one index serve it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa

from service.jobs import batch_items, tables
from service.jobs.database import DAY_S
from service.jobs.states import ACTIVE, JobState

if TYPE_CHECKING:
    from service.jobs.database import Transaction
    from service.jobs.spec import JobSpec

__all__ = [
    "AGEING",
    "RUNNING_S",
    "Share",
    "charge",
    "claimable",
    "enter",
    "forgo",
    "has_room",
    "in_order",
    "owners_in_line",
    "turn_at",
    "waiting",
]

AGEING: Final = 0.25
"""Share of the time to its deadline that a job waits for one priority class."""
RUNNING_S: Final = 60.0
"""What a running job counts for beyond the worker seconds it has held: about one job of the embedded default."""
_CLASSES: Final = {"high": 0, "normal": 1, "low": 2}


@dataclass(frozen=True, slots=True)
class Share:
    """One owner with queued jobs."""

    owner: str
    served_s: float
    weight: float
    max_running: int | None
    first_turn_at: float
    """`turn_at` of its next job."""
    running: int
    used_up: bool
    """Whether its jobs have held workers today for as long as its quota lets them."""

    @property
    def clock(self) -> float:
        """What the owner has had, and is having, for its weight."""
        return self.served_s + RUNNING_S * self.running / self.weight

    @property
    def exhausted(self) -> bool:
        """Whether its quota lets no further job run now."""
        return self.used_up or (self.max_running is not None and self.running >= self.max_running)


def turn_at(spec: JobSpec, submitted_at: float) -> float:
    """Compute a job's place among those of its owner: the smallest goes first."""
    return submitted_at + _CLASSES[spec.priority] * AGEING * spec.limits.deadline_s


def in_order(shares: list[Share]) -> list[Share]:
    """Sort owners by whose turn it is; among equals, who has waited longest."""
    return sorted(shares, key=lambda share: (share.clock, share.first_turn_at, share.owner))


def waiting(tx: Transaction) -> list[Share]:
    """Read the owners that have queued jobs, by a few index look-ups for each, however many jobs they have."""
    running = _running(tx)
    return [
        Share(
            row.owner,
            max(row.served_s, tx.lifted_to(row.owner)),
            row.weight,
            row.max_running,
            row.first_turn_at,
            running[row.owner],
            row.max_worker_s_per_day is not None and row.used_s >= row.max_worker_s_per_day,
        )
        for row in tx.execute(_waiting(), {"day": int(tx.now // DAY_S)})
    ]


@cache
def _waiting() -> sa.Select[Any]:
    """Select the owners with queued jobs, and what `Share` tells of them; built once, as every claim asks it."""
    jobs, owners, usage = tables.jobs, tables.owners.c, tables.usage.c
    names = owners_in_line()
    mine = jobs.c.owner == names.c.owner
    first = sa.select(sa.func.min(jobs.c.turn_at)).where(*claimable(jobs), mine).scalar_subquery()
    return (
        sa.select(
            names.c.owner,
            sa.func.coalesce(owners.served_s, 0.0).label("served_s"),
            sa.func.coalesce(owners.weight, 1.0).label("weight"),
            owners.max_running,
            owners.max_worker_s_per_day,
            sa.func.coalesce(usage.worker_s, 0.0).label("used_s"),
            first.label("first_turn_at"),
        )
        .outerjoin_from(names, tables.owners, owners.owner == names.c.owner)
        .outerjoin(tables.usage, sa.and_(usage.owner == names.c.owner, usage.day == sa.bindparam("day")))
        .where(names.c.owner.is_not(None))
    )


def owners_in_line() -> sa.CTE:
    """Name the owners with queued jobs, and null at the end.

    It steps from owner to owner in the index: `SELECT DISTINCT` would read every queued job.
    """
    jobs, later = tables.jobs, tables.jobs.alias()
    names = sa.select(sa.func.min(jobs.c.owner).label("owner")).where(*claimable(jobs)).cte(recursive=True)
    following = sa.select(sa.func.min(later.c.owner)).where(*claimable(later), later.c.owner > names.c.owner)
    return names.union_all(sa.select(following.scalar_subquery()).where(names.c.owner.is_not(None)))


def claimable(jobs: sa.FromClause) -> tuple[sa.ColumnElement[bool], ...]:
    """Select the queued jobs of `jobs` (the table, or an alias of it) that are not held back."""
    return jobs.c.state == JobState.QUEUED.value, batch_items.may_run(jobs.c)


def _running(tx: Transaction) -> Counter[str]:
    """Count the jobs that workers hold, by owner; not in SQL, where SQLite would read all jobs of each owner."""
    return Counter(tx.execute(_owners_of_running()).scalars())


@cache
def _owners_of_running() -> sa.Select[Any]:
    jobs = tables.jobs.c
    return sa.select(jobs.owner).where(jobs.state.in_(sorted(ACTIVE)))


def has_room(tx: Transaction, share: Share) -> bool:
    """Tell whether an owner's quota lets one more job run.

    Where there is a quota, only one claim at a time may ask, so that two do not both take the last place; the
    other one is told no, and the job is taken a moment later.
    """
    if share.max_running is None or share.exhausted:
        return not share.exhausted
    if not tx.try_lock(f"running of {share.owner}"):
        return False
    return _running(tx)[share.owner] < share.max_running


def forgo(tx: Transaction, passed_over: list[Share], served: Share) -> None:
    """Move the clocks of owners on whom their quota holds back: what it forbids is no credit for later."""
    for share in passed_over:
        if share.served_s < served.served_s:
            tx.serve(share.owner, at_least=served.served_s)


def enter(tx: Transaction, owner: str) -> None:
    """Lift the clock of an owner who is about to queue a job and has none queued, to where the others are.

    That is the least of those who have jobs queued or running; when there is none, the furthest of all.
    """
    owners = tables.owners.c
    if tx.execute(_in_line(), {"mine": owner}).one_or_none() is not None:
        return
    present = [share.served_s for share in waiting(tx)]
    present += tx.execute(sa.select(owners.served_s).where(owners.owner.in_(_running(tx)))).scalars()
    floor = min(present) if present else tx.execute(sa.select(sa.func.max(owners.served_s))).scalar_one()
    if floor:
        tx.serve(owner, at_least=floor)


@cache
def _in_line() -> sa.Select[Any]:
    """Select any job of an owner that is in the line."""
    jobs = tables.jobs.c
    return sa.select(jobs.id).where(*claimable(tables.jobs), jobs.owner == sa.bindparam("mine")).limit(1)


def charge(tx: Transaction, owner: str, worker_s: float) -> None:
    """Write down that jobs of an owner have held workers for some more seconds."""
    if worker_s > 0:
        tx.serve(owner, worker_s=worker_s)
