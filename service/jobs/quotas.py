"""What may still be queued: the operator's bound on the queue, and the quotas of each owner."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from service.jobs import tables
from service.jobs.database import DAY_S
from service.jobs.errors import QueueFull, QuotaExceeded
from service.jobs.states import JobState

if TYPE_CHECKING:
    from service.jobs.database import Transaction

__all__ = ["Allowance"]


class Allowance:
    """Counts what one transaction queues against every bound; each is read once.

    On PostgreSQL a few transactions at the very same moment may get past a bound together.
    """

    def __init__(self, tx: Transaction, max_queued: int | None = None) -> None:
        """`max_queued`: the operator's bound on queued jobs; None: not looked at."""
        self._tx = tx
        self._max_queued = max_queued
        self._num_queued = 0 if max_queued is None else _num_queued(tx)
        self._owners: dict[str, _OwnersQuota] = {}

    def take(self, owner: str) -> None:
        """Count one more job of an owner; raise `QuotaExceeded` or `QueueFull` where it may not be queued."""
        if owner not in self._owners:
            self._owners[owner] = _OwnersQuota(self._tx, owner)
        mine = self._owners[owner]
        mine.check()
        if self._max_queued is not None and self._num_queued >= self._max_queued:
            raise QueueFull(self._num_queued, self._max_queued)
        self._num_queued += 1
        mine.num_queued += 1


class _OwnersQuota:
    """The quotas of one owner, and what it has of them."""

    def __init__(self, tx: Transaction, owner: str) -> None:
        self._owner, self._now = owner, tx.now
        self._limits = tx.execute(_limits(), {"mine": owner}).one_or_none()
        self.num_queued, self._used_s = 0, 0.0
        if self._limits is not None and self._limits.max_queued is not None:
            self.num_queued = _num_queued(tx, owner)
        if self._limits is not None and self._limits.max_worker_s_per_day is not None:
            self._used_s = _used_today(tx, owner)

    def check(self) -> None:
        """Raise `QuotaExceeded` if the owner may not queue another job."""
        limits = self._limits
        if limits is None:
            return
        if limits.max_queued is not None and self.num_queued >= limits.max_queued:
            raise QuotaExceeded(
                f"{self._owner} has {self.num_queued} jobs queued, and its quota is {limits.max_queued}; "
                "come back when some have run"
            )
        if limits.max_worker_s_per_day is not None and self._used_s >= limits.max_worker_s_per_day:
            raise QuotaExceeded(
                f"jobs of {self._owner} have held workers for {self._used_s:.0f} s today, and its quota is "
                f"{limits.max_worker_s_per_day:g} s a day; come back after midnight UTC",
                retry_after_s=int(DAY_S - self._now % DAY_S) + 1,
            )


def _num_queued(tx: Transaction, owner: str | None = None) -> int:
    """Count the queued jobs, those held back too: of all owners, or of one."""
    if owner is None:
        return int(tx.execute(_all_queued()).scalar_one())
    # Both values of `held` are named so that the index of the queue can be used.
    mine = tables.jobs.c.held.in_([False, True]), tables.jobs.c.owner == owner
    return int(tx.execute(_all_queued().where(*mine)).scalar_one())


@cache
def _all_queued() -> sa.Select[Any]:
    queued = tables.jobs.c.state == JobState.QUEUED.value
    return sa.select(sa.func.count()).select_from(tables.jobs).where(queued)


@cache
def _limits() -> sa.Select[Any]:
    return sa.select(tables.owners).where(tables.owners.c.owner == sa.bindparam("mine"))


def _used_today(tx: Transaction, owner: str) -> float:
    """Sum the worker seconds that an owner's jobs have held since midnight UTC."""
    columns = tables.usage.c
    today = columns.owner == owner, columns.day == int(tx.now // DAY_S)
    used: float | None = tx.execute(sa.select(columns.worker_s).where(*today)).scalar_one_or_none()
    return used or 0.0
