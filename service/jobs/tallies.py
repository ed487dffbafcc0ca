"""Counters and histograms kept in the database, counted in the transaction of the fact they count.

So they survive every restart, agree with the rows, and cost a scrape nothing but reading a short table.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import sqlalchemy as sa

from service.jobs import tables

if TYPE_CHECKING:
    from service.jobs.database import Transaction

__all__ = ["BUCKETS", "Histogram", "Tally", "Total", "count", "observe", "read"]


class Total(StrEnum):
    """What is counted."""

    JOBS_SUBMITTED = "jobs_submitted"
    JOBS_FINISHED = "jobs_finished"
    STEPS = "optimizer_steps"
    STEPS_REDONE = "steps_redone"
    WORKER_SECONDS = "worker_seconds"
    CHECKPOINTS = "checkpoints"
    CHECKPOINT_BYTES = "checkpoint_bytes"
    ATTEMPTS_FAILED = "attempts_failed"
    LEASES_EXPIRED = "leases_expired"
    FENCED_WRITES = "fenced_writes"
    ARTIFACT_BYTES = "artifact_bytes"
    INVALID_MESHES = "invalid_meshes"
    WEBHOOK_DELIVERIES = "webhook_deliveries"


class Histogram(StrEnum):
    """What is measured, as a distribution."""

    QUEUE_TIME = "queue_time_seconds"
    RUN_TIME = "run_time_seconds"
    STAGE_TIME = "stage_duration_seconds"
    REWARD_SCORE = "reward_score"
    REFEREE_SCORE = "referee_score"
    MESH_FACES = "mesh_faces"
    MESH_AGREEMENT = "mesh_agreement_ratio"


_DURATIONS = (
    0.5,
    1,
    2.5,
    5,
    10,
    20,
    30,
    45,
    60,
    90,
    120,
    300,
    600,
    1_800,
    3_600,
    7_200,
    14_400,
    43_200,
    86_400,
)
_SCORES = (-4, -2, -1, -0.5, -0.2, 0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 2, 4, 8)
BUCKETS: dict[Histogram, tuple[float, ...]] = {
    Histogram.QUEUE_TIME: _DURATIONS,
    Histogram.RUN_TIME: _DURATIONS,
    Histogram.STAGE_TIME: _DURATIONS,
    Histogram.REWARD_SCORE: _SCORES,
    Histogram.REFEREE_SCORE: _SCORES,
    Histogram.MESH_FACES: (
        500,
        1_000,
        2_000,
        5_000,
        10_000,
        20_000,
        50_000,
        100_000,
        200_000,
        500_000,
        1_000_000,
    ),
    Histogram.MESH_AGREEMENT: (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.925, 0.95, 0.975, 0.99, 1.0),
}
"""Upper bounds of each histogram's buckets; one more reaches to infinity. Do not change them in a release:
counts of old and new bounds would mix."""

_SUM = "sum"
"""The value of the label `le` under which a histogram's sum is kept."""


@dataclass(frozen=True, slots=True)
class Tally:
    """One counted number."""

    name: str
    labels: dict[str, str]
    value: float


def count(tx: Transaction, total: Total, amount: float = 1.0, **labels: str) -> None:
    """Add to a counter; label values come from closed sets, never from a user's text."""
    if amount:
        tx.count(total.value, json.dumps(labels, sort_keys=True), amount)


def observe(tx: Transaction, histogram: Histogram, value: float, **labels: str) -> None:
    """Add one value to a histogram."""
    bounds = BUCKETS[histogram]
    place = bisect_left(bounds, value)
    bound = f"{float(bounds[place])}" if place < len(bounds) else "+Inf"
    tx.count(histogram.value, json.dumps({**labels, "le": bound}, sort_keys=True))
    tx.count(histogram.value, json.dumps({**labels, "le": _SUM}, sort_keys=True), value)


def read(tx: Transaction) -> list[Tally]:
    """List all tallies. A histogram's come one per bucket that was ever hit (not cumulated) and one `le="sum"`."""
    columns = tables.tallies.c
    rows = tx.execute(
        sa.select(columns.name, columns.labels, sa.func.sum(columns.value).label("value"))
        .group_by(columns.name, columns.labels)
        .order_by(columns.name, columns.labels)
    )
    return [Tally(row.name, json.loads(row.labels), float(row.value)) for row in rows]
