"""Whose turn it is: fairness between owners, weights, quotas, ageing, and the places that a queue tells."""

from __future__ import annotations

import threading
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from service.jobs import places
from service.jobs.keys import KeyStore, NewKey
from service.jobs.states import Stage
from service.jobs.store import JobStore
from tests.unit.service.jobs.job_samples import ARTIFACTS, claimed, pass_in_silence, result_of, spec_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from service.jobs.documents import Document
    from service.jobs.states import Lease
    from tests.unit.service.jobs.job_samples import FakeClock

JOB_S = 60.0


@pytest.fixture
def store(tmp_path: Path, clock: FakeClock) -> Iterator[JobStore]:
    """On SQLite, where the simulations take less time; what asks the database more than they do, asks both."""
    store = JobStore(f"sqlite:///{tmp_path / 'jobs.sqlite3'}", clock=clock)
    yield store
    store.close()


@pytest.fixture
def any_store(database_url: str, clock: FakeClock) -> Iterator[JobStore]:
    store = JobStore(database_url, clock=clock)
    yield store
    store.close()


def submit(store: JobStore, owner: str, number: int = 1, **fields: object) -> list[str]:
    return [store.submit(spec_of(**fields), owner=owner)[0]["id"] for _ in range(number)]


def owner_of(lease: Lease, jobs: dict[str, list[str]]) -> str:
    return next(owner for owner, ids in jobs.items() if lease.job_id in ids)


def finish(store: JobStore, lease: Lease, worker_s: float) -> None:
    store.report(lease, stage=Stage.UPLOAD, step=1, steps_total=1, worker_s=worker_s)
    store.finish(lease, result_of(), ARTIFACTS)


def serve(
    store: JobStore,
    clock: FakeClock,
    jobs: dict[str, list[str]],
    number: int,
    *,
    slots: int = 1,
    seconds: Callable[[str], float] = lambda owner: JOB_S,
) -> list[str]:
    """Let `slots` workers take `number` jobs one after the other; whose they were, in the order of the claims."""
    served: list[str] = []
    running: list[tuple[float, str, Lease]] = []
    while len(served) < number or running:
        while len(served) < number and len(running) < slots:
            lease = claimed(store, lease_s=3_600)
            owner = owner_of(lease, jobs)
            served.append(owner)
            running.append((clock.now + seconds(owner), owner, lease))
        running.sort(key=lambda one: one[0])
        until, owner, lease = running.pop(0)
        clock.now = max(clock.now, until)
        finish(store, lease, seconds(owner))
    return served


# ---- between owners


def test_a_long_queue_of_one_owner_does_not_delay_another(any_store: JobStore, clock: FakeClock) -> None:
    jobs = {"big": submit(any_store, "big", 20)}
    serve(any_store, clock, jobs, 4)
    jobs["small"] = submit(any_store, "small", 2)
    served = serve(any_store, clock, jobs, 6)
    assert Counter(served)["small"] == 2
    assert served.index("small") <= 1


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_two_owners_who_want_more_get_the_same(store: JobStore, clock: FakeClock, slots: int) -> None:
    jobs = {"big": submit(store, "big", 20), "small": submit(store, "small", 8)}
    served = Counter(serve(store, clock, jobs, 12, slots=slots))
    assert abs(served["big"] - served["small"]) <= 2


@pytest.mark.parametrize("slots", [1, 2])
def test_owners_get_workers_in_proportion_to_their_weights(
    store: JobStore, clock: FakeClock, slots: int
) -> None:
    KeyStore(store.database).create(NewKey(name="heavy", weight=3.0))
    jobs = {"heavy": submit(store, "heavy", 15), "light": submit(store, "light", 15)}
    served = Counter(serve(store, clock, jobs, 16, slots=slots))
    assert served["heavy"] == pytest.approx(12, abs=1)


def test_what_is_shared_is_worker_seconds_not_turns(store: JobStore, clock: FakeClock) -> None:
    seconds = {"long": 300.0, "short": 30.0}
    jobs = {"long": submit(store, "long", 5), "short": submit(store, "short", 20)}
    served = Counter(serve(store, clock, jobs, 20, seconds=seconds.__getitem__))
    held = {owner: served[owner] * seconds[owner] for owner in seconds}
    assert abs(held["long"] - held["short"]) <= seconds["long"] + seconds["short"]


def test_nobody_pays_for_what_nobody_else_wanted(store: JobStore, clock: FakeClock) -> None:
    jobs = {"early": submit(store, "early", 20)}
    serve(store, clock, jobs, 10)
    jobs["late"] = submit(store, "late", 10)
    served = serve(store, clock, jobs, 8)
    assert all(set(served[turn : turn + 3]) == {"early", "late"} for turn in range(6))


def test_nobody_saves_up_idle_time_even_while_all_are_idle(store: JobStore, clock: FakeClock) -> None:
    jobs = {"early": submit(store, "early", 10)}
    serve(store, clock, jobs, 10)
    clock.advance(3_600)
    jobs["late"] = submit(store, "late", 10)
    jobs["early"] = submit(store, "early", 10)
    served = serve(store, clock, jobs, 8)
    assert all(set(served[turn : turn + 3]) == {"early", "late"} for turn in range(6))


def test_an_owner_whose_jobs_kill_their_workers_pays_for_the_time(store: JobStore, clock: FakeClock) -> None:
    jobs = {"poison": submit(store, "poison", 10), "sound": submit(store, "sound", 4)}
    turns = []
    for _ in range(6):
        lease = claimed(store, lease_s=60)
        turns.append(owner_of(lease, jobs))
        if turns[-1] == "sound":
            clock.advance(JOB_S)
            finish(store, lease, JOB_S)
        else:
            pass_in_silence(store, clock, 61)
    assert turns.count("sound") >= 3


def test_owners_whose_jobs_cost_nothing_take_turns_by_age(store: JobStore, clock: FakeClock) -> None:
    jobs: dict[str, list[str]] = {"a": [], "b": []}
    for owner in ("b", "a", "b", "a"):
        jobs[owner] += submit(store, owner)
        clock.advance(1)
    assert serve(store, clock, jobs, 4, seconds=lambda owner: 0.0) == ["b", "a", "b", "a"]


# ---- quotas


def reason_of(document: Document | None) -> str:
    assert document is not None
    return str(document["queue"]["reason"])


def test_a_quota_on_running_jobs_holds_an_owner_back_and_nobody_else(
    any_store: JobStore, clock: FakeClock
) -> None:
    KeyStore(any_store.database).create(
        NewKey.model_validate({"name": "small", "quotas": {"max_running": 1}})
    )
    jobs = {"small": submit(any_store, "small", 3)}
    lease = claimed(any_store)
    assert any_store.claim("worker-2") is None
    assert reason_of(any_store.get(jobs["small"][-1])) == "quota"
    jobs["other"] = submit(any_store, "other", 2)
    assert {owner_of(claimed(any_store), jobs) for _ in range(2)} == {"other"}
    assert any_store.claim("worker-2") is None
    finish(any_store, lease, 1.0)
    assert owner_of(claimed(any_store), jobs) == "small"


def test_a_quota_holds_when_many_workers_claim_at_once(database_url: str) -> None:
    store = JobStore(database_url)
    KeyStore(store.database).create(NewKey.model_validate({"name": "small", "quotas": {"max_running": 2}}))
    submit(store, "small", 8)
    leases: list[Lease | None] = []

    def claim(number: int) -> None:
        leases.extend(store.claim(f"worker-{number}") for _ in range(3))

    threads = [threading.Thread(target=claim, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(lease is not None for lease in leases) == 2
    store.close()


def test_what_a_quota_forbids_is_no_credit_for_later(store: JobStore, clock: FakeClock) -> None:
    keys = KeyStore(store.database)
    keys.create(NewKey.model_validate({"name": "small", "quotas": {"max_running": 0}}))
    jobs = {"small": submit(store, "small", 10), "other": submit(store, "other", 20)}
    assert set(serve(store, clock, jobs, 8)) == {"other"}
    keys.create(NewKey(name="wide", owner="small"))
    served = serve(store, clock, jobs, 8)
    assert all(set(served[turn : turn + 3]) == {"small", "other"} for turn in range(6))


# ---- within an owner


def test_low_priority_is_not_starved_by_a_stream_of_high(store: JobStore, clock: FakeClock) -> None:
    limits = {"deadline_s": 1_000}
    submit(store, "me", priority="high", limits=limits)
    (low,) = submit(store, "me", priority="low", limits=limits)
    submitted_at = clock.now
    while (lease := claimed(store)).job_id != low:
        submit(store, "me", priority="high", limits=limits)
        clock.advance(JOB_S)
        finish(store, lease, JOB_S)
        assert clock.now - submitted_at <= 1_000 / 2 + 2 * JOB_S  # one was queued before, one runs
    assert clock.now - submitted_at >= 1_000 / 2 - JOB_S


# ---- the places that the queue tells


def positions(store: JobStore, ids: list[str]) -> list[int]:
    documents, _ = store.list_jobs(limit=100)
    by_id = {document["id"]: document["queue"]["position"] for document in documents if document["queue"]}
    one_by_one = [store.get(job_id) for job_id in ids]
    assert [by_id[one["id"]] for one in one_by_one if one] == [
        one["queue"]["position"] for one in one_by_one if one
    ]
    return [by_id[job_id] for job_id in ids]


def test_positions_of_one_owner_are_exact(any_store: JobStore, clock: FakeClock) -> None:
    ids = []
    for priority in ("low", "normal", "high", "normal", "high", "low"):
        ids += submit(any_store, "me", priority=priority)
        clock.advance(1)
    told = dict(zip(ids, positions(any_store, ids), strict=True))
    taken = [claimed(any_store, worker=f"worker-{turn}").job_id for turn in range(6)]
    assert [told[job_id] for job_id in taken] == [1, 2, 3, 4, 5, 6]


def test_nobody_is_told_a_place_beyond_those_that_are_counted(
    any_store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "MAX_PLACE", 5)
    ids = submit(any_store, "me", 7)
    assert positions(any_store, ids) == [1, 2, 3, 4, 5, None, None]
    submit(any_store, "you", 3)
    assert positions(any_store, ids) == [1, 3, 5, None, None, None, None]
    deep = any_store.get(ids[-1])
    assert deep is not None
    assert deep["queue"] == {"reason": "scaling_up", "position": None, "eta_s": None}


def test_the_place_told_at_submission_is_the_one_told_later(store: JobStore, clock: FakeClock) -> None:
    jobs = {"early": submit(store, "early", 10)}
    serve(store, clock, jobs, 5)
    (late,) = submit(store, "other")
    document, _ = store.submit(spec_of(), owner="late")
    assert document["queue"]["position"] == positions(store, [document["id"]])[0]
    assert positions(store, [late])[0] <= 3


def test_positions_of_several_owners_are_what_happens(any_store: JobStore, clock: FakeClock) -> None:
    KeyStore(any_store.database).create(NewKey(name="heavy", weight=2.0))
    jobs: dict[str, list[str]] = {"heavy": [], "light": [], "lone": []}
    for owner, number in (("light", 6), ("heavy", 8), ("lone", 1)):
        jobs[owner] += submit(any_store, owner, number)
        clock.advance(1)
    ids = [job_id for mine in jobs.values() for job_id in mine]
    told = dict(zip(ids, positions(any_store, ids), strict=True))
    assert sorted(told.values())[0] == 1
    for place in range(1, len(ids) + 1):
        lease = claimed(any_store)
        assert abs(told[lease.job_id] - place) <= 1, f"{lease.job_id} was told {told[lease.job_id]}"
        clock.advance(JOB_S)
        finish(any_store, lease, JOB_S)
