"""Who of several processes may act: a lease on a name, measured by the database's clock.

Ray restarts a pool's scaler, and while a cluster is being replaced there are two: this lets one of them act at a
time, wherever they run, and another one soon after it fell silent.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import sqlalchemy as sa

from service.jobs import tables

if TYPE_CHECKING:
    from collections.abc import Callable

    from service.jobs.database import Database

__all__ = ["LEADER_LEASE_S", "Leadership"]

LEADER_LEASE_S: Final = 15.0
_MARGIN, _RENEW = 0.8, 0.3
"""Shares of a lease: what its holder relies on, as clocks do not run equally fast, and when it renews."""


class Leadership:
    """One candidate for the lease on `name`; `holder` names it and no other process, ever."""

    def __init__(
        self,
        database: Database,
        name: str,
        holder: str,
        *,
        lease_s: float = LEADER_LEASE_S,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._name = name
        self._holder = holder
        self._lease_s = lease_s
        self._monotonic = monotonic
        self._asked_at = float("-inf")
        self._until = float("-inf")

    @property
    def is_held(self) -> bool:
        """Whether nobody else can hold it now; asks no database, so that it can be asked before every act."""
        return self._monotonic() < self._until

    def hold(self) -> bool:
        """Take the lease if it is free, renew it when that is due; whether it is held.

        Raises `StoreUnavailable`; the lease is held until it runs out nevertheless.
        """
        asked_at = self._monotonic()
        if self.is_held and asked_at < self._asked_at + _RENEW * self._lease_s:
            return True
        if self._take():
            # From before the question on: the database has counted from later.
            self._asked_at, self._until = asked_at, asked_at + _MARGIN * self._lease_s
        else:
            self._until = float("-inf")
        return self.is_held

    def give_up(self) -> None:
        """Let another one take it at once. Raises `StoreUnavailable`."""
        self._until = float("-inf")
        leaders = tables.leaders
        mine = (leaders.c.name == self._name) & (leaders.c.holder == self._holder)
        with self._database.writing() as tx:
            tx.execute(sa.delete(leaders).where(mine))

    def _take(self) -> bool:
        leaders = tables.leaders
        with self._database.writing() as tx:
            lease = {"holder": self._holder, "lease_until": tx.now + self._lease_s}
            tx.insert_or_keep(leaders, {"name": self._name, **lease})
            mine_or_free = (leaders.c.holder == self._holder) | (leaders.c.lease_until <= tx.now)
            taken = sa.update(leaders).where(leaders.c.name == self._name, mine_or_free).values(lease)
            return tx.execute(taken).rowcount == 1
