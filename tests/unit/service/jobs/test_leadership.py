"""The leader lease, on both databases: one acts at a time, and a dead one is replaced within the lease."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from service.jobs.database import Database
from service.jobs.errors import StoreUnavailable
from service.jobs.leadership import LEADER_LEASE_S, Leadership
from tests.unit.service.jobs.job_samples import FakeClock

if TYPE_CHECKING:
    from collections.abc import Iterator

    import sqlalchemy as sa


@dataclass
class Candidate:
    """One process: its own clock counts from another moment than the database's, and perhaps at another rate."""

    database: Database
    clock: FakeClock
    name: str
    rate: float = 1.0

    def __post_init__(self) -> None:
        self.lease = Leadership(
            self.database, "pool", self.name, monotonic=lambda: self.rate * self.clock.now
        )


@pytest.fixture
def database(database_url: str, clock: FakeClock) -> Iterator[Database]:
    database = Database(database_url, clock)
    yield database
    database.close()


def test_one_leads_and_another_follows_when_it_fell_silent(database: Database, clock: FakeClock) -> None:
    first, second = (Candidate(database, clock, name).lease for name in ("a", "b"))
    assert first.hold()
    assert not second.hold()
    for _ in range(10):  # it goes on renewing
        clock.advance(5)
        assert first.hold()
        assert not second.hold()
    clock.advance(LEADER_LEASE_S - 0.1)
    assert not first.is_held, "it does not rely on the last moments"
    assert not second.hold()
    clock.advance(0.1)
    assert second.hold()
    assert not first.hold()
    assert not first.is_held


def test_who_gives_up_is_followed_at_once(database: Database, clock: FakeClock) -> None:
    first, second = (Candidate(database, clock, name).lease for name in ("a", "b"))
    first.hold()
    first.give_up()
    assert not first.is_held
    assert second.hold()
    first.give_up()  # what is another's stays
    assert not first.hold()


def test_a_database_that_is_down_leaves_the_lease_until_it_runs_out(database_url: str) -> None:
    clock, answers = FakeClock(), True

    def read(connection: sa.Connection) -> float:
        if not answers:
            raise StoreUnavailable("database", "gone")
        return clock(connection)

    database = Database(database_url, read)
    lease = Candidate(database, clock, "a").lease
    assert lease.hold()
    answers = False
    clock.advance(11)
    with pytest.raises(StoreUnavailable):
        lease.hold()
    assert lease.is_held
    clock.advance(2)
    assert not lease.is_held
    answers = True
    assert lease.hold()
    database.close()


def test_two_never_lead_at_once_and_one_always_does_soon(database: Database, clock: FakeClock) -> None:
    draw = random.Random(8)
    candidates = [
        Candidate(database, clock, str(number), rate) for number, rate in enumerate((1, 1.05, 0.95))
    ]
    asleep_until = [0.0] * 3
    alone_since, leaders = clock.now, set()
    for _ in range(400):
        clock.advance(draw.choice((0.1, 1.0, 4.0)))
        for number, one in draw.sample(list(enumerate(candidates)), 3):
            if draw.random() < 0.02:  # frozen, or cut off from the database
                asleep_until[number] = clock.now + draw.choice((5, 20, 60))
            if clock.now >= asleep_until[number]:
                one.lease.hold()
        leading = [one.name for one in candidates if one.lease.is_held]
        assert len(leading) <= 1, "two act at once"
        leaders |= set(leading)
        if leading or not any(clock.now >= until for until in asleep_until):
            alone_since = clock.now
        assert clock.now - alone_since <= LEADER_LEASE_S + 4, "nobody acts although somebody could"
    assert len(leaders) == 3


def test_the_database_s_clock_decides(database: Database, clock: FakeClock) -> None:
    wrong = FakeClock()
    wrong.now = 5.0
    first = Leadership(database, "pool", "a", monotonic=lambda: wrong.now)
    second = Leadership(database, "pool", "b", monotonic=lambda: 1e9)
    assert first.hold()
    assert not second.hold(), "another machine's clock is far ahead"
    clock.advance(LEADER_LEASE_S)
    assert second.hold(), "another machine's clock stands still"
