from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from service.jobs.series import ScorePoint
from service.jobs.states import FailureCode, Stage, StaleLease
from service.jobs.store import JobStore
from service.metrics import render_metrics
from tests.unit.service.jobs.job_samples import ARTIFACTS, FakeClock, checkpoint, claimed, result_of, spec_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from service.jobs.states import Lease


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def jobs(tmp_path: Path, clock: FakeClock) -> Iterator[JobStore]:
    store = JobStore(f"sqlite:///{tmp_path / 'metrics.sqlite3'}", clock=clock)
    yield store
    store.close()


def samples(store: JobStore) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """All samples of a scrape, after the rules that `promtool check metrics` knows."""
    found: dict[Any, float] = {}
    for family in text_string_to_metric_families(render_metrics(store, slots_per_worker=2).decode()):
        assert family.name.startswith("dreamserve_")
        assert family.documentation.endswith(".")
        assert family.type in ("gauge", "counter", "histogram")
        for sample in family.samples:
            assert sample.name.endswith("_total") == (family.type == "counter"), sample.name
            key = (sample.name.removeprefix("dreamserve_"), frozenset(sample.labels.items()))
            assert key not in found, f"{key} twice"
            found[key] = sample.value
    return found


def value(store: JobStore, name: str, **labels: str) -> float:
    return samples(store)[name, frozenset(labels.items())]


def test_an_empty_store_tells_every_metric_at_zero(jobs: JobStore) -> None:
    found = samples(jobs)
    assert found["jobs_submitted_total", frozenset()] == 0
    assert found["jobs", frozenset({("state", "queued")})] == 0
    assert found["workers", frozenset({("state", "idle")})] == 0
    assert found["queue_time_seconds_count", frozenset()] == 0


def test_the_metrics_agree_with_what_happened(jobs: JobStore, clock: FakeClock) -> None:
    for _ in range(3):
        jobs.submit(spec_of(method="dreamdpo"))
        clock.advance(1)
    jobs.heartbeat("worker-1", state="busy", slots=2, busy_slots=1)
    lease = claimed(jobs)
    jobs.report(lease, stage=Stage.COARSE, step=40, steps_total=300, checkpoint=checkpoint(40))
    clock.advance(20)
    jobs.report(lease, stage=Stage.EXPORT, step=300, steps_total=300)
    jobs.finish(lease, result_of(), ARTIFACTS)
    with pytest.raises(StaleLease):
        jobs.release(lease)
    jobs.fail(claimed(jobs), FailureCode.EMPTY_MESH, "empty")
    jobs.add_worker_seconds("worker-1", {"optimizing": 20.0, "idle": 3.0})

    assert value(jobs, "jobs_submitted_total") == 3
    assert value(jobs, "jobs_finished_total", method="dreamdpo", outcome="succeeded") == 1
    assert value(jobs, "jobs_finished_total", method="dreamdpo", outcome="empty-mesh") == 1
    assert value(jobs, "jobs", state="queued") == value(jobs, "queue_depth") == 1
    assert value(jobs, "queue_oldest_age_seconds") == 21
    assert value(jobs, "wanted_workers") == 1
    assert value(jobs, "workers", state="busy") == 1
    assert (value(jobs, "scene_slots"), value(jobs, "scene_slots_busy")) == (2, 1)
    assert value(jobs, "worker_seconds_total", use="optimizing") == 20
    assert value(jobs, "optimizer_steps_total") == 300
    assert value(jobs, "checkpoints_total") == 1
    assert value(jobs, "fenced_writes_total") == 1
    assert value(jobs, "invalid_meshes_total") == 1
    assert value(jobs, "artifact_bytes_total", kind="glb") == 2_048
    assert value(jobs, "run_time_seconds_count", method="dreamdpo") == 2
    assert value(jobs, "stage_duration_seconds_sum", stage="coarse") == 20
    assert value(jobs, "reward_score_count", reward="embedded-multiview") == 1
    assert value(jobs, "reward_score_sum", reward="embedded-multiview") == 0.8
    assert value(jobs, "reward_score_bucket", reward="embedded-multiview", le="0.7") == 0
    assert value(jobs, "reward_score_bucket", reward="embedded-multiview", le="0.8") == 1
    assert value(jobs, "referee_score_count", reward="embedded-alignment") == 1
    assert value(jobs, "mesh_faces_sum") == 9_000
    assert value(jobs, "mesh_agreement_ratio_bucket", le="0.975") == 1


def test_a_reward_that_rises_while_its_referee_falls_shows_as_divergence(
    jobs: JobStore, clock: FakeClock
) -> None:
    names = {"reward": "embedded-multiview", "referee": "embedded-alignment"}
    gauge = ("referee_divergence_ratio", frozenset(names.items()))

    def run(*scores: tuple[float, float]) -> Lease:
        jobs.submit(spec_of())
        lease = claimed(jobs)
        points = [
            ScorePoint(step, (names["reward"], reward), (names["referee"], referee))
            for step, (reward, referee) in enumerate(scores)
        ]
        jobs.report(lease, stage=Stage.COARSE, step=10, steps_total=300, scores=points)
        return lease

    run((0.5, 0.5))
    assert gauge not in samples(jobs), "one checkpoint shows nothing"
    run((0.1, 0.1), (0.2, 0.2), (0.3, 0.3))
    assert samples(jobs)[gauge] == 0
    hacked = run((0.1, 0.1), (0.2, 0.6), (0.4, 0.9), (0.9, 0.0), (0.3, 0.5))
    # The reward finds 0.1 and 0.2 worse than the newest 0.3; of these the referee finds the second better.
    assert samples(jobs)[gauge] == pytest.approx((0 + 1 / 2) / 2)
    jobs.finish(
        hacked, result_of(), ARTIFACTS, [ScorePoint(300, (names["reward"], 1.0), (names["referee"], 0.0))]
    )
    assert samples(jobs)[gauge] == pytest.approx((0 + 4 / 5) / 2)
    clock.advance(3_601)
    assert samples(jobs)[gauge] == 0, "jobs that ended long ago do not count"


def test_histograms_are_cumulative(jobs: JobStore, clock: FakeClock) -> None:
    for waited_s in (0.1, 3, 3, 100_000):
        jobs.submit(spec_of(limits={"deadline_s": 200_000}))
        clock.advance(waited_s)
        jobs.finish(claimed(jobs), result_of(), ARTIFACTS)
    assert value(jobs, "queue_time_seconds_bucket", le="0.5") == 1
    assert value(jobs, "queue_time_seconds_bucket", le="5.0") == 3
    assert value(jobs, "queue_time_seconds_bucket", le="+Inf") == value(jobs, "queue_time_seconds_count") == 4


def test_waiting_jobs_want_workers_when_there_are_none(jobs: JobStore) -> None:
    for _ in range(5):
        jobs.submit(spec_of())
    assert value(jobs, "wanted_workers") == 3


def test_no_label_carries_a_users_text(jobs: JobStore) -> None:
    document, _ = jobs.submit(spec_of(prompt="a very secret teapot", metadata={"k": "teapot"}))
    claimed(jobs)
    text = render_metrics(jobs).decode()
    assert "teapot" not in text
    assert document["id"] not in text
