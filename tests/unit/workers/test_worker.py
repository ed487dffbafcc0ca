"""A worker's life on real stores: what it publishes, how jobs end, and what it counts."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from service.jobs.errors import StoreUnavailable
from tests.unit.workers.small_scenes import TinyReward
from tests.unit.workers.small_workers import Service, Watched, small_networks
from workers.contracts import Ask
from workers.fields.voxel import VoxelField

if TYPE_CHECKING:
    from pathlib import Path

LONG = 20_000
"""Steps of a job that does not end by itself within a test."""


@pytest.fixture
def service(tmp_path: Path) -> Service:
    return Service(tmp_path)


def is_running(service: Service, job_id: str, step: int = 1) -> bool:
    job = service.job(job_id)
    return job["status"] == "running" and (job["progress"] or {"step": 0})["step"] >= step


@pytest.mark.parametrize("method", ["sds", "dreamfl", "dreamdpo", "psd"])
def test_a_prompt_becomes_a_checked_mesh_with_its_scores_and_origin(service: Service, method: str) -> None:
    (job,) = service.finish(service.submit(method=method, outputs={"turntable": True}))
    assert job["status"] == "succeeded", job["error"]
    result = job["result"]
    assert [one["kind"] for one in result["artifacts"]] == ["glb", "thumbnail", "turntable", "report"]
    for document in result["artifacts"]:
        described, key = service.store.artifact(document["id"])
        assert hashlib.sha256(service.objects.get(key)).hexdigest() == described["sha256"]
    assert result["mesh"]["watertight"]
    (candidate,) = result["candidates"]
    assert candidate["scores"].keys() == {"embedded-multiview"}
    assert result["provenance"]["seed"] == 7
    assert result["provenance"]["weights"]["prior"].startswith("sha256:")
    assert "this one had them" in result["provenance"]["determinism"]
    assert job["progress"]["step"] == 30
    (attempt,) = job["attempts"]
    assert attempt["outcome"] == "succeeded"


def test_every_format_asked_for_is_written_and_the_report_tells_the_same_as_the_row(service: Service) -> None:
    mesh = {"target_faces": 300, "texture_px": 64, "formats": ["stl", "obj", "ply"]}
    (job,) = service.finish(service.submit(mesh=mesh, steps=5))
    kinds = {one["kind"]: one["id"] for one in job["result"]["artifacts"]}
    assert list(kinds) == ["glb", "stl", "obj", "ply", "report"]
    _, key = service.store.artifact(kinds["report"])
    report = json.loads(service.objects.get(key))
    assert report["spec"] == job["spec"]
    assert report["mesh"] == job["result"]["mesh"]


def test_a_job_is_exported_beside_the_steps_of_the_next_one(tmp_path: Path) -> None:
    service = Service(tmp_path, slots_per_worker=1)
    first, second, third = (service.submit(steps=steps) for steps in (5, LONG, 5))
    may_upload = threading.Event()

    class Held(Watched):
        """Takes the first job's mesh only when it is allowed to."""

        def put(self, key: str, data: bytes, *rest: Any, **more: Any) -> Any:
            if first in key and key.endswith(".glb"):
                may_upload.wait(30)
            return service.objects.put(key, data, *rest, **more)

    seen: list[str] = []

    def next_one_steps() -> bool:
        if not seen and is_running(service, second, step=20):
            seen[:] = [service.job(one)["stage"] or service.job(one)["status"] for one in (first, third)]
            may_upload.set()
        return service.job(first)["status"] == "succeeded"

    service.run_until(next_one_steps, service.worker(objects=Held(service.objects)))
    exporting, waiting = seen
    assert exporting in ("export", "verify", "upload")
    assert waiting == "queued", "there is one slot, and one export at a time"
    assert service.job(second)["status"] == "queued", "given back by the drain"


def test_stages_are_told_in_their_order(service: Service) -> None:
    job_id = service.submit()
    service.finish(job_id)
    stages = [one["data"]["stage"] for one in service.store.events(job_id) if one["type"] == "job.stage"]
    order = ["coarse", "refine", "export", "verify", "upload"]
    # A stage that passes between two reports may be missed; none comes out of turn.
    assert stages == [stage for stage in order if stage in stages]
    assert stages[-1] == "upload" or "export" in stages


def test_a_preview_is_the_priors_views_without_a_mesh(service: Service) -> None:
    (job,) = service.finish(service.submit(effort="preview", steps=None))
    assert job["status"] == "succeeded", job["error"]
    assert [one["kind"] for one in job["result"]["artifacts"]] == ["preview", "report"]
    assert job["result"]["mesh"] is None


def test_words_without_meaning_and_the_end_of_a_long_prompt_are_named(service: Service) -> None:
    (job,) = service.finish(service.submit("red zorblax red red frobnicate red", steps=5))
    warnings = {one["code"]: one["detail"] for one in job["warnings"]}
    assert warnings.keys() >= {"unknown-words", "prompt-truncated"}
    assert warnings["unknown-words"].endswith("zorblax, frobnicate")


def test_scenes_share_the_worker_and_one_that_diverges_ends_alone(service: Service) -> None:
    good, bad = service.finish(service.submit(), service.submit("supernova"))
    assert good["status"] == "succeeded"
    assert "this one shared batches" in good["result"]["provenance"]["determinism"]
    assert bad["status"] == "failed"
    assert bad["error"]["code"] == "nan-divergence"
    assert not bad["error"]["retryable"]


def test_a_field_without_an_object_fails_as_empty_mesh(service: Service) -> None:
    def nothing(device: Any) -> VoxelField:
        field = VoxelField(coarse=12, fine=20, device=device)
        field.raw_density.data.fill_(-30)
        return field

    worker = service.worker(load=lambda: small_networks(nothing))
    (job,) = service.finish(service.submit(steps=2), workers=(worker,))
    assert job["error"]["code"] == "empty-mesh"


def test_memory_that_runs_out_is_tried_again_and_counted_as_a_failure(tmp_path: Path) -> None:
    service = Service(tmp_path, checkpoint_interval_s=1000)  # the third score is a step's, not a checkpoint's

    class Hungry(TinyReward):
        num_calls = 0

        def score(self, *arguments: Any) -> Ask[Any]:
            def call(*_: Any) -> Any:
                Hungry.num_calls += 1
                if Hungry.num_calls == 3:
                    raise MemoryError
                return TinyReward.score(self, *arguments).now()

            return Ask("score", self, call, arguments)

    worker = service.worker(load=lambda: small_networks(reward=Hungry()))
    (job,) = service.finish(service.submit(method="dreamdpo"), workers=(worker,))
    assert job["status"] == "succeeded", job["error"]
    assert [one["outcome"] for one in job["attempts"]] == ["oom", "succeeded"]
    assert job["failures"] == 1


def test_an_unforeseen_error_fails_the_job_only_and_names_itself(service: Service) -> None:
    def broken(device: Any) -> VoxelField:
        raise ZeroDivisionError("one scene's bug")

    worker = service.worker(load=lambda: small_networks(broken))
    first, second = service.finish(service.submit(), service.submit(), workers=(worker,))
    for job in (first, second):
        assert job["error"]["code"] == "internal"
        assert "ZeroDivisionError: one scene's bug" in job["error"]["detail"]


def test_a_running_job_is_canceled_soon(service: Service) -> None:
    job_id = service.submit(steps=LONG)

    def canceled() -> bool:
        if is_running(service, job_id):
            service.store.cancel(job_id)
        return service.job(job_id)["status"] == "canceled"

    started = time.monotonic()
    service.run_until(canceled, service.worker())
    assert time.monotonic() - started < 15
    assert service.job(job_id)["result"] is None


def test_a_worker_that_is_to_end_when_idle_finishes_what_it_has(service: Service) -> None:
    job_id = service.submit(steps=LONG)
    worker = service.worker()
    living = threading.Thread(target=worker.run)
    living.start()
    while not service.job(job_id)["progress"]:
        time.sleep(0.02)
    assert service.store.wanted_slots() == 1
    worker.end_when_idle()
    living.join(0.5)
    assert living.is_alive(), "it is busy"
    service.store.cancel(job_id)
    living.join(30)
    assert not living.is_alive()
    assert service.job(job_id)["status"] == "canceled"
    assert service.store.wanted_slots() == 0


def test_a_deadline_that_passes_ends_the_job(service: Service) -> None:
    (job,) = service.finish(service.submit(steps=LONG, limits={"deadline_s": 1.0}))
    assert job["error"]["code"] == "deadline-exceeded"


def test_an_upload_that_fails_for_a_while_is_repeated(service: Service) -> None:
    outages = iter([True, False, True])

    def fail(name: str) -> None:
        if name == "put" and next(outages, False):
            raise StoreUnavailable("objects", "gone for a moment")

    worker = service.worker(objects=Watched(service.objects, before=fail))
    (job,) = service.finish(service.submit(steps=3), workers=(worker,))
    assert job["status"] == "succeeded"
    assert len(job["attempts"]) == 1


def test_a_worker_that_cannot_renew_drops_its_scene_before_its_lease_runs_out(tmp_path: Path) -> None:
    service = Service(tmp_path, lease_s=1.0, checkpoint_interval_s=100)
    job_id = service.submit(steps=LONG)
    silenced = time.monotonic() + 1e9

    def fail(name: str) -> None:
        if name in ("report", "claim", "fail", "release") and time.monotonic() > silenced:
            raise StoreUnavailable("database", "unplugged")

    worker = service.worker(store=Watched(service.store, before=fail))

    def dropped() -> bool:
        nonlocal silenced
        if silenced > 1e8 and is_running(service, job_id):
            silenced = time.monotonic()
        return time.monotonic() > silenced + 1.0 and not worker.attempts

    service.run_until(dropped, worker)
    service.store.sweep()
    assert service.job(job_id)["status"] == "queued"


def test_a_worker_declared_lost_writes_nothing_more_and_the_next_one_ends_the_job(service: Service) -> None:
    job_id = service.submit(steps=150)
    first, second = service.worker("first"), service.worker("second")
    declared: list[str] = []

    def taken_over() -> bool:
        if not declared and is_running(service, job_id, step=20):
            declared.extend(service.store.worker_lost("first"))
        return bool(declared) and not first.attempts

    service.run_until(taken_over, first)
    assert declared == [job_id]
    (job,) = service.finish(job_id, workers=(second,))
    assert [(one["worker"], one["outcome"]) for one in job["attempts"]] == [
        ("first", "worker_lost"),
        ("second", "succeeded"),
    ]
    assert len([one for one in job["result"]["artifacts"] if one["kind"] == "glb"]) == 1


def test_every_second_of_a_held_worker_is_counted_in_one_use(tmp_path: Path) -> None:
    service = Service(tmp_path, checkpoint_interval_s=60)  # so that steps are redone
    counted: dict[str, float] = {}
    real = service.store.add_worker_seconds

    class Counting(Watched):
        def add_worker_seconds(self, worker: str, seconds: dict[str, float]) -> None:
            for use, amount in seconds.items():
                counted[use] = counted.get(use, 0.0) + amount
            real(worker, seconds)

    job_id = service.submit(steps=150)
    taken_back: list[str] = []

    def ended() -> bool:
        if not taken_back and is_running(service, job_id, step=100):
            taken_back.extend(service.store.worker_lost("w"))
        return service.job(job_id)["status"] == "succeeded"

    worker = service.worker(store=Counting(service.store))
    held_s = time.monotonic()
    service.run_until(ended, worker)
    held_s = time.monotonic() - held_s
    assert sum(counted.values()) == pytest.approx(held_s, rel=0.02, abs=0.05)
    assert min(counted["optimizing"], counted["exporting"], counted["loading"], counted["redone"]) > 0
