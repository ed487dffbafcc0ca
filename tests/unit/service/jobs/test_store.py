"""The conformance suite of the job store: the same promises on SQLite and on PostgreSQL."""

from __future__ import annotations

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa

from service.jobs import tables
from service.jobs.capabilities import Capabilities, PartFacts, RewardFacts, embedded_capabilities
from service.jobs.errors import IdempotencyKeyReused, QueueFull, StoreUnavailable
from service.jobs.events import progress_is_due
from service.jobs.keys import KeyStore, NewKey
from service.jobs.keys import Quotas as KeyQuotas
from service.jobs.series import ScorePoint
from service.jobs.states import FailureCode, JobState, Stage, StaleLease
from service.jobs.store import JobStore
from service.jobs.submission import Submission
from service.jobs.transitions import lock
from tests.unit.service.jobs.job_samples import (
    ARTIFACTS,
    FakeClock,
    checkpoint,
    claimed,
    pass_in_silence,
    result_of,
    spec_of,
    types_of,
)

if TYPE_CHECKING:
    from pathlib import Path

DOCUMENT_KEYS = {
    "id", "status", "created_at", "started_at", "ended_at", "retry_of", "batch_id", "spec", "queue", "stage",
    "progress", "attempts", "failures", "cancel_requested", "warnings", "result", "error",
    "score_series",
}  # fmt: skip


def submitted(store: JobStore, **fields: object) -> str:
    return str(store.submit(spec_of(**fields))[0]["id"])


def status(store: JobStore, job_id: str) -> str:
    document = store.get(job_id)
    assert document is not None
    return str(document["status"])


def tally(store: JobStore, name: str, **labels: str) -> float:
    return sum(one.value for one in store.snapshot().tallies if one.name == name and one.labels == labels)


# ---- submitting


def test_an_accepted_job_survives_the_store_that_accepted_it(database_url: str) -> None:
    first = JobStore(database_url)
    document, is_new = first.submit(spec_of(prompt="a blue chair"))
    first.close()
    second = JobStore(database_url)
    assert is_new
    found = second.get(document["id"])
    assert found is not None
    assert found["spec"] == document["spec"]
    assert found["status"] == "queued"
    second.close()


@pytest.mark.parametrize(
    "prompt",
    [
        "${oc.env:HOME}",
        "a: b",
        "null",
        "# x",
        "'; DROP TABLE jobs; --",
        '"quoted"',
        "\u202egnp.cube",
        "🧊 на кубе\t%s",
    ],
)
def test_a_prompt_arrives_unchanged(store: JobStore, prompt: str) -> None:
    submitted(store, prompt=prompt, metadata={"k": prompt[:500]})
    spec = claimed(store).spec
    assert spec.prompt == prompt
    assert spec.metadata == {"k": prompt}


def test_the_document_has_one_shape_in_all_states(store: JobStore) -> None:
    job_id = submitted(store)
    seen = [store.get(job_id)]
    lease = claimed(store)
    seen.append(store.get(job_id))
    store.report(lease, stage=Stage.COARSE, step=3, steps_total=300)
    seen.append(store.get(job_id))
    store.cancel(job_id)
    seen.append(store.get(job_id))
    store.finish(lease, result_of(), ARTIFACTS)
    seen.append(store.get(job_id))
    assert [document and document["status"] for document in seen] == [
        "queued", "running", "running", "canceling", "succeeded",
    ]  # fmt: skip
    assert all(document is not None and document.keys() == DOCUMENT_KEYS for document in seen)


def test_one_idempotency_key_makes_one_job(store: JobStore) -> None:
    first, is_new = store.submit(spec_of(), idempotency_key="k", body_hash="1")
    second, is_new_again = store.submit(spec_of(), idempotency_key="k", body_hash="1")
    assert (is_new, is_new_again) == (True, False)
    assert first["id"] == second["id"]
    with pytest.raises(IdempotencyKeyReused, match="new key"):
        store.submit(spec_of(), idempotency_key="k", body_hash="2")
    assert len(store.list_jobs()[0]) == 1


def test_one_idempotency_key_makes_one_job_even_at_the_same_time(store: JobStore) -> None:
    barrier = threading.Barrier(8)

    def submit(_: int) -> tuple[str, bool]:
        barrier.wait()
        document, is_new = store.submit(spec_of(), idempotency_key="k", body_hash="1")
        return document["id"], is_new

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(submit, range(8)))
    assert len({job_id for job_id, _ in answers}) == 1
    assert sum(is_new for _, is_new in answers) == 1
    assert tally(store, "jobs_submitted") == 1


def asked(number: int, owner: str = "me", key: str | None = None, body: str | None = None) -> Submission:
    return Submission(spec_of(prompt=f"cube {number}"), owner, key, body)


def told(answer: object) -> str:
    """What a submission is answered, in short."""
    if isinstance(answer, tuple):
        document, is_new = answer
        return f"{'new' if is_new else 'known'} {document['spec']['prompt']}"
    return type(answer).__name__


def test_jobs_submitted_together_have_an_answer_each(database_url: str) -> None:
    store = JobStore(database_url, max_queued=6)
    KeyStore(store.database).create(NewKey(name="small", quotas=KeyQuotas(max_queued=1)))
    store.submit(spec_of(prompt="cube 0"), owner="me", idempotency_key="old", body_hash="0")
    wanted = [
        asked(1),
        asked(2, "me", "old", "0"),
        asked(3, "me", "old", "other body"),
        asked(4, "small"),
        asked(5, "small"),
        asked(6, "me", "fresh", "6"),
        asked(7, "me", "fresh", "6"),
        asked(8, "me", "fresh", "other body"),
        asked(9, "you", "fresh", "6"),
        asked(10),
        asked(11),
    ]
    answers = store.submit_together(wanted)
    assert [told(answer) for answer in answers] == [
        "new cube 1", "known cube 0", "IdempotencyKeyReused", "new cube 4", "QuotaExceeded", "new cube 6",
        "known cube 6", "IdempotencyKeyReused", "new cube 9", "new cube 10", "QueueFull",
    ]  # fmt: skip
    documents, _ = store.list_jobs()
    assert [document["spec"]["prompt"] for document in documents] == [
        f"cube {number}" for number in (10, 9, 6, 4, 1, 0)
    ]
    for answer in answers:
        if isinstance(answer, tuple):
            assert store.get(answer[0]["id"]) == answer[0]
            assert types_of(store, answer[0]["id"]) == ["queued"]
    assert tally(store, "jobs_submitted") == 6
    assert store.submit_together([]) == []
    store.close()


def test_jobs_submitted_together_take_turns_in_their_order(store: JobStore) -> None:
    answers = store.submit_together([asked(number) for number in range(5)])
    ids = [answer[0]["id"] for answer in answers if isinstance(answer, tuple)]
    assert [answer[0]["queue"]["position"] for answer in answers if isinstance(answer, tuple)] == [
        1, 2, 3, 4, 5,
    ]  # fmt: skip
    assert [claimed(store).job_id for _ in range(5)] == ids


def test_a_submission_that_cannot_be_written_spoils_no_other(store: JobStore) -> None:
    unwritable = asked(1)._replace(warnings=[{"code": float("nan")}])  # type: ignore[dict-item]
    answers = store.submit_together([asked(0), unwritable, asked(2)])
    assert isinstance(answers[1], Exception)
    assert [told(answer) for answer in answers[::2]] == ["new cube 0", "new cube 2"]
    assert len(store.list_jobs()[0]) == 2


def test_an_outage_queues_none_of_those_submitted_together(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose(*_: object) -> None:
        raise StoreUnavailable("database", "the server is gone")

    monkeypatch.setattr("service.jobs.submission.tallies.count", lose)
    with pytest.raises(StoreUnavailable, match="is gone"):
        store.submit_together([asked(0), asked(1)])
    assert store.list_jobs()[0] == []


def test_groups_with_the_same_keys_at_the_same_time_make_one_job_for_each(store: JobStore) -> None:
    barrier = threading.Barrier(4)

    def submit(turn: int) -> list[str]:
        keys = [str((number + turn) % 5) for number in range(5)]
        barrier.wait()
        return [told(answer) for answer in store.submit_together([asked(int(k), "me", k, k) for k in keys])]

    with ThreadPoolExecutor(4) as pool:
        answers = [one for each in pool.map(submit, range(4)) for one in each]
    assert sorted(set(answers)) == sorted(f"{what} cube {n}" for what in ("known", "new") for n in range(5))
    assert sum(one.startswith("new") for one in answers) == len(store.list_jobs()[0]) == 5


def test_a_full_queue_refuses_and_keeps_what_it_has(database_url: str) -> None:
    store = JobStore(database_url, max_queued=2)
    submitted(store)
    submitted(store)
    with pytest.raises(QueueFull, match="accepts 2"):
        submitted(store)
    claimed(store)
    submitted(store)
    store.close()


# ---- claiming


def test_jobs_are_claimed_by_priority_and_then_by_age(store: JobStore, clock: FakeClock) -> None:
    ids = []
    for priority in ("low", "normal", "high", "normal"):
        ids.append(submitted(store, priority=priority))
        clock.advance(1)
    low, normal, high, later = ids
    documents = {document["id"]: document for document in store.list_jobs()[0]}
    assert [documents[job_id]["queue"]["position"] for job_id in (high, normal, later, low)] == [1, 2, 3, 4]
    assert [claimed(store).job_id for _ in range(4)] == [high, normal, later, low]
    assert store.claim("worker-1") is None


def test_no_job_is_claimed_twice_by_many_workers(store: JobStore) -> None:
    ids = {submitted(store) for _ in range(24)}

    def work(worker: str) -> list[str]:
        taken = []
        while (lease := store.claim(worker)) is not None:
            taken.append(lease.job_id)
        return taken

    with ThreadPoolExecutor(6) as pool:
        taken = [job_id for each in pool.map(work, [f"worker-{n}" for n in range(6)]) for job_id in each]
    # SKIP LOCKED may tell a worker that nothing is left while another holds the last rows.
    while (lease := store.claim("worker-0")) is not None:
        taken.append(lease.job_id)
    assert len(taken) == len(ids)
    assert set(taken) == ids


def test_a_spec_that_cannot_be_read_fails_and_does_not_stop_the_queue(
    store: JobStore, database_url: str, clock: FakeClock
) -> None:
    unreadable = submitted(store)
    clock.advance(1)
    readable = submitted(store)
    engine = sa.create_engine(database_url)
    with engine.begin() as connection:
        connection.execute(
            sa.update(tables.jobs).where(tables.jobs.c.id == unreadable).values(spec={"old": 1})
        )
    engine.dispose()
    assert claimed(store).job_id == readable
    document = store.get(unreadable)
    assert document is not None
    assert document["error"]["code"] == "internal"


# ---- leases and fences


def test_late_write_of_an_old_attempt_is_refused(store: JobStore, clock: FakeClock) -> None:
    job_id = submitted(store)
    old = claimed(store, "worker-1")
    clock.advance(61)
    store.sweep()
    clock.advance(60)
    new = claimed(store, "worker-2")
    assert (old.attempt, new.attempt) == (1, 2)
    before = store.get(job_id)
    for write in (
        lambda: store.report(old, stage=Stage.COARSE, step=1, steps_total=300),
        lambda: store.finish(old, result_of(1), ARTIFACTS),
        lambda: store.fail(old, FailureCode.NAN_DIVERGENCE, "late"),
        lambda: store.cancel_confirmed(old),
        lambda: store.release(old),
    ):
        with pytest.raises(StaleLease, match="attempt 2"):
            write()
    assert store.get(job_id) == before
    assert tally(store, "fenced_writes") == 5
    store.finish(new, result_of(2), ARTIFACTS)
    document = store.get(job_id)
    assert document is not None
    assert document["result"]["provenance"]["attempt"] == 2


def test_a_worker_whose_lease_was_swept_may_not_write_before_the_next_claim_either(
    store: JobStore, clock: FakeClock
) -> None:
    submitted(store)
    lease = claimed(store)
    clock.advance(61)
    assert store.sweep() == 1
    with pytest.raises(StaleLease, match="queued"):
        store.finish(lease, result_of(), ARTIFACTS)


def test_a_report_keeps_the_lease(store: JobStore, clock: FakeClock) -> None:
    submitted(store)
    lease = claimed(store)
    for step in range(5):
        clock.advance(50)
        store.report(lease, stage=Stage.COARSE, step=step, steps_total=300)
    assert store.sweep() == 0


def test_a_result_is_published_once_and_repeating_the_call_is_harmless(store: JobStore) -> None:
    job_id = submitted(store)
    lease = claimed(store)
    store.report(lease, stage=Stage.COARSE, step=5, steps_total=300, checkpoint=checkpoint(5))
    assert store.finish(lease, result_of(), ARTIFACTS) == (checkpoint(5).key,)
    document = store.get(job_id)
    assert store.finish(lease, result_of(), ARTIFACTS) == ()
    assert store.get(job_id) == document
    assert document is not None
    assert [artifact["kind"] for artifact in document["result"]["artifacts"]] == ["glb", "thumbnail"]
    assert document["result"]["artifacts"] == store.artifacts(job_id)
    assert tally(store, "jobs_finished", method="sds", outcome="succeeded") == 1
    found = store.artifact(document["result"]["artifacts"][0]["id"])
    assert found == (document["result"]["artifacts"][0], ARTIFACTS[0].key)
    assert store.artifact("art_unknown") is None


def test_final_states_never_change(store: JobStore, clock: FakeClock) -> None:
    ids = []
    for end in ("succeeded", "failed", "canceled"):
        job_id = submitted(store)
        lease = claimed(store)
        match end:
            case "succeeded":
                store.finish(lease, result_of(), ARTIFACTS)
            case "failed":
                store.fail(lease, FailureCode.NAN_DIVERGENCE, "the loss is not a number at step 3")
            case _:
                store.cancel(job_id)
                store.cancel_confirmed(lease)
        assert status(store, job_id) == end
        ids.append((job_id, lease, store.get(job_id)))
    clock.advance(1e6)
    for job_id, lease, before in ids:
        store.cancel(job_id)
        store.sweep()
        store.worker_lost("worker-1")
        with pytest.raises(StaleLease):
            store.fail(lease, FailureCode.INTERNAL, "late")
        assert store.claim("worker-2") is None
        assert store.get(job_id) == before


# ---- loss, retry, poison


def test_a_lost_worker_costs_one_checkpoint_interval(store: JobStore, clock: FakeClock) -> None:
    job_id = submitted(store)
    lease = claimed(store, "worker-1")
    store.report(lease, stage=Stage.COARSE, step=50, steps_total=300, checkpoint=checkpoint(50))
    store.report(lease, stage=Stage.COARSE, step=90, steps_total=300, worker_s=9.5)
    assert store.worker_lost("worker-1") == [job_id]
    assert store.claim("worker-2") is None  # the first backoff
    clock.advance(1)
    again = claimed(store, "worker-2")
    assert [one.step for one in again.checkpoints] == [50]
    assert (again.attempt, again.failures) == (2, 1)
    store.report(again, stage=Stage.COARSE, step=100, steps_total=300)
    document = store.get(job_id)
    assert document is not None
    first, second = document["attempts"]
    assert (first["outcome"], first["worker_s"], first["resumed_from_step"]) == ("worker_lost", 9.5, None)
    assert (second["outcome"], second["resumed_from_step"], second["worker"]) == (None, 50, "worker-2")
    assert tally(store, "steps_redone") == 40
    assert tally(store, "optimizer_steps") == 90 + 50
    assert types_of(store, job_id) == [
        "queued", "started", "stage", "progress", "attempt_lost", "resumed", "stage", "progress",
    ]  # fmt: skip


def test_a_torn_checkpoint_is_told_and_counted_from_the_one_before(store: JobStore, clock: FakeClock) -> None:
    job_id = submitted(store)
    lease = claimed(store)
    for step in (10, 20, 30):
        answer = store.report(
            lease, stage=Stage.COARSE, step=step, steps_total=300, checkpoint=checkpoint(step)
        )
    assert answer.superseded == (checkpoint(10).key,)
    store.worker_lost("worker-1")
    clock.advance(1)
    again = claimed(store)
    assert [one.step for one in again.checkpoints] == [30, 20]
    store.report(again, stage=Stage.COARSE, step=25, steps_total=300, resumed_from_step=20)
    document = store.get(job_id)
    assert document is not None
    assert document["attempts"][1]["resumed_from_step"] == 20
    assert tally(store, "steps_redone") == 5
    store.report(again, stage=Stage.COARSE, step=40, steps_total=300, checkpoint=checkpoint(40))
    store.worker_lost("worker-1")
    clock.advance(10)
    assert [one.step for one in claimed(store).checkpoints] == [40, 20], "the torn one is no fallback"


def test_a_checkpoint_told_twice_is_kept_once(store: JobStore) -> None:
    submitted(store)
    lease = claimed(store)
    for _ in range(2):
        answer = store.report(lease, stage=Stage.COARSE, step=9, steps_total=300, checkpoint=checkpoint(9))
        assert answer.superseded == ()
    assert tally(store, "checkpoints") == 1


def test_a_retryable_failure_is_retried_later_and_later_until_the_attempts_are_used_up(
    store: JobStore, clock: FakeClock
) -> None:
    job_id = submitted(store, limits={"max_attempts": 3})
    for failures, longest_s in ((1, 1), (2, 2)):
        store.fail(claimed(store), FailureCode.GPU_OUT_OF_MEMORY, "out of memory")
        document = store.get(job_id)
        assert document is not None
        assert (document["status"], document["failures"]) == ("queued", failures)
        assert document["queue"]["reason"] == "retry_backoff"
        clock.advance(longest_s * 0.49)
        assert store.claim("worker-1") is None
        clock.advance(longest_s * 0.52)
    store.fail(claimed(store), FailureCode.GPU_OUT_OF_MEMORY, "out of memory")
    document = store.get(job_id)
    assert document is not None
    assert document["error"] == {"code": "gpu-out-of-memory", "detail": "out of memory", "retryable": True}
    assert [attempt["outcome"] for attempt in document["attempts"]] == ["oom", "oom", "oom"]


def test_a_job_that_kills_its_workers_ends_as_poison_and_blocks_nobody(
    store: JobStore, clock: FakeClock
) -> None:
    poison = submitted(store, priority="high", limits={"max_attempts": 2})
    other = submitted(store)
    for n in range(2):
        assert claimed(store, f"worker-{n}").job_id == poison
        pass_in_silence(store, clock, 70)
    document = store.get(poison)
    assert document is not None
    assert (document["status"], document["error"]["code"], document["failures"]) == (
        "failed",
        "poison-job",
        2,
    )
    assert tally(store, "leases_expired") == 2
    assert claimed(store).job_id == other


def test_a_job_is_left_to_the_worker_that_has_its_parts(store: JobStore, clock: FakeClock) -> None:
    poor = embedded_capabilities()
    rich = poor.model_copy(update={"rewards": {**poor.rewards, "published": RewardFacts()}})
    store.publish_capabilities("poor", poor)
    for_rich, for_any = submitted(store, referee="published"), submitted(store)
    store.publish_capabilities("rich", rich)
    assert claimed(store, "poor", can=poor).job_id == for_any
    assert store.claim("poor", can=poor) is None
    assert claimed(store, "rich", can=rich).job_id == for_rich
    store.worker_lost("rich")
    clock.advance(10)
    assert claimed(store, "poor", can=poor).job_id == for_rich, "to say what is missing: nobody else will"


def test_what_an_outage_of_the_database_ends_is_nobodys_fault(store: JobStore, clock: FakeClock) -> None:
    job_id = submitted(store, limits={"max_attempts": 1})
    claimed(store)
    clock.advance(61)  # and nobody could look or report
    store.sweep()
    document = store.get(job_id)
    assert document is not None
    assert (document["status"], document["failures"]) == ("queued", 0)
    assert document["attempts"][0]["outcome"] == "preempted"
    claimed(store)
    pass_in_silence(store, clock, 61)
    document = store.get(job_id)
    assert document is not None
    assert (document["status"], document["error"]["code"]) == ("failed", "poison-job")


def test_a_job_that_nobody_canceled_is_not_ended_by_a_worker_that_thinks_so(store: JobStore) -> None:
    job_id = submitted(store)
    assert store.cancel_confirmed(claimed(store), result_of(), ARTIFACTS) == ()
    document = store.get(job_id)
    assert document is not None
    assert (document["status"], document["failures"], document["result"]) == ("queued", 0, None)
    assert store.artifacts(job_id) == []


def test_a_session_that_falls_silent_or_waits_for_a_lock_is_bounded(store: JobStore) -> None:
    job_id = submitted(store)
    with store.database.writing() as tx:
        if tx.connection.dialect.name != "postgresql":
            return  # SQLite has one writer, who waits for the disk only
        for setting, value in (("idle_in_transaction_session_timeout", "15s"), ("lock_timeout", "10s")):
            assert tx.execute(sa.text(f"SHOW {setting}")).scalar_one() == value
        lock(tx, job_id)
        with pytest.raises(StoreUnavailable, match="lock timeout"):
            lock_in_another(store, job_id)


def lock_in_another(store: JobStore, job_id: str) -> None:
    """Ask for a job's lock in another session, with less patience than usual."""
    with store.database.writing() as tx:
        tx.execute(sa.text("SET LOCAL lock_timeout = '50ms'"))
        lock(tx, job_id)


def test_giving_a_job_back_counts_no_failure_and_needs_no_backoff(store: JobStore) -> None:
    job_id = submitted(store, limits={"max_attempts": 1})
    for _ in range(3):
        store.release(claimed(store))
    lease = claimed(store)
    assert (lease.attempt, lease.failures) == (4, 0)
    document = store.get(job_id)
    assert document is not None
    assert [attempt["outcome"] for attempt in document["attempts"]] == ["preempted"] * 3 + [None]


def test_a_failure_that_no_retry_can_mend_is_final(store: JobStore) -> None:
    job_id = submitted(store)
    store.fail(claimed(store), FailureCode.EMPTY_MESH, "nothing above the iso level\0\ud800" + "x" * 9_000)
    document = store.get(job_id)
    assert document is not None
    assert (document["status"], document["error"]["code"]) == ("failed", "empty-mesh")
    assert document["error"]["detail"].startswith("nothing above the iso level�\\ud800x")
    assert len(document["error"]["detail"]) == 2_000
    assert tally(store, "invalid_meshes") == 1


def test_a_queued_job_past_its_deadline_fails_and_a_running_one_is_told(
    store: JobStore, clock: FakeClock
) -> None:
    running = submitted(store, limits={"deadline_s": 100})
    lease = claimed(store)
    assert (lease.job_id, lease.deadline_in_s) == (running, 100)
    waiting = submitted(store, limits={"deadline_s": 50})
    clock.advance(101)
    assert store.report(lease, stage=Stage.COARSE, step=1, steps_total=300).deadline_passed
    assert store.claim("worker-2") is None
    store.fail(lease, FailureCode.DEADLINE_EXCEEDED, "not done in time")
    for job_id in (running, waiting):
        document = store.get(job_id)
        assert document is not None
        assert document["error"]["code"] == "deadline-exceeded"


# ---- canceling


def test_a_queued_job_is_canceled_at_once(store: JobStore) -> None:
    job_id = submitted(store)
    document = store.cancel(job_id)
    assert document is not None
    assert (document["status"], document["cancel_requested"]) == ("canceled", True)
    assert store.claim("worker-1") is None
    assert types_of(store, job_id) == ["queued", "canceled"]


def test_a_running_job_is_canceled_by_its_worker(store: JobStore) -> None:
    job_id = submitted(store)
    lease = claimed(store)
    assert not store.report(lease, stage=Stage.COARSE, step=1, steps_total=300).cancel_requested
    assert (store.cancel(job_id) or {})["status"] == "canceling"
    assert store.report(lease, stage=Stage.COARSE, step=2, steps_total=300).cancel_requested
    store.cancel_confirmed(lease)
    document = store.cancel(job_id)
    assert document is not None
    assert (document["status"], document["attempts"][0]["outcome"]) == ("canceled", "canceled")


@pytest.mark.parametrize("end", ["lost", "failed", "released", "expired"])
def test_a_job_that_is_being_canceled_is_not_run_again(store: JobStore, clock: FakeClock, end: str) -> None:
    job_id = submitted(store)
    lease = claimed(store)
    store.cancel(job_id)
    match end:
        case "lost":
            store.worker_lost("worker-1")
        case "failed":
            store.fail(lease, FailureCode.NAN_DIVERGENCE, "nan")
        case "released":
            store.release(lease)
        case _:
            clock.advance(61)
            store.sweep()
    assert status(store, job_id) == "canceled"


def test_a_result_that_is_there_before_the_cancel_arrives_counts(store: JobStore) -> None:
    job_id = submitted(store)
    lease = claimed(store)
    store.cancel(job_id)
    store.finish(lease, result_of(), ARTIFACTS)
    assert status(store, job_id) == "succeeded"


def test_canceling_what_never_existed_is_none(store: JobStore) -> None:
    assert store.cancel("job_00000000000000000000000000") is None
    assert store.get("job_00000000000000000000000000") is None
    assert store.events("job_00000000000000000000000000") == []


# ---- progress and events


def test_progress_is_truthful(store: JobStore) -> None:
    job_id = submitted(store)
    lease = claimed(store)
    store.report(lease, stage=Stage.COARSE, step=100, steps_total=300, steps_per_s=10.0)
    document = store.get(job_id)
    assert document is not None
    assert document["stage"] == "coarse"
    assert document["progress"] == {
        "fraction": 0.32, "step": 100, "steps_total": 300, "steps_per_s": 10.0, "eta_s": 20.0,
    }  # fmt: skip
    assert document["queue"] is None
    store.report(lease, stage=Stage.EXPORT, step=300, steps_total=300)
    store.finish(lease, result_of(), ARTIFACTS)
    document = store.get(job_id)
    assert document is not None
    assert (document["stage"], document["progress"]["fraction"]) == (None, 1.0)


def test_events_are_complete_ordered_and_read_without_loss_or_repetition(store: JobStore) -> None:
    job_id = submitted(store)
    lease = claimed(store)
    warning = {"code": "unknown-words", "detail": "the prior does not know 'fluffy'"}
    for _ in range(2):
        store.report(lease, stage=Stage.COARSE, step=1, steps_total=300, warnings=[warning])
    scores = [ScorePoint(300, ("embedded-multiview", 0.5), None)]
    store.report(lease, stage=Stage.EXPORT, step=300, steps_total=300, scores=scores)
    store.finish(lease, result_of(), ARTIFACTS)
    events = store.events(job_id)
    assert [event["type"].removeprefix("job.") for event in events] == [
        "queued", "started", "stage", "progress", "warning", "stage", "score", "artifact", "artifact", "succeeded",
    ]  # fmt: skip
    assert [event["id"] for event in events] == list(range(1, 11))
    read, after = [], 0
    while page := store.events(job_id, after=after, limit=3):
        read += page
        after = page[-1]["id"]
    assert read == events
    document = store.get(job_id)
    assert document is not None
    assert document["warnings"] == [warning]


def scored(step: int, reward: float, referee: float) -> ScorePoint:
    return ScorePoint(step, ("embedded-multiview", reward), ("embedded-alignment", referee))


def test_both_series_of_scores_are_kept_per_checkpoint_in_document_and_events(store: JobStore) -> None:
    job_id = submitted(store)
    lease = claimed(store)
    points = [scored(10, 0.1, 0.3), scored(20, 0.2, 0.4)]
    for _ in range(2):  # its answer may have got lost
        store.report(lease, stage=Stage.COARSE, step=20, steps_total=300, scores=points)
    last = ScorePoint(300, None, ("embedded-alignment", 0.5))
    store.finish(lease, result_of(), ARTIFACTS, [points[1], last])
    document = store.get(job_id)
    assert document is not None
    assert document["score_series"] == [point.document() for point in (*points, last)]
    assert document["score_series"][0] == {
        "step": 10,
        "reward": {"name": "embedded-multiview", "score": 0.1},
        "referee": {"name": "embedded-alignment", "score": 0.3},
    }
    assert document["score_series"][2]["reward"] is None
    told = [event["data"] for event in store.events(job_id) if event["type"] == "job.score"]
    assert told == document["score_series"]
    (listed,), _ = store.list_jobs()
    assert listed == document


def test_steps_that_are_done_again_replace_their_scores(store: JobStore) -> None:
    job_id = submitted(store)
    first = [scored(step, 0.1 * step, 0.5) for step in (1, 2, 3)]
    lease = claimed(store)
    store.report(lease, stage=Stage.COARSE, step=3, steps_total=300, scores=first)
    store.release(lease)
    again = scored(2, 0.7, 0.7)
    store.report(claimed(store, "worker-2"), stage=Stage.COARSE, step=2, steps_total=300, scores=[again])
    document = store.get(job_id)
    assert document is not None
    assert document["score_series"] == [first[0].document(), again.document()]
    assert types_of(store, job_id).count("score") == 4, "the log forgets nothing"


def test_progress_events_are_thinned_without_a_gap(store: JobStore, clock: FakeClock) -> None:
    job_id = submitted(store)
    lease = claimed(store)
    for step in range(1, 101):
        clock.advance(0.25)
        store.report(lease, stage=Stage.COARSE, step=step, steps_total=100)
    events = store.events(job_id)
    kept = [event["data"]["step"] for event in events if event["type"] == "job.progress"]
    assert kept == list(range(1, 101, 4))
    assert [event["id"] for event in events] == list(range(1, len(events) + 1))


@pytest.mark.parametrize("days", [0.001, 0.04, 1, 7, 60])
def test_at_most_500_progress_events_are_kept_however_long_a_job_runs(days: float) -> None:
    kept: list[float] = []
    now = 0.0
    while now < days * 86_400:
        if progress_is_due(now, 0.0, kept[-1] if kept else None, len(kept)):
            kept.append(now)
        now += 0.5 if now < 5_000 else 20
    assert len(kept) <= 500
    assert all(later - earlier >= 1 for earlier, later in itertools.pairwise(kept))
    if days <= 7:
        assert days * 86_400 - kept[-1] <= max(1.5, 0.03 * days * 86_400)


# ---- lists


def test_lists_are_filtered_and_paged(store: JobStore, clock: FakeClock) -> None:
    ids = []
    for n in range(5):
        ids.append(
            submitted(store, method="dreamdpo" if n % 2 else "sds", metadata={"batch.no": str(n // 2)})
        )
        clock.advance(1)
    claimed(store)

    def page(**filters: object) -> list[str]:
        return [document["id"] for document in store.list_jobs(**filters)[0]]  # type: ignore[arg-type]

    assert page() == ids[::-1]
    assert page(status=JobState.RUNNING) == [ids[0]]
    assert page(method="dreamdpo") == [ids[3], ids[1]]
    assert page(metadata={"batch.no": "1"}) == [ids[3], ids[2]]
    assert page(metadata={"other": "1"}) == []
    seen, cursor = [], None
    while True:
        documents, cursor = store.list_jobs(limit=2, cursor=cursor)
        seen += [document["id"] for document in documents]
        if cursor is None:
            break
    assert seen == ids[::-1]


def test_a_waiting_time_is_told_once_there_is_experience(store: JobStore, clock: FakeClock) -> None:
    first = submitted(store)
    assert (store.get(first) or {})["queue"] == {"reason": "scaling_up", "position": 1, "eta_s": None}
    store.heartbeat("worker-1", slots=1)
    assert (store.get(first) or {})["queue"] == {
        "reason": "waiting_for_turn",
        "position": 1,
        "eta_s": [0.0, 1.0],
    }
    lease = claimed(store)
    clock.advance(30)
    store.finish(lease, result_of(), ARTIFACTS)
    ids = []
    for _ in range(3):
        ids.append(submitted(store))
        clock.advance(1)
    queues = [(store.get(job_id) or {})["queue"]["eta_s"] for job_id in ids]
    assert queues == [[0.0, 1.0], [0.0, 30.0], [30.0, 60.0]]


# ---- the fleet


def test_capabilities_are_united_and_outlive_the_last_worker(store: JobStore, clock: FakeClock) -> None:
    def known() -> tuple[set[str], int, float]:
        now = store.known_capabilities()
        assert now is not None
        return set(now.capabilities.priors), now.num_live, now.seen_at

    assert store.capabilities() is None
    store.publish_capabilities("worker-1", embedded_capabilities(), ttl_s=60)
    clock.advance(30)
    store.publish_capabilities(
        "worker-2", Capabilities(priors={"mvdream": PartFacts(license="MIT")}), ttl_s=60
    )
    both = store.capabilities()
    assert both is not None
    assert set(both.priors) == {"embedded", "mvdream"}
    clock.advance(40)
    one = store.capabilities()
    assert one is not None
    assert set(one.priors) == {"mvdream"}
    store.retire("worker-2")
    store.retire("worker-2")
    assert known() == ({"embedded", "mvdream"}, 0, clock.now), "as they were when anybody last spoke"
    retired_at = clock.now
    clock.advance(7 * 86_400)
    assert known()[1:] == (0, retired_at)
    store.publish_capabilities("worker-3", embedded_capabilities(), ttl_s=60)
    assert known() == ({"embedded"}, 1, clock.now)
    store.worker_lost("worker-3")
    clock.advance(5)
    assert known() == ({"embedded"}, 0, clock.now - 5)


def test_the_snapshot_counts_what_is_there(store: JobStore, clock: FakeClock) -> None:
    submitted(store)
    clock.advance(5)
    submitted(store)
    claimed(store)
    store.heartbeat("worker-1", state="busy", slots=2, busy_slots=1)
    store.heartbeat("worker-1", state="draining", slots=2, busy_slots=1)
    store.heartbeat("worker-2", state="idle", slots=2)
    store.add_worker_seconds("worker-1", {"optimizing": 2.5, "idle": 1.0})
    store.add_worker_seconds("worker-2", {"optimizing": 0.5})
    clock.advance(5)
    seen = store.snapshot()
    assert (seen.jobs[JobState.QUEUED], seen.jobs[JobState.RUNNING]) == (1, 1)
    assert seen.workers == {"draining": 1, "idle": 1}
    assert (seen.slots, seen.busy_slots, seen.oldest_queued_s) == (2, 0, 5.0)
    assert tally(store, "worker_seconds", use="optimizing") == 3.0


# ---- the database itself


def test_leases_are_measured_by_the_databases_own_clock(database_url: str) -> None:
    store = JobStore(database_url)
    submitted(store)
    lease = claimed(store, lease_s=0.05)
    assert abs(lease.deadline_in_s - 3_600) < 60
    waiting = threading.Event()
    for _ in range(100):
        if store.sweep():
            break
        waiting.wait(0.02)
    with pytest.raises(StaleLease):
        store.release(lease)
    store.close()


def test_many_processes_may_open_an_empty_database_at_once(database_url: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        stores = list(pool.map(lambda _: JobStore(database_url), range(4)))
    for store in stores:
        store.ping()
        store.close()


def test_not_a_number_is_refused_before_it_reaches_the_database(store: JobStore) -> None:
    job_id = submitted(store)
    lease = claimed(store)
    with pytest.raises((sa.exc.StatementError, ValueError), match="not JSON compliant"):
        store.finish(lease, {**result_of(), "mesh": {"agreement": float("nan")}}, ())
    assert status(store, job_id) == "running"


def test_a_database_that_is_away_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreUnavailable, match="cannot make the folder") as caught:
        JobStore(f"sqlite:///{tmp_path / 'file' / 'jobs.sqlite3'}")
    assert caught.value.dependency == "database"
    with pytest.raises(StoreUnavailable, match="did not answer"):
        JobStore(f"postgresql://nobody@/jobs?host={tmp_path}").get("job_01ARZ3NDEKTSV4RRFFQ69G5FAV")


@pytest.mark.parametrize("url", ["mysql://host/name", "sqlite://", "sqlite:///:memory:"])
def test_a_database_that_cannot_be_used_is_refused_with_the_reason(url: str) -> None:
    with pytest.raises(ValueError, match="sqlite:///FILE"):
        JobStore(url)


def test_a_store_may_start_before_its_database_and_works_as_soon_as_it_is_there(tmp_path: Path) -> None:
    place = tmp_path / "jobs.sqlite3"
    place.mkdir()
    store = JobStore(f"sqlite:///{place}")
    with pytest.raises(StoreUnavailable):
        store.get("job_01ARZ3NDEKTSV4RRFFQ69G5FAV")
    place.rmdir()
    assert store.get("job_01ARZ3NDEKTSV4RRFFQ69G5FAV") is None
    store.close()
