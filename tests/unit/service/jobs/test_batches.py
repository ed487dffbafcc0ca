"""Batches over every database: expansion, counts, steering, and who may see them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from service.jobs import batch_expansion, leasing, tables
from service.jobs.batch_expansion import NUM_AHEAD, UPLOAD_TIMEOUT_S, child_id
from service.jobs.batch_items import ItemState
from service.jobs.batches import BatchStore
from service.jobs.errors import BatchConflict, IdempotencyKeyReused, Refused
from service.jobs.states import FailureCode, Stage
from service.jobs.submission import insert_jobs
from tests.unit.service.jobs.batch_samples import all_results, batch_of, drive, finish, intake_of, lines_of
from tests.unit.service.jobs.job_samples import claimed, spec_of, types_of

if TYPE_CHECKING:
    from service.jobs.documents import Document
    from service.jobs.store import JobStore
    from tests.unit.service.jobs.job_samples import FakeClock

UNKNOWN = "batch_01ARZ3NDEKTSV4RRFFQ69G5FAV"


@pytest.fixture
def batches(store: JobStore) -> BatchStore:
    return BatchStore(store.database, max_queued=1_000)


def counts_of(batches: BatchStore, batch_id: str) -> dict[str, int]:
    """The counts that are not zero, having checked that all add up."""
    counts: dict[str, int] = document(batches, batch_id)["counts"].copy()
    assert set(counts) == {"total", *ItemState}
    assert sum(counts[state] for state in ItemState) == counts["total"]
    return {name: count for name, count in counts.items() if count}


def document(batches: BatchStore, batch_id: str) -> Document:
    found = batches.get(batch_id)
    assert found is not None
    return found


def fail(store: JobStore) -> str:
    lease = claimed(store)
    store.fail(lease, FailureCode.NAN_DIVERGENCE, "nan")
    return lease.job_id


def rows(store: JobStore, table: sa.Table) -> int:
    with store.database.reading() as tx:
        return int(tx.execute(sa.select(sa.func.count()).select_from(table)).scalar_one())


# ---- making them


def test_every_line_becomes_one_job_of_the_batch_and_its_owner(store: JobStore, batches: BatchStore) -> None:
    made = batch_of(batches, lines_of(3), metadata={"team": "x"}, defaults={"steps": 5})
    assert (made["status"], made["metadata"], made["problems"]) == ("expanding", {"team": "x"}, [])
    drive(batches)
    assert document(batches, made["id"])["status"] == "running"
    jobs, _ = store.list_jobs(owner="ann", batch_id=made["id"])
    assert sorted(job["spec"]["prompt"] for job in jobs) == [f"a red cube {n}" for n in range(3)]
    assert {job["spec"]["steps"] for job in jobs} == {5}
    assert {job["id"] for job in jobs} == {one["job_id"] for one in all_results(batches, made["id"])}
    assert all(types_of(store, job["id"]) == ["queued"] for job in jobs)
    assert batches.advance() == 0, "nothing is made twice"


def test_a_sweep_makes_each_line_once_for_every_combination(store: JobStore, batches: BatchStore) -> None:
    sweep = {"method.guidance_scale": [3.0, 5.0], "/seed": [1, 2]}
    made = batch_of(batches, lines_of(2), sweep=sweep, defaults={"method": {"name": "sds"}})
    drive(batches)
    items = all_results(batches, made["id"])
    assert [(one["custom_id"], *one["sweep"].values()) for one in items] == [
        (f"a{n}", scale, seed) for n in range(2) for scale in (3.0, 5.0) for seed in (1, 2)
    ]
    for one in items:
        job = store.get(one["job_id"])
        assert job is not None
        assert job["spec"]["seed"] == one["sweep"]["/seed"]
        assert job["spec"]["method"]["guidance_scale"]["start"] == one["sweep"]["method.guidance_scale"]


def test_invalid_lines_are_kept_with_their_problems_and_block_nobody(batches: BatchStore) -> None:
    lines: list[object] = [*lines_of(3), "nonsense", {"custom_id": "z", "boody": {}}]
    lines[1] = {"custom_id": "b", "body": {"prompt": "x", "stepz": 3}}
    made = batch_of(batches, lines)
    drive(batches)
    assert counts_of(batches, made["id"]) == {"total": 5, "invalid": 3, "queued": 2}
    broken = [one for one in all_results(batches, made["id"]) if one["status"] == "invalid"]
    assert [(one["line"], one["custom_id"]) for one in broken] == [(2, "b"), (4, "4"), (5, "z")]
    assert broken[0]["problems"] == [
        {"pointer": "/items/1/body/stepz", "detail": "there is no such field", "code": "invalid-request"}
    ]
    pointers = [one["pointer"] for one in made["problems"]]
    assert pointers == ["/items/1/body/stepz", "/items/3", "/items/4/boody"]
    assert made["problems"][0]["line"] == 2


def test_what_is_not_accepted_leaves_nothing_behind(store: JobStore, batches: BatchStore) -> None:
    with pytest.raises(Refused, match="on line 2 and on line 601"):
        batch_of(batches, [*lines_of(600), {"custom_id": "a1", "body": {"prompt": "x"}}])
    assert batches.list_batches() == ([], None)
    assert rows(store, tables.batch_items) == 500, "the first chunk was written already"
    drive(batches)
    assert rows(store, tables.batch_items) == rows(store, tables.batches) == 0


def test_an_upload_whose_frontend_died_is_erased_and_not_taken_up_again(
    store: JobStore, batches: BatchStore, clock: FakeClock
) -> None:
    intake = intake_of(batches)
    intake.take_all(lines_of(500))
    clock.advance(UPLOAD_TIMEOUT_S - 1)
    assert drive(batches) == 0
    clock.advance(2)
    assert drive(batches)
    assert rows(store, tables.batch_items) == 0
    with pytest.raises(BatchConflict, match="send it again"):
        intake.accept(None, None)


def test_one_idempotency_key_one_batch(store: JobStore, batches: BatchStore) -> None:
    first = batch_of(batches, lines_of(2), key="k", body_hash="h")
    again = batch_of(batches, lines_of(2), key="k", body_hash="h")
    others = batch_of(batches, lines_of(2), owner="bob", key="k", body_hash="h")
    assert again["id"] == first["id"] != others["id"]
    assert batch_of(batches, ["refused"], key="k", body_hash="h")["id"] == first["id"], (
        "the first answer counts"
    )
    with pytest.raises(IdempotencyKeyReused, match=first["id"]):
        batch_of(batches, lines_of(1), key="k", body_hash="other")
    drive(batches)
    assert rows(store, tables.jobs) == 4
    assert len(batches.list_batches("ann")[0]) == 1


# ---- back-pressure


def test_no_more_children_exist_than_are_soon_to_run(store: JobStore, batches: BatchStore) -> None:
    made = batch_of(batches, lines_of(50))
    drive(batches)
    assert counts_of(batches, made["id"]) == {"total": 50, "queued": NUM_AHEAD, "pending": 50 - NUM_AHEAD}
    store.heartbeat("worker-1", slots=10)
    drive(batches)
    assert counts_of(batches, made["id"])["queued"] == NUM_AHEAD + 20


def test_max_parallel_bounds_what_is_queued_and_running(store: JobStore, batches: BatchStore) -> None:
    made = batch_of(batches, lines_of(5), max_parallel=2)
    for left in (3, 2, 1, 0, 0):
        drive(batches)
        lease = claimed(store)
        counts = counts_of(batches, made["id"])
        assert counts.get("queued", 0) + counts["running"] <= 2
        assert counts.get("pending", 0) == left
        finish(store, lease)
    drive(batches)
    assert counts_of(batches, made["id"]) == {"total": 5, "succeeded": 5}


def test_batches_leave_half_of_the_queue_to_others(store: JobStore) -> None:
    batches = BatchStore(store.database, max_queued=10)
    first, second = (batch_of(batches, lines_of(9)) for _ in range(2))
    drive(batches)
    assert counts_of(batches, first["id"])["queued"] + counts_of(batches, second["id"]).get("queued", 0) == 5


def test_a_worker_without_work_makes_the_next_children_itself(store: JobStore, batches: BatchStore) -> None:
    made = batch_of(batches, lines_of(3), max_parallel=1)
    for _ in range(3):
        finish(store, claimed(store))
    assert store.claim("worker-1") is None
    assert document(batches, made["id"])["status"] == "completed"


# ---- steering


def test_a_paused_batch_starts_nothing_and_its_deadlines_stand_still(
    store: JobStore, batches: BatchStore, clock: FakeClock
) -> None:
    made = batch_of(batches, lines_of(3, limits={"deadline_s": 100}), max_parallel=2)
    drive(batches)
    running = claimed(store)
    paused = batches.pause(made["id"], "ann")
    assert paused is not None
    assert (paused["status"], batches.pause(made["id"])) == ("paused", paused)
    waiting = next(one["job_id"] for one in all_results(batches, made["id"]) if one["status"] == "queued")
    job = store.get(waiting)
    assert job is not None
    assert job["queue"]["reason"] == "paused"
    finish(store, running)
    clock.advance(1_000)
    assert store.claim("worker-1") is None
    drive(batches)
    assert counts_of(batches, made["id"]) == {"total": 3, "succeeded": 1, "queued": 1, "pending": 1}
    resumed = batches.resume(made["id"])
    assert resumed is not None
    assert resumed["status"] == "expanding"
    assert claimed(store).deadline_in_s == pytest.approx(100, abs=1)
    assert batches.resume(made["id"]) == document(batches, made["id"]), "harmless to repeat"


def test_a_job_that_comes_back_to_the_queue_of_a_paused_batch_waits_too(
    store: JobStore, batches: BatchStore
) -> None:
    made = batch_of(batches, lines_of(1))
    drive(batches)
    lease = claimed(store)
    batches.pause(made["id"])
    store.release(lease)
    assert store.claim("worker-1") is None
    batches.resume(made["id"])
    finish(store, claimed(store))
    drive(batches)
    assert document(batches, made["id"])["status"] == "completed"
    with pytest.raises(BatchConflict, match="is completed; only a batch that is expanding or running"):
        batches.pause(made["id"])


def test_cancel_ends_what_waits_and_asks_what_runs(store: JobStore, batches: BatchStore) -> None:
    made = batch_of(batches, lines_of(20))
    drive(batches)
    lease = claimed(store)
    canceled = batches.cancel(made["id"])
    assert canceled is not None
    assert canceled["status"] == "canceling"
    assert counts_of(batches, made["id"]) == {"total": 20, "running": 1, "canceled": 19}
    assert store.report(lease, stage=Stage.COARSE, step=1, steps_total=9).cancel_requested
    store.cancel_confirmed(lease)
    drive(batches)
    assert document(batches, made["id"])["status"] == "canceled"
    assert counts_of(batches, made["id"]) == {"total": 20, "canceled": 20}
    assert batches.cancel(made["id"]) == document(batches, made["id"])
    for steer in (batches.pause, batches.resume, batches.retry_failed):
        with pytest.raises(BatchConflict):
            steer(made["id"])


def test_cancel_of_many_goes_on_chunk_by_chunk(
    store: JobStore, batches: BatchStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = batch_of(batches, lines_of(35))
    drive(batches)
    monkeypatch.setattr(batch_expansion, "MAX_CHANGED", 10)
    monkeypatch.setattr(batch_expansion, "CHUNK", 5)
    canceled = batches.cancel(made["id"])
    assert canceled is not None
    assert canceled["status"] == "canceling"
    left = NUM_AHEAD - 5
    assert counts_of(batches, made["id"]) == {
        "total": 35,
        "canceled": 15,
        "queued": left,
        "pending": 20 - left,
    }
    with store.database.writing() as tx:
        assert leasing.claim(tx, "worker-1", 60) is None, "none of them starts any more"
    drive(batches)
    assert counts_of(batches, made["id"]) == {"total": 35, "canceled": 35}
    assert document(batches, made["id"])["status"] == "canceled"


def test_retry_failed_makes_new_jobs_of_the_failed_lines_only(store: JobStore, batches: BatchStore) -> None:
    made = batch_of(batches, [*lines_of(3), "nonsense"])
    drive(batches)
    failed = {fail(store), fail(store)}
    finish(store, claimed(store))
    drive(batches)
    assert document(batches, made["id"])["status"] == "completed"
    assert counts_of(batches, made["id"]) == {"total": 4, "succeeded": 1, "failed": 2, "invalid": 1}
    again = batches.retry_failed(made["id"])
    assert again is not None
    assert (again["status"], again["ended_at"]) == ("expanding", None)
    assert counts_of(batches, made["id"]) == {"total": 4, "succeeded": 1, "pending": 2, "invalid": 1}
    assert [one["job_id"] for one in all_results(batches, made["id"])].count(None) == 3
    drive(batches)
    retried = [one for one in all_results(batches, made["id"]) if one["status"] == "queued"]
    assert {one["retry_of"] for one in retried} == failed
    assert not {one["job_id"] for one in retried} & failed
    for one in retried:
        new, old = store.get(one["job_id"]), store.get(one["retry_of"])
        assert new is not None
        assert old is not None
        assert (new["spec"], new["batch_id"]) == (old["spec"], made["id"])
    for _ in range(2):
        finish(store, claimed(store))
    drive(batches)
    assert counts_of(batches, made["id"]) == {"total": 4, "succeeded": 3, "invalid": 1}
    types = [event["type"] for event in batches.events(made["id"]) or []]
    assert types.count("batch.completed") == 2


def test_a_job_canceled_by_itself_is_counted(store: JobStore, batches: BatchStore) -> None:
    made = batch_of(batches, lines_of(2))
    drive(batches)
    first = all_results(batches, made["id"])[0]["job_id"]
    store.cancel(first, "ann")
    assert counts_of(batches, made["id"]) == {"total": 2, "queued": 1, "canceled": 1}


# ---- what is to be seen


def test_results_tell_scores_artifacts_and_errors_while_the_batch_runs(
    store: JobStore, batches: BatchStore
) -> None:
    made = batch_of(batches, lines_of(3))
    drive(batches)
    finish(store, claimed(store))
    fail(store)
    done, failed, waiting = all_results(batches, made["id"], page=1)
    assert done["scores"] == {"embedded-multiview": 0.8}
    assert done["referee"] == {"name": "embedded-alignment", "score": 0.7}
    assert [one["kind"] for one in done["artifacts"]] == ["glb", "thumbnail"]
    assert (failed["status"], failed["error"]["code"]) == ("failed", "nan-divergence")
    assert (waiting["status"], waiting["artifacts"], waiting["error"]) == ("queued", [], None)
    only = batches.results(made["id"], state=ItemState.FAILED)
    assert only == ([failed], None)


def test_events_tell_progress_and_end_without_gaps(
    store: JobStore, batches: BatchStore, clock: FakeClock
) -> None:
    made = batch_of(batches, lines_of(3))
    for _ in range(3):
        drive(batches)
        clock.advance(2)
        finish(store, claimed(store))
    drive(batches)
    events = batches.events(made["id"]) or []
    assert [event["id"] for event in events] == list(range(1, len(events) + 1))
    assert [event["type"] for event in events] == ["batch.progress"] * 3 + ["batch.completed"]
    assert [event["data"]["counts"]["succeeded"] for event in events] == [0, 1, 2, 3]
    assert events[-1]["data"]["status"] == "completed"
    assert batches.events(made["id"], after=3) == events[3:]


def test_nobody_else_sees_or_steers_a_batch(store: JobStore, batches: BatchStore) -> None:
    made = batch_of(batches, lines_of(1), owner="ann")
    for ask in (
        batches.get,
        batches.results,
        batches.events,
        batches.pause,
        batches.resume,
        batches.cancel,
        batches.retry_failed,
    ):
        assert ask(made["id"], "bob") is None
        assert ask(UNKNOWN, "ann") is None
    assert batches.list_batches("bob") == ([], None)
    assert document(batches, made["id"])["status"] == "expanding"


def test_lists_go_page_by_page_newest_first(batches: BatchStore, clock: FakeClock) -> None:
    made = []
    for _ in range(3):
        made.append(batch_of(batches, lines_of(1))["id"])
        clock.advance(1)
    first, cursor = batches.list_batches("ann", limit=2)
    rest, end = batches.list_batches("ann", limit=2, cursor=cursor)
    assert [one["id"] for one in first + rest] == made[::-1]
    assert end is None


# ---- crashes and other processes


def test_a_crash_in_the_middle_of_a_chunk_makes_nothing_and_nothing_twice(
    store: JobStore, batches: BatchStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = batch_of(batches, lines_of(6))
    calls = 0

    def crash(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise MemoryError
        insert_jobs(*arguments)

    monkeypatch.setattr(batch_expansion, "insert_jobs", crash)
    with pytest.raises(MemoryError):
        batches.advance()
    assert counts_of(batches, made["id"]) == {"total": 6, "pending": 6}
    assert rows(store, tables.jobs) == 0
    drive(batches)
    assert rows(store, tables.jobs) == 6


def test_a_child_has_one_id_for_ever_and_sorts_by_its_number() -> None:
    ids = [child_id(UNKNOWN, 1_750_000_000.0, number, 0) for number in range(100)]
    assert ids == sorted(ids) == [child_id(UNKNOWN, 1_750_000_000.0, number, 0) for number in range(100)]
    assert len({*ids, child_id(UNKNOWN, 1_750_000_000.0, 0, 1)}) == 101
    assert all(len(one) == 30 for one in ids)


def test_a_job_of_another_release_does_not_stop_its_batch(store: JobStore, batches: BatchStore) -> None:
    made = batch_of(batches, lines_of(2))
    with store.database.writing() as tx:
        first = tables.batch_items.c.number == 0
        spec = spec_of().model_dump(mode="json") | {"knob_of_tomorrow": 1}
        tx.execute(sa.update(tables.batch_items).where(first).values(spec=spec))
    drive(batches)
    assert counts_of(batches, made["id"]) == {"total": 2, "invalid": 1, "queued": 1}
    assert "this release cannot read" in all_results(batches, made["id"])[0]["problems"][0]["detail"]


def test_any_number_of_processes_may_drive_at_once(store: JobStore, batches: BatchStore) -> None:
    store.heartbeat("worker-1", slots=200)
    made = batch_of(batches, lines_of(300))
    with ThreadPoolExecutor(4) as threads:
        for answer in [threads.submit(drive, batches) for _ in range(8)]:
            answer.result()
    drive(batches)
    assert counts_of(batches, made["id"]) == {"total": 300, "queued": 300}
    assert rows(store, tables.jobs) == 300
