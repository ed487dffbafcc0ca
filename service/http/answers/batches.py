"""Batches and what became of their lines, as they are answered."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import WithJsonSchema

from service.http.answers.base import Answer, Page, Score, Time
from service.http.answers.jobs import Artifact, JobError
from service.jobs.batch_items import ItemState
from service.jobs.batch_progress import HIDDEN, BatchState

__all__ = ["Batch", "BatchPage", "BatchResultPage"]


class LineProblem(Answer):
    """What is wrong with a line."""

    pointer: str
    detail: str
    code: str


class ShownProblem(LineProblem):
    """What is wrong with which line."""

    line: int
    custom_id: str | None


class BatchCounts(Answer):
    """How many items are where: all but `total` add up to it."""

    total: int
    invalid: int
    pending: int
    queued: int
    running: int
    succeeded: int
    failed: int
    canceled: int


class Batch(Answer):
    """A batch, and how far it is."""

    id: str
    status: Annotated[
        BatchState,
        WithJsonSchema({"type": "string", "enum": [one for one in BatchState if one not in HIDDEN]}),
    ]
    created_at: Time
    ended_at: Time | None
    counts: BatchCounts
    max_parallel: int | None
    defaults: dict[str, Any]
    sweep: dict[str, list[Any]]
    metadata: dict[str, str]
    problems: list[ShownProblem]
    """Of the first invalid lines."""


class BatchPage(Page[Batch]):
    """Batches, newest first."""


class BatchResult(Answer):
    """What became of one line in one combination of the sweep."""

    number: int
    line: int
    custom_id: str | None
    sweep: dict[str, Any]
    status: ItemState
    job_id: str | None
    """Null: it has none yet, or that was erased."""
    retry_of: str | None
    scores: dict[str, float] | None
    referee: Score | None
    artifacts: list[Artifact]
    error: JobError | None
    problems: list[LineProblem]


class BatchResultPage(Page[BatchResult]):
    """A page of results, or with `Accept: application/jsonl` all of them, one a line."""
