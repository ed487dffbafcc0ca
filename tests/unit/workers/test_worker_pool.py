"""The pool without Ray: it keeps workers alive, tells of the dead, and ends in time."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from service.jobs.leadership import Leadership
from service.jobs.store import JobStore
from service.settings import Settings
from tests.unit.service.jobs.job_samples import FakeClock
from workers.keeping import ENDED, LedPool, Pool, wanted_workers

if TYPE_CHECKING:
    from pathlib import Path


@dataclass
class Hand:
    """A worker of flesh: it lives until told otherwise."""

    name: str
    alive: bool = True
    mood: str = "busy"
    obedient: bool = True
    killed: bool = False
    told_to_end: bool = False
    silent_s: float = 0.0
    has_answered: bool = True

    def state(self) -> str | None:
        return self.mood if self.alive else None

    def end_when_idle(self) -> None:
        self.told_to_end = True

    def drain(self, timeout_s: float) -> bool:
        return self.obedient

    def kill(self) -> None:
        self.killed = True


@dataclass
class Farm:
    """A pool of such workers, with a clock to turn."""

    wanted: int
    now: float = 0.0
    hands: list[Hand] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    database_answers: bool = True

    def __post_init__(self) -> None:
        self.pool = Pool(lambda: self.wanted, self.start, self.tell, clock=lambda: self.now)
        self.pool.tend()

    def start(self, name: str) -> Hand:
        self.hands.append(Hand(name))
        return self.hands[-1]

    def tell(self, name: str) -> None:
        if not self.database_answers:
            raise ConnectionError
        self.lost.append(name)


def test_it_starts_what_is_wanted_and_replaces_the_dead_under_a_new_name() -> None:
    farm = Farm(wanted=2)
    assert len(farm.pool.names) == 2
    farm.now = 100.0
    dead = farm.hands[0]
    dead.alive = False
    farm.pool.tend()
    assert farm.lost == [dead.name]
    assert len(farm.pool.names) == 2
    assert dead.name not in farm.pool.names


def test_workers_that_die_young_are_replaced_ever_more_slowly() -> None:
    farm = Farm(wanted=1)
    starts = [farm.now]
    while len(starts) < 5:
        farm.hands[-1].alive = False
        known = len(farm.hands)
        farm.pool.tend()
        while len(farm.hands) == known:
            farm.now += 0.5
            farm.pool.tend()
        starts.append(farm.now)
    pauses = [later - earlier for earlier, later in itertools.pairwise(starts)]
    assert pauses == [0.0, 1.0, 2.0, 4.0]
    assert farm.pool.is_troubled


def test_a_death_that_the_database_did_not_hear_of_is_told_again() -> None:
    farm = Farm(wanted=1, database_answers=False)
    farm.hands[0].alive = False
    farm.pool.tend()
    assert farm.lost == []
    farm.database_answers = True
    farm.pool.tend()
    assert farm.lost == [farm.hands[0].name]


def test_a_new_pool_takes_over_the_living() -> None:
    living = [Hand("worker-a"), Hand("worker-b", alive=False)]
    started: list[str] = []
    lost: list[str] = []

    def start(name: str) -> Hand:
        started.append(name)
        return Hand(name)

    pool = Pool(lambda: 2, start, lost.append, clock=lambda: 0.0)
    pool.adopt(living)
    pool.tend()
    assert set(pool.names) == {"worker-a", *started}
    assert len(started) == 1
    assert lost == ["worker-b"]


def test_draining_ends_all_and_tells_of_those_that_did_not_obey() -> None:
    farm = Farm(wanted=3)
    farm.hands[1].obedient = False
    farm.pool.drain(timeout_s=1.0)
    assert all(hand.killed for hand in farm.hands)
    assert farm.lost == [farm.hands[1].name]
    farm.pool.tend()
    assert farm.pool.names == ()


def test_more_are_started_when_more_are_wanted() -> None:
    farm = Farm(wanted=0)
    assert farm.hands == []
    farm.wanted = 3
    farm.pool.tend()
    assert len(farm.pool.names) == 3


def test_who_is_spare_ends_when_it_was_idle_for_long_and_is_not_called_lost() -> None:
    farm = Farm(wanted=3)
    first, second, busy = farm.hands
    first.mood = "idle"
    farm.pool.tend()
    farm.now = 30.0
    second.mood = "idle"
    farm.wanted = 1
    farm.pool.tend()
    farm.now = 59.0
    farm.pool.tend()
    assert not first.told_to_end, "not idle for long enough"
    farm.now = 60.0
    farm.pool.tend()
    assert (first.told_to_end, second.told_to_end, busy.told_to_end) == (True, False, False)
    first.mood = ENDED
    farm.now = 90.0
    farm.pool.tend()
    assert first.killed
    assert second.told_to_end
    assert farm.lost == []
    second.mood = ENDED
    farm.pool.tend()
    assert farm.pool.names == (busy.name,)


def test_a_busy_worker_is_never_sent_home() -> None:
    farm = Farm(wanted=2)
    farm.wanted = 0
    for farm.now in (100.0, 1_000.0):
        farm.pool.tend()
    assert not any(hand.told_to_end for hand in farm.hands)


def test_a_frozen_worker_is_ended_and_replaced_within_a_minute() -> None:
    farm = Farm(wanted=1)
    frozen = farm.hands[0]
    frozen.silent_s = 60.0
    farm.pool.tend()
    assert farm.pool.names == (frozen.name,), "it may only be slow"
    frozen.silent_s = 60.5
    farm.pool.tend()
    assert frozen.killed
    assert farm.lost == [frozen.name]
    assert farm.pool.names == (farm.hands[1].name,)


def test_one_that_leaves_is_replaced_when_it_is_wanted_again() -> None:
    farm = Farm(wanted=1)
    farm.hands[0].mood = "idle"
    farm.pool.tend()
    farm.wanted, farm.now = 0, 60.0
    farm.pool.tend()
    assert farm.hands[0].told_to_end
    farm.wanted = 1
    farm.pool.tend()
    assert len(farm.hands) == 2


def test_the_bound_holds_also_while_one_leaves() -> None:
    hands: list[Hand] = []

    def start(name: str) -> Hand:
        hands.append(Hand(name, mood="idle"))
        return hands[-1]

    wanted, now = 1, 0.0
    pool = Pool(lambda: wanted, start, print, idle_s=0, at_most=1, clock=lambda: now)
    pool.tend()
    wanted = 0
    pool.tend()
    assert hands[0].told_to_end
    wanted = 1
    pool.tend()
    assert len(hands) == 1, "the first one still holds its GPU"
    hands[0].mood = ENDED
    pool.tend()
    assert len(hands) == 2


def test_as_many_workers_are_wanted_as_the_jobs_fill_within_the_bounds() -> None:
    class Store:
        jobs = 0

        def wanted_slots(self) -> int:
            return self.jobs

    store = Store()
    settings = Settings(workers=4, min_workers=0, slots_per_worker=2)
    counts = []
    for store.jobs in (0, 1, 2, 3, 8, 100):
        counts.append(wanted_workers(settings, store))
    assert counts == [0, 1, 1, 2, 4, 4]
    assert wanted_workers(Settings(workers=4), store) == 4


def test_of_two_scalers_one_acts_and_the_other_takes_its_workers_over(tmp_path: Path) -> None:
    clock = FakeClock()
    store = JobStore(f"sqlite:///{tmp_path / 'jobs.sqlite3'}", clock=clock)
    hands: list[Hand] = []

    def start(name: str) -> Hand:
        hands.append(Hand(name))
        return hands[-1]

    def scaler(name: str) -> LedPool:
        lease = Leadership(store.database, "pool", name, monotonic=lambda: clock.now)
        pool = Pool(
            lambda: 2, start, store.worker_lost, may_act=lambda: lease.is_held, clock=lambda: clock.now
        )
        return LedPool(pool, lease, lambda: [hand for hand in hands if hand.alive])

    first, second = scaler("a"), scaler("b")
    for _ in range(3):
        first.tend()
        second.tend()
        clock.advance(5)
    assert len(hands) == 2, "the second one only watches"
    clock.advance(10)  # the first fell silent
    hands[0].alive = False
    second.tend()
    first.tend()
    assert len(hands) == 3
    assert set(second.pool.names) == {hands[1].name, hands[2].name}

    first.drain(1.0)  # its cluster ends
    assert all(hand.killed for hand in hands if hand.alive)
    store.close()


def test_a_scaler_whose_lease_runs_out_between_its_acts_stops() -> None:
    acts = iter([True, False])
    hands: list[Hand] = []

    def start(name: str) -> Hand:
        hands.append(Hand(name, mood="idle"))
        return hands[-1]

    pool = Pool(lambda: 3, start, print, idle_s=0, may_act=lambda: next(acts, False))
    pool.tend()
    assert len(hands) == 1


def test_how_long_a_worker_has_not_begun_to_run_is_known() -> None:
    farm = Farm(wanted=2)
    assert farm.pool.waiting_s == 0
    first, second = farm.hands
    first.has_answered = second.has_answered = False
    farm.now = 75.0
    assert farm.pool.waiting_s == 75.0
    first.has_answered = second.has_answered = True
    assert farm.pool.waiting_s == 0
