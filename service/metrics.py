"""What Prometheus reads: the store is asked at scrape time, so any replica tells the whole cluster's truth."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from service.jobs.states import FINAL, JobState
from service.jobs.tallies import BUCKETS, Histogram, Total

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.core import Metric

    from service.jobs.fleet import Snapshot
    from service.jobs.store import JobStore
    from service.jobs.tallies import Tally

__all__ = ["CONTENT_TYPE", "render_metrics"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_WORKER_STATES = ("starting", "idle", "busy", "draining")

_TOTALS: dict[Total, tuple[str, str, tuple[str, ...]]] = {
    Total.JOBS_SUBMITTED: ("jobs_submitted_total", "Jobs accepted.", ()),
    Total.JOBS_FINISHED: (
        "jobs_finished_total",
        "Jobs that ended, by method and outcome (succeeded, canceled, or the error's code).",
        ("method", "outcome"),
    ),
    Total.ATTEMPTS_FAILED: ("attempts_failed_total", "Attempts that ended early, by error code.", ("code",)),
    Total.STEPS: ("optimizer_steps_total", "Optimization steps of all scenes.", ()),
    Total.STEPS_REDONE: (
        "optimizer_steps_redone_total",
        "Of the optimization steps, those that an earlier attempt had done.",
        (),
    ),
    Total.WORKER_SECONDS: (
        "worker_seconds_total",
        "Wall time of held workers, each second in exactly one use.",
        ("use",),
    ),
    Total.CHECKPOINTS: ("checkpoints_total", "Checkpoints written.", ()),
    Total.CHECKPOINT_BYTES: ("checkpoint_bytes_total", "Bytes of the checkpoints written.", ()),
    Total.LEASES_EXPIRED: ("leases_expired_total", "Leases taken back because their worker fell silent.", ()),
    Total.FENCED_WRITES: ("fenced_writes_total", "Writes refused because the lease was no longer valid.", ()),
    Total.ARTIFACT_BYTES: ("artifact_bytes_total", "Bytes of published artifacts, by kind.", ("kind",)),
    Total.INVALID_MESHES: (
        "invalid_meshes_total",
        "Jobs that failed for an empty mesh or an invalid GLB.",
        (),
    ),
    Total.WEBHOOK_DELIVERIES: (
        "webhook_deliveries_total",
        "Tries to send a webhook, by outcome: delivered, retried (failed, to be sent again) or given_up.",
        ("outcome",),
    ),
}

_HISTOGRAMS: dict[Histogram, tuple[str, tuple[str, ...]]] = {
    Histogram.QUEUE_TIME: ("Time from submission to the first start.", ()),
    Histogram.RUN_TIME: ("Time from the first start to the end.", ("method",)),
    Histogram.STAGE_TIME: ("Time that attempts spent in a stage.", ("stage",)),
    Histogram.REWARD_SCORE: ("Scores of results by the rewards that steered them.", ("reward",)),
    Histogram.REFEREE_SCORE: ("Scores of results by rewards that did not steer them.", ("reward",)),
    Histogram.MESH_FACES: ("Faces of finished meshes.", ()),
    Histogram.MESH_AGREEMENT: ("Agreement of the mesh's renders with the field's, 0 to 1.", ()),
}


def render_metrics(store: JobStore, *, slots_per_worker: int = 1) -> bytes:
    """Write all metrics that the store knows, in Prometheus' text format; raise `StoreUnavailable`.

    `slots_per_worker` (the operator's setting) turns waiting jobs into wanted workers while no worker lives.
    """
    registry = CollectorRegistry()
    registry.register(_Families(store.snapshot(), slots_per_worker))
    return generate_latest(registry)


class _Families(Collector):
    """The metric families of one snapshot."""

    def __init__(self, snapshot: Snapshot, slots_per_worker: int) -> None:
        self._snapshot = snapshot
        self._slots_per_worker = slots_per_worker
        self._tallies: defaultdict[str, list[Tally]] = defaultdict(list)
        for tally in snapshot.tallies:
            self._tallies[tally.name].append(tally)

    def collect(self) -> Iterator[Metric]:
        """Yield every family: gauges, counters, histograms."""
        yield from self._gauges()
        for total, (name, about, labels) in _TOTALS.items():
            counter = CounterMetricFamily(f"dreamserve_{name}", about, labels=labels)
            tallies = self._tallies[total]
            for tally in tallies:
                counter.add_metric([tally.labels[label] for label in labels], tally.value)
            if not tallies and not labels:
                counter.add_metric([], 0.0)
            yield counter
        for histogram, (about, labels) in _HISTOGRAMS.items():
            yield self._histogram(histogram, about, labels)

    def _gauges(self) -> Iterator[Metric]:
        now = self._snapshot
        yield _by_label(
            "jobs", "Jobs by state.", "state", {state.value: num for state, num in now.jobs.items()}
        )
        yield _gauge("queue_depth", "Jobs waiting for a worker.", now.jobs[JobState.QUEUED])
        yield _gauge(
            "queue_oldest_age_seconds",
            "Time since the submission of the oldest queued job.",
            now.oldest_queued_s,
        )
        num_workers = sum(now.workers.values())
        per_worker = now.slots / num_workers if now.slots else self._slots_per_worker
        wanted_slots = sum(num for state, num in now.jobs.items() if state not in FINAL)
        wanted = math.ceil(wanted_slots / per_worker)
        yield _gauge("wanted_workers", "Workers that would run all queued and running jobs at once.", wanted)
        states = dict.fromkeys(_WORKER_STATES, 0) | now.workers
        yield _by_label("workers", "Live workers by state.", "state", states)
        yield _gauge("scene_slots", "Scenes that live workers can run together.", now.slots)
        yield _gauge("scene_slots_busy", "Scene slots that hold a job.", now.busy_slots)
        yield _gauge(
            "checkpoint_oldest_age_seconds",
            "Age of the newest checkpoint of that running job where it is oldest.",
            now.oldest_checkpoint_s,
        )
        divergence = GaugeMetricFamily(
            "dreamserve_referee_divergence_ratio",
            "Of earlier checkpoints that the reward finds worse than the newest, the share that the referee finds "
            "better; the mean of jobs that run or ended within an hour: 0.5 is no relation, 1 is reward hacking.",
            labels=["reward", "referee"],
        )
        for one in now.divergences:
            divergence.add_metric([one.reward, one.referee], one.ratio)
        yield divergence

    def _histogram(self, histogram: Histogram, about: str, labels: tuple[str, ...]) -> Metric:
        family = HistogramMetricFamily(f"dreamserve_{histogram}", about, labels=labels)
        series: defaultdict[tuple[str, ...], dict[str, float]] = defaultdict(dict)
        if not labels:
            series[()] = {}
        for tally in self._tallies[histogram]:
            series[tuple(tally.labels[label] for label in labels)][tally.labels["le"]] = tally.value
        bounds = [*(str(float(bound)) for bound in BUCKETS[histogram]), "+Inf"]
        for values, hits in series.items():
            cumulated, buckets = 0.0, []
            for bound in bounds:
                cumulated += hits.get(bound, 0.0)
                buckets.append((bound, cumulated))
            family.add_metric(list(values), buckets, sum_value=None)
            # Written by hand, because the library leaves them out where bounds are negative, as scores' are.
            named = dict(zip(labels, values, strict=True))
            family.add_sample(f"{family.name}_count", named, cumulated)
            family.add_sample(f"{family.name}_sum", named, hits.get("sum", 0.0))
        return family


def _gauge(name: str, about: str, value: float) -> Metric:
    return GaugeMetricFamily(f"dreamserve_{name}", about, value=value)


def _by_label(name: str, about: str, label: str, values: dict[str, int]) -> Metric:
    family = GaugeMetricFamily(f"dreamserve_{name}", about, labels=[label])
    for value, number in values.items():
        family.add_metric([value], number)
    return family
