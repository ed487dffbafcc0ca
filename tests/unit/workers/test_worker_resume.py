"""What a job keeps when its worker goes: checkpoints, the same bits at the end, and one result."""

from __future__ import annotations

import functools
import hashlib
import multiprocessing
import os
import random
import signal
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from service.jobs.objects import checkpoint_key
from service.jobs.tallies import Total
from tests import waiting
from tests.unit.workers.small_workers import Service, Watched

if TYPE_CHECKING:
    from pathlib import Path

STEPS = 60
KILLED = 137
LONG = 300
LEASE_S, SLACK_S = 2.0, 15.0
"""A short lease, and how late a busy machine may look whether it has run out."""
NUM_KILLS, NUM_KILLED_JOBS = 50, 4
wait_until = functools.partial(waiting.wait_until, timeout_s=60, every_s=0.02)


def undisturbed_field(folder: Path, steps: int = STEPS, **fields: Any) -> str:
    """The digest of the final field of a job that nothing happens to."""
    service = Service(folder)
    (job,) = service.finish(service.submit(steps=steps, **fields))
    return str(job["result"]["provenance"]["field_sha256"])


def live_until_killed(folder: Path, hop: str, count: int, after: bool) -> None:
    """Be a worker process that dies like one that is killed: at the `count`-th call of `hop`, before or after it."""
    service = Service(folder)
    calls = 0

    def die(name: str) -> None:
        nonlocal calls
        calls += name == hop
        if name == hop and calls == count:
            os._exit(KILLED)

    hook = {"after" if after else "before": die}
    store, objects = Watched(service.store, **hook), Watched(service.objects, **hook)
    service.worker("doomed", store=store, objects=objects).run()


def kill_a_worker_at(folder: Path, hop: str, count: int = 1, *, after: bool = False) -> None:
    """Let a worker process live until it is killed at this hop."""
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload([__name__, "torch.optim.adam", "torch._dynamo"])
    # A daemon: one that never met its hop must not keep the tests from ending.
    process = processes.Process(target=live_until_killed, args=(folder, hop, count, after), daemon=True)
    process.start()
    process.join(60)
    assert process.exitcode == KILLED, f"the worker met no call {count} of {hop}"


def succeeded_once(service: Service, job_id: str) -> dict[str, Any]:
    """Let a new worker end the job; check that there is one result, whole and stored."""
    service.store.worker_lost("doomed")
    (job,) = service.finish(job_id)
    assert job["status"] == "succeeded", job["error"]
    types = [event["type"] for event in service.store.events(job_id)]
    assert types.count("job.succeeded") == 1
    artifacts = service.store.artifacts(job_id)
    assert [one["kind"] for one in artifacts] == ["glb", "report"]
    for document in artifacts:
        _, key = service.store.artifact(document["id"])
        assert hashlib.sha256(service.objects.get(key)).hexdigest() == document["sha256"]
    assert [one["outcome"] for one in job["attempts"]][:-1] == ["worker_lost"] * (len(job["attempts"]) - 1)
    return job


HOPS = [
    ("claim", 1, True),
    ("report", 1, False),
    ("report", 4, True),
    ("put", 1, False),  # a checkpoint
    ("put", 1, True),
    ("put", 2, True),
    ("finish", 1, False),
]


@pytest.mark.slow
@pytest.mark.parametrize(("hop", "count", "after"), HOPS)
def test_a_worker_killed_between_any_two_hops_loses_nothing_and_doubles_nothing(
    tmp_path: Path, hop: str, count: int, after: bool
) -> None:
    service = Service(tmp_path)
    job_id = service.submit(steps=STEPS)
    kill_a_worker_at(tmp_path, hop, count, after=after)
    job = succeeded_once(service, job_id)
    assert len(job["attempts"]) == 2


def live(folder: Path, name: str, lease_s: float) -> None:
    """Be a worker process that lives until it is killed, with one job at a time."""
    service = Service(folder, lease_s=lease_s, slots_per_worker=1)
    service.worker(name).run()


def start_worker(folder: Path, name: str, lease_s: float = 60.0) -> multiprocessing.Process:
    """Start a worker as a process of its own."""
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload([__name__, "torch.optim.adam", "torch._dynamo"])
    process = processes.Process(target=live, args=(folder, name, lease_s), daemon=True)
    process.start()
    return process


@pytest.mark.slow
def test_a_worker_killed_at_fifty_random_times_loses_nothing_and_doubles_nothing(tmp_path: Path) -> None:
    expected = undisturbed_field(tmp_path / "calm", steps=LONG)
    service, chance = Service(tmp_path / "rough", slots_per_worker=1), random.Random(5)
    jobs = [service.submit(steps=LONG, limits={"max_attempts": 20}) for _ in range(NUM_KILLED_JOBS)]
    for number in range(NUM_KILLS):
        process = start_worker(tmp_path / "rough", f"doomed-{number}")
        process.join(chance.uniform(0.0, 1.5))
        process.kill()
        process.join()
        service.store.worker_lost(f"doomed-{number}")
    for job in service.finish(*jobs):
        assert job["status"] == "succeeded", job["error"]
        assert job["result"]["provenance"]["field_sha256"] == expected
        types = [event["type"] for event in service.store.events(job["id"])]
        assert types.count("job.succeeded") == 1
        assert [one["kind"] for one in service.store.artifacts(job["id"])].count("glb") == 1
        resumed = [one["resumed_from_step"] or 0 for one in job["attempts"]]
        assert resumed == sorted(resumed), "no attempt begins before the last checkpoint"
    killed = [
        one for job_id in jobs for one in service.job(job_id)["attempts"] if one["outcome"] == "worker_lost"
    ]
    assert len(killed) >= NUM_KILLS // 3, "most of the kills met a worker at work"


@pytest.mark.slow
def test_a_worker_frozen_past_its_lease_writes_nothing_more_when_it_thaws(tmp_path: Path) -> None:
    service = Service(tmp_path, lease_s=LEASE_S)
    job_id = service.submit(steps=LONG)
    frozen = start_worker(tmp_path, "frozen", lease_s=LEASE_S)
    wait_until(lambda: len(list(tmp_path.rglob("*.safetensors"))) > 1)  # so the row names the first
    assert frozen.pid is not None
    freeze_between_transactions(frozen.pid, tmp_path / "jobs.sqlite3")
    frozen_at = datetime.now(UTC)
    (job,) = service.finish(job_id)  # another one takes it over when the lease runs out
    os.kill(frozen.pid, signal.SIGCONT)
    wait_until(lambda: fenced_writes(service) > 0)
    frozen.kill()
    lost, resumed = job["attempts"]
    assert (lost["outcome"], resumed["outcome"]) == ("worker_lost", "succeeded")
    silent_s = (datetime.fromisoformat(lost["ended_at"]) - frozen_at).total_seconds()
    assert silent_s < LEASE_S + SLACK_S, "the lease bounds how long a frozen worker keeps its job"
    assert resumed["resumed_from_step"] > 0
    assert service.job(job_id) == job


def freeze_between_transactions(pid: int, database: Path) -> None:
    """Stop a process while it does not hold SQLite's one lock for writing: everybody else would wait for it."""

    def frozen() -> bool:
        os.kill(pid, signal.SIGSTOP)
        with closing(sqlite3.connect(database, timeout=0.5, isolation_level=None)) as connection:
            try:
                connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                os.kill(pid, signal.SIGCONT)
                return False
        return True

    wait_until(frozen)


def fenced_writes(service: Service) -> float:
    tallies = service.store.snapshot().tallies
    return sum(one.value for one in tallies if one.name == Total.FENCED_WRITES)


@pytest.mark.slow
def test_a_worker_killed_after_it_published_leaves_a_finished_job(tmp_path: Path) -> None:
    service = Service(tmp_path)
    job_id = service.submit(steps=5)
    kill_a_worker_at(tmp_path, "finish", after=True)
    job = succeeded_once(service, job_id)
    assert len(job["attempts"]) == 1


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sds", "dreamdpo", "psd"])
def test_a_killed_and_resumed_job_ends_with_the_same_bits(tmp_path: Path, method: str) -> None:
    expected = undisturbed_field(tmp_path / "calm", method=method)
    service = Service(tmp_path / "rough")
    job_id = service.submit(steps=STEPS, method=method)
    kill_a_worker_at(tmp_path / "rough", "put", 3)  # two checkpoints are stored by then
    job = succeeded_once(service, job_id)
    assert job["attempts"][1]["resumed_from_step"] > 0
    assert job["result"]["provenance"]["field_sha256"] == expected


def test_a_drained_worker_gives_its_job_back_where_it_was(tmp_path: Path) -> None:
    service = Service(tmp_path / "drained", checkpoint_interval_s=1000)
    job_id = service.submit(steps=STEPS)

    def under_way() -> bool:
        progress = service.job(job_id)["progress"]
        return bool(progress) and progress["step"] >= 10

    service.run_until(under_way, service.worker("drained"))
    job = service.job(job_id)
    assert job["status"] == "queued"
    assert job["failures"] == 0
    (job,) = service.finish(job_id)
    assert job["status"] == "succeeded"
    assert job["attempts"][1]["resumed_from_step"] >= 10
    assert job["result"]["provenance"]["field_sha256"] == undisturbed_field(tmp_path / "calm")


@pytest.mark.parametrize("damage", ["torn", "missing", "foreign"])
def test_a_checkpoint_that_is_not_whole_falls_back_to_the_one_before(tmp_path: Path, damage: str) -> None:
    service = Service(tmp_path)
    job_id = service.submit(steps=2_000)
    kept: list[Path] = []

    def two_checkpoints() -> bool:
        kept[:] = sorted(tmp_path.rglob("*.safetensors"))
        return len(kept) >= 2 and service.job(job_id)["progress"]["step"] >= 10

    first = service.worker("first")
    service.run_until(two_checkpoints, first)  # draining adds a last one
    lease = service.store.claim("reader")
    newest, before = lease.checkpoints
    service.store.release(lease)
    (path,) = [one for one in tmp_path.rglob("*.safetensors") if str(one).endswith(newest.key)]
    match damage:
        case "torn":
            path.write_bytes(path.read_bytes()[:1000])
        case "missing":
            path.unlink()
        case "foreign":
            path.write_bytes(b"not a checkpoint")

    def resumed() -> bool:
        attempts = service.job(job_id)["attempts"]
        return len(attempts) == 3 and attempts[2]["resumed_from_step"] == before.step

    service.run_until(resumed, service.worker("second"))


def test_no_checkpoint_outlives_its_job(tmp_path: Path) -> None:
    service = Service(tmp_path, checkpoint_interval_s=0.01)
    job_id = service.submit(steps=40)
    service.finish(job_id)
    assert not service.objects.head(checkpoint_key(job_id, 1, 40))
    assert not list(tmp_path.rglob("*.safetensors"))
