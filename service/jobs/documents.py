"""Rows as the API's JSON documents: one shape in all states, `null` where a part does not apply."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeAlias

from service.jobs.states import ACTIVE, JobState, Stage, overall_fraction

if TYPE_CHECKING:
    from collections.abc import Sequence

    import sqlalchemy as sa

    from service.jobs.places import Place

__all__ = [
    "Document",
    "Pace",
    "artifact_document",
    "best_first",
    "choice_of",
    "foremost",
    "job_document",
    "kept_only",
    "progress_document",
    "queue_document",
    "result_document",
    "rfc3339",
]

Document: TypeAlias = dict[str, Any]
"""A JSON object in the shape of the API."""

Row: TypeAlias = "sa.Row[*tuple[Any, ...]]"


def rfc3339(seconds: float) -> str:
    """Write a time (seconds since 1970) as UTC RFC 3339 with milliseconds."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _time(seconds: float | None) -> str | None:
    return None if seconds is None else rfc3339(seconds)


def job_document(
    row: Row, attempts: Sequence[Row], artifacts: Sequence[Row], queue: Document | None
) -> Document:
    """Build a job's document from its row, its attempts and artifacts in order, and its place in the queue."""
    running = JobState(row.state) in ACTIVE
    result = result_document(row)
    if result is not None:
        files = [artifact_document(one) for one in kept_only(artifacts, choice_of(row))]
        # A canceled job has a result only where its cancel kept the scene as it was.
        result = {"artifacts": files, "partial": row.state == JobState.CANCELED} | result
    return {
        "id": row.id,
        "status": row.state,
        "created_at": rfc3339(row.created_at),
        "started_at": _time(row.started_at),
        "ended_at": _time(row.ended_at),
        "retry_of": row.retry_of,
        "batch_id": row.batch_id,
        "spec": row.spec,
        "queue": queue,
        "stage": row.stage if running else None,
        "progress": None if row.state == JobState.QUEUED or row.stage is None else progress_document(row),
        "attempts": [_attempt_document(attempt) for attempt in attempts],
        "failures": row.failures,
        "cancel_requested": row.cancel_requested,
        "warnings": row.warnings,
        "result": result,
        "error": row.error,
    }


def choice_of(row: Row) -> Document | None:
    """Tell which candidates of a job are kept, the foremost first, and who says so: `{"by", "candidates", "at"}`.

    `by` is `reward` or `person`, `at` when the person said it. None where there was nothing to choose from.
    """
    choice: Document | None = row.choice or (row.result or {}).get("choice")
    return choice


def result_document(row: Row) -> Document | None:
    """Build a job's result, less its files; what is told of the mesh is told of the candidate that is kept foremost."""
    choice, result, best = row.choice, row.result, foremost(row)
    if choice is None or best is None:
        return None if result is None else {"choice": None} | result
    kept = choice["candidates"]
    return {
        **result,
        "candidates": [{**one, "kept": one["index"] in kept} for one in result["candidates"]],
        "choice": choice,
        "mesh": best["mesh"],
        "provenance": result["provenance"] | {"field_sha256": best["field_sha256"]},
    }


def foremost(row: Row) -> Document | None:
    """Find the candidate of a result that is kept foremost; None where there is none."""
    choice, made = choice_of(row), (row.result or {}).get("candidates") or []
    if choice is None:
        return next((one for one in made if one.get("kept")), None)
    return next(one for one in made if one["index"] == choice["candidates"][0])


def best_first(artifacts: Sequence[Row], choice: Document | None) -> list[Row]:
    """Sort files: first those of the kept candidates, the foremost first, then the job's own, then all others."""
    kept = choice["candidates"] if choice else []

    def place(row: Row) -> int:
        if row.candidate is None:
            return len(kept)
        return kept.index(row.candidate) if row.candidate in kept else len(kept) + 1

    return sorted(artifacts, key=place)


def kept_only(artifacts: Sequence[Row], choice: Document | None) -> list[Row]:
    """Leave out the files of candidates that are not kept; the order is that of `best_first`."""
    kept = {None, *(choice["candidates"] if choice else [])}
    return [row for row in best_first(artifacts, choice) if row.candidate in kept]


def progress_document(row: Row) -> Document:
    """Tell how far a job is that has been started; `eta_s` is null where there is no pace to go by."""
    stage = Stage(row.stage)
    eta_s: float | None
    if row.state == JobState.SUCCEEDED:
        fraction, eta_s = 1.0, 0.0
    else:
        fraction = overall_fraction(stage, row.step, row.steps_total)
        optimizing = stage in (Stage.COARSE, Stage.REFINE) and row.state in ACTIVE and row.steps_per_s
        eta_s = round((row.steps_total - row.step) / row.steps_per_s, 1) if optimizing else None
    return {
        "fraction": fraction,
        "step": row.step,
        "steps_total": row.steps_total,
        "steps_per_s": row.steps_per_s,
        "eta_s": eta_s,
    }


def _attempt_document(row: Row) -> Document:
    return {
        "number": row.number,
        "worker": row.worker,
        "started_at": rfc3339(row.started_at),
        "ended_at": _time(row.ended_at),
        "outcome": row.outcome,
        "resumed_from_step": row.resumed_from_step,
        "worker_s": round(row.worker_s, 3),
    }


def artifact_document(row: Row) -> Document:
    """Describe one artifact."""
    return {
        "id": row.id,
        "job_id": row.job_id,
        "kind": row.kind,
        "candidate": row.candidate,
        "name": row.name,
        "content_type": row.content_type,
        "size_bytes": row.size_bytes,
        "sha256": row.sha256,
        "created_at": rfc3339(row.created_at),
        "expires_at": rfc3339(row.expires_at),
    }


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast the queue moves: what a waiting time is estimated from."""

    slots: int
    """Scenes that live workers run at a time."""
    running: int
    run_s: tuple[float, float] | None
    """Lower and upper quartile of recent run times, seconds."""


def queue_document(row: Row, place: Place, pace: Pace, now: float) -> Document:
    """Tell why a queued job waits, its place (1 is next) and when it may start; null where that is not known."""
    backoff_s = max(0.0, row.not_before - now)
    if row.held:
        reason = "paused"
    elif backoff_s:
        reason = "retry_backoff"
    elif place.over_quota:
        reason = "quota"
    else:
        reason = "waiting_for_turn" if pace.slots else "scaling_up"
    return {"reason": reason, "position": place.position, "eta_s": _wait_s(place.position, backoff_s, pace)}


def _wait_s(position: int | None, backoff_s: float, pace: Pace) -> list[float] | None:
    """Count the rounds of running jobs that must end first, each as long as recent jobs were."""
    if position is None:
        return None
    ahead = pace.running + position - 1
    if not pace.slots or (pace.run_s is None and ahead >= pace.slots):
        return None
    shortest_s, longest_s = pace.run_s or (0.0, 0.0)
    rounds = math.ceil(max(0, ahead - pace.slots + 1) / pace.slots)
    return [
        round(max(backoff_s, max(0, rounds - 1) * shortest_s), 1),
        round(max(backoff_s + 1, rounds * longest_s), 1),
    ]
