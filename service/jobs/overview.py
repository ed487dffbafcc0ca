"""The service from above: what waits and what works on it, what was used, and what one more job would take."""

from __future__ import annotations

from datetime import date, timedelta
from statistics import quantiles
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from service.jobs import reading, tables
from service.jobs.fleet import live_slots
from service.jobs.places import MAX_PLACE
from service.jobs.states import ACTIVE, FINAL, JobState
from service.jobs.submission import NewJob, insert_jobs, new_ids

if TYPE_CHECKING:
    from service.jobs.database import Database, Transaction
    from service.jobs.documents import Document
    from service.jobs.spec import JobSpec

__all__ = ["Overview"]

_NUM_RECENT = 200
"""Finished jobs that are searched for some of the same kind."""
_NUM_ALIKE = 20
_DAY_S = 86_400
_EPOCH = date(1970, 1, 1)
_WIDENED = (0.9, 1.25)
"""One or two earlier jobs say little of how much times vary: the bounds are widened by these."""


class Overview:
    """Reads the whole service; each method is one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def estimate(self, spec: JobSpec, owner: str) -> Document:
        """Estimate how long a job would wait and run; creates nothing.

        Its place in the queue is found by queueing it in a transaction that is taken back, so that it follows from
        the same rules as a real one's.
        """
        try:
            with self._database.writing() as tx:
                (job_id,) = new_ids(tx, 1)
                insert_jobs(tx, [NewJob(job_id, spec, owner)])
                document = reading.get(tx, job_id)
                assert document is not None
                raise _TakenBack(_estimate(tx, spec, document["queue"]))
        except _TakenBack as taken_back:
            return taken_back.estimate

    def queue(self, owner: str) -> Document:
        """Tell how much is queued, what works on it, and how long the oldest job has waited."""
        with self._database.reading() as tx:
            return _queue(tx, owner)

    def usage(self, owner: str | None, since: date, until: date) -> list[Document]:
        """List worker seconds used and jobs ended by day (UTC, `until` included) and owner, newest first.

        `owner` None: of all owners. Seconds count on the day on which they passed, jobs on that of their end.
        """
        with self._database.reading() as tx:
            return _usage(tx, owner, (since - _EPOCH).days, (until - _EPOCH).days)


class _TakenBack(Exception):
    """Ends a transaction without a trace; carries what was learned in it."""

    def __init__(self, estimate: Document) -> None:
        super().__init__()
        self.estimate = estimate


def _estimate(tx: Transaction, spec: JobSpec, queue: Document) -> Document:
    run_s, num_alike = _run_s(tx, spec)
    wait_s = queue["eta_s"]
    kind = f"method '{spec.method.name}' on prior '{spec.prior}' at effort '{spec.effort}'"
    reason = None
    if run_s is None:
        reason = f"no job with {kind} is among the last {_NUM_RECENT} that succeeded here"
    elif queue["position"] is None:
        reason = f"more than {MAX_PLACE} jobs would start first: the wait is unknown"
    elif wait_s is None:
        reason = (
            "no live worker has told how many jobs it takes, or none has finished one: the wait is unknown"
        )
    total_s = None
    if run_s is not None and wait_s is not None:
        total_s = [round(wait_s[0] + run_s[0], 1), round(wait_s[1] + run_s[1], 1)]
    return {"run_s": run_s, "total_s": total_s, "reason": reason, "based_on": num_alike, "queue": queue}


def _run_s(tx: Transaction, spec: JobSpec) -> tuple[list[float] | None, int]:
    """Find lower and upper quartile of what the attempts at recent jobs of the same kind took, and of how many.

    Their times are scaled to the wanted number of steps, which is a little much for shorter jobs: loading and export
    do not shrink with the steps.
    """
    jobs, tries = tables.jobs.c, tables.attempts.c
    recent = (
        sa.select(jobs.id, jobs.spec, jobs.method, jobs.steps_total, jobs.ended_at)
        .where(jobs.state == JobState.SUCCEEDED.value)
        .order_by(jobs.ended_at.desc())
        .limit(_NUM_RECENT)
        .subquery()
    )
    alike = (
        recent.c.method == spec.method.name,
        recent.c.spec["prior"].as_string() == spec.prior,
        recent.c.spec["effort"].as_string() == spec.effort,
        recent.c.spec["candidates", "count"].as_integer() == spec.candidates.count,
    )
    query = (
        sa.select(recent.c.steps_total, sa.func.sum(tries.ended_at - tries.started_at).label("took_s"))
        .join_from(recent, tables.attempts, tries.job_id == recent.c.id)
        .where(*alike)
        .group_by(recent.c.id, recent.c.steps_total, recent.c.ended_at)
        .order_by(recent.c.ended_at.desc())
        .limit(_NUM_ALIKE)
    )
    took_s = sorted(
        row.took_s * (spec.steps / row.steps_total if row.steps_total else 1.0) for row in tx.execute(query)
    )
    if not took_s:
        return None, 0
    if len(took_s) < 3:
        low, high = took_s[0] * _WIDENED[0], took_s[-1] * _WIDENED[1]
    else:
        low, _, high = quantiles(took_s, n=4, method="inclusive")
    return [round(low, 1), round(high, 1)], len(took_s)


def _queue(tx: Transaction, owner: str) -> Document:
    jobs, workers = tables.jobs.c, tables.workers.c
    is_queued = jobs.state == JobState.QUEUED.value
    priority = jobs.spec["priority"].as_string()
    can_run = is_queued & (jobs.held == sa.false())
    by_priority = _counts(tx, sa.select(priority, sa.func.count()).where(can_run).group_by(priority))
    depth = {name: by_priority.get(name, 0) for name in ("high", "normal", "low")}
    oldest = tx.execute(sa.select(sa.func.min(jobs.created_at)).where(can_run)).scalar_one()
    live = sa.select(workers.state, sa.func.count()).where(workers.expires_at > tx.now)
    by_state = _counts(tx, live.group_by(workers.state))
    num_slots, num_busy = live_slots(tx)
    waiting = sum(depth.values())
    return {
        "depth": {**depth, "total": waiting},
        "paused": _num_jobs(tx, is_queued, jobs.held == sa.true()),
        "running": _num_jobs(tx, jobs.state.in_(sorted(ACTIVE))),
        "yours": {
            "queued": _num_jobs(tx, is_queued, jobs.owner == owner),
            "running": _num_jobs(tx, jobs.state.in_(sorted(ACTIVE)), jobs.owner == owner),
        },
        "capacity": {
            "slots": num_slots,
            "busy_slots": num_busy,
            "workers": {name: by_state.get(name, 0) for name in ("starting", "idle", "busy", "draining")},
        },
        "scale": {"state": _scale_state(num_slots, by_state, waiting)},
        "oldest_wait_s": None if oldest is None else round(max(0.0, tx.now - oldest), 1),
    }


def _scale_state(num_slots: int, workers: dict[str, int], waiting: int) -> str:
    """Name what the fleet is doing: `scaling_up | scaling_down | steady | empty` (no worker, and no need of one)."""
    if workers.get("starting") or (waiting and not num_slots):
        return "scaling_up"
    if workers.get("draining"):
        return "scaling_down"
    return "steady" if num_slots else "empty"


def _num_jobs(tx: Transaction, *conditions: sa.ColumnElement[bool]) -> int:
    return int(
        tx.execute(sa.select(sa.func.count()).select_from(tables.jobs).where(*conditions)).scalar_one()
    )


def _counts(tx: Transaction, by_name: sa.Select[Any]) -> dict[str, int]:
    return {str(row[0]): int(row[1]) for row in tx.execute(by_name)}


def _usage(tx: Transaction, owner: str | None, first_day: int, last_day: int) -> list[Document]:
    found: dict[tuple[int, str], Document] = {}

    def entry(day: int, whose: str) -> Document:
        written = (_EPOCH + timedelta(days=day)).isoformat()
        empty = {"day": written, "owner": whose, "worker_s": 0.0, "jobs": dict.fromkeys(sorted(FINAL), 0)}
        return found.setdefault((day, whose), empty)

    used = tables.usage.c
    query = sa.select(tables.usage).where(used.day.between(first_day, last_day), *_mine(used.owner, owner))
    for row in tx.execute(query):
        entry(row.day, row.owner)["worker_s"] = round(row.worker_s, 3)
    jobs, stones = tables.jobs.c, tables.erased_jobs.c
    for whose, state, ended_at in (
        (jobs.owner, jobs.state, jobs.ended_at),
        (stones.owner, stones.outcome, stones.ended_at),
    ):
        # On PostgreSQL the conversion rounds: a job that ends in the last half second counts for the next day.
        day = sa.cast(ended_at, sa.BigInteger) // _DAY_S
        inside = (ended_at >= first_day * _DAY_S) & (ended_at < (last_day + 1) * _DAY_S)
        ended = sa.select(day, whose, state, sa.func.count()).where(
            state.in_(sorted(FINAL)), inside, *_mine(whose, owner)
        )
        for on, by, outcome, num in tx.execute(ended.group_by(day, whose, state)):
            entry(on, by)["jobs"][outcome] += num
    return [found[key] for key in sorted(found, key=lambda key: (-key[0], key[1]))]


def _mine(column: sa.ColumnElement[str], owner: str | None) -> list[sa.ColumnElement[bool]]:
    return [] if owner is None else [column == owner]
