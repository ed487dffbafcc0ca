"""What workers say of themselves (heartbeats, capabilities), and what the whole fleet looks like to a scrape."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from statistics import quantiles
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from service.jobs import series, shares, tables, tallies, troubles
from service.jobs.capabilities import Capabilities, merge
from service.jobs.documents import Pace
from service.jobs.runnable import has_parts
from service.jobs.states import ACTIVE, JobState

if TYPE_CHECKING:
    from service.jobs.database import Transaction
    from service.jobs.series import Divergence
    from service.jobs.spec import JobSpec
    from service.jobs.tallies import Tally

__all__ = [
    "Known",
    "Snapshot",
    "WorkerState",
    "heartbeat",
    "known_capabilities",
    "live_slots",
    "pace",
    "publish",
    "retire",
    "snapshot",
    "wanted_slots",
]

_NUM_RECENT = 20
"""Finished jobs from which waiting times are estimated."""
WorkerState = str
"""`starting | idle | busy | draining`."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state of the service at one moment, for the metrics."""

    jobs: dict[JobState, int]
    oldest_queued_s: float
    workers: dict[WorkerState, int]
    slots: int
    busy_slots: int
    oldest_checkpoint_s: float
    """Age of the oldest newest-checkpoint of a running job; 0 when none has one."""
    divergences: list[Divergence]
    """How far rewards and referees have come apart."""
    tallies: list[Tally]


@dataclass(frozen=True, slots=True)
class Known:
    """What workers can run: those that live, or else those that lived last, as a pool may have none for a while."""

    capabilities: Capabilities
    num_live: int
    """Workers that say so now; 0: the last ones did."""
    seen_at: float
    """When it was last true for certain, by the database's clock."""


def heartbeat(
    tx: Transaction, worker: str, state: WorkerState, slots: int, busy_slots: int, ttl_s: float
) -> None:
    """Say that a worker lives."""
    values = {"name": worker, "state": state, "slots": slots, "busy_slots": busy_slots}
    tx.upsert(tables.workers, "name", {**values, "seen_at": tx.now, "expires_at": tx.now + ttl_s})


def publish(tx: Transaction, worker: str, document: Capabilities, ttl_s: float) -> None:
    """Say what a worker can run; what the dead could run is of no interest any more.

    Nor is, when it says so for the first time, what has kept workers from starting.
    """
    columns = tables.capabilities.c
    tx.execute(sa.delete(tables.capabilities).where(columns.expires_at <= tx.now))
    if tx.execute(sa.select(columns.worker).where(columns.worker == worker)).first() is None:
        troubles.forget(tx)
    values = {"worker": worker, "document": document.model_dump(mode="json"), "expires_at": tx.now + ttl_s}
    tx.upsert(tables.capabilities, "worker", values)


def another_has_parts(tx: Transaction, worker: str, spec: JobSpec) -> bool:
    """Tell whether a live worker other than this one could run a job."""
    columns = tables.capabilities.c
    others = sa.select(columns.document).where(columns.worker != worker, columns.expires_at > tx.now)
    return any(has_parts(spec, Capabilities.model_validate(one)) for one in tx.execute(others).scalars())


def retire(tx: Transaction, worker: str) -> None:
    """Forget a worker, but for what it could run, which stays known until another one lives."""
    tx.execute(sa.delete(tables.workers).where(tables.workers.c.name == worker))
    spoken = tables.capabilities.c
    ended = sa.update(tables.capabilities).where(spoken.worker == worker, spoken.expires_at > tx.now)
    tx.execute(ended.values(expires_at=tx.now))


def known_capabilities(tx: Transaction) -> Known | None:
    """Unite what live workers have published, or else what the last ones had; None when there never was one."""
    rows = tx.execute(_published()).all()
    if not rows:
        return None
    live = [row for row in rows if row.expires_at > tx.now]
    published = [Capabilities.model_validate(row.document) for row in live or rows]
    return Known(merge(published), len(live), min(tx.now, max(float(row.expires_at) for row in rows)))


@cache
def _published() -> sa.Select[Any]:
    return sa.select(tables.capabilities).order_by(tables.capabilities.c.worker)


def pace(tx: Transaction) -> Pace:
    """Measure how fast the queue moves."""
    slots, _ = live_slots(tx)
    running = tx.execute(_num_running()).scalar_one()
    run_s = sorted(float(seconds) for seconds in tx.execute(_recent_run_s()).scalars())
    if not run_s:
        return Pace(slots, running, None)
    low, _, high = quantiles(run_s, n=4, method="inclusive") if len(run_s) > 1 else run_s * 3
    return Pace(slots, running, (low, high))


@cache
def _num_running() -> sa.Select[Any]:
    active = tables.jobs.c.state.in_(sorted(ACTIVE))
    return sa.select(sa.func.count()).select_from(tables.jobs).where(active)


@cache
def _recent_run_s() -> sa.Select[Any]:
    jobs = tables.jobs.c
    succeeded = sa.select(jobs.ended_at - jobs.started_at).where(jobs.state == JobState.SUCCEEDED.value)
    return succeeded.order_by(jobs.ended_at.desc()).limit(_NUM_RECENT)


def live_slots(tx: Transaction) -> tuple[int, int]:
    """Count the scenes that live workers run at a time, and those that they run now."""
    row = tx.execute(_live_slots(), {"now": tx.now}).one()
    return int(row.slots), int(row.busy)


@cache
def _live_slots() -> sa.Select[Any]:
    columns = tables.workers.c
    return sa.select(
        sa.func.coalesce(sa.func.sum(columns.slots), 0).label("slots"),
        sa.func.coalesce(sa.func.sum(columns.busy_slots), 0).label("busy"),
    ).where(columns.expires_at > sa.bindparam("now"), columns.state != "draining")


def wanted_slots(tx: Transaction) -> int:
    """Count the jobs that run or could run now: what a pool of the right size has slots for."""
    jobs = tables.jobs
    running = jobs.c.state.in_(sorted(ACTIVE))
    due = sa.and_(*shares.claimable(jobs), jobs.c.not_before <= tx.now)
    wanted = sa.select(sa.func.count()).select_from(jobs).where(running | due)
    return int(tx.execute(wanted).scalar_one())


def _counts(tx: Transaction, by_name: sa.Select[Any]) -> dict[str, int]:
    return {str(row[0]): int(row[1]) for row in tx.execute(by_name)}


def snapshot(tx: Transaction) -> Snapshot:
    """Read everything that a scrape tells."""
    jobs, workers, kept = tables.jobs.c, tables.workers.c, tables.checkpoints.c
    num_jobs = _counts(tx, sa.select(jobs.state, sa.func.count()).group_by(jobs.state))
    oldest = tx.execute(
        sa.select(sa.func.min(jobs.created_at)).where(jobs.state == JobState.QUEUED.value)
    ).scalar_one()
    live = sa.select(workers.state, sa.func.count()).where(workers.expires_at > tx.now)
    newest = (
        sa.select(sa.func.max(kept.created_at).label("at"))
        .join_from(tables.checkpoints, tables.jobs)
        .where(jobs.state.in_(sorted(ACTIVE)))
        .group_by(kept.job_id)
        .subquery()
    )
    oldest_checkpoint = tx.execute(sa.select(sa.func.min(newest.c.at))).scalar_one()
    slots, busy_slots = live_slots(tx)
    return Snapshot(
        jobs={state: num_jobs.get(state.value, 0) for state in JobState},
        oldest_queued_s=0.0 if oldest is None else max(0.0, tx.now - oldest),
        workers=_counts(tx, live.group_by(workers.state)),
        slots=slots,
        busy_slots=busy_slots,
        oldest_checkpoint_s=0.0 if oldest_checkpoint is None else max(0.0, tx.now - oldest_checkpoint),
        divergences=series.divergences(tx),
        tallies=tallies.read(tx),
    )
