"""Jobs, their files, results and events, as they are answered."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field

from service.http.answers.base import Answer, Note, Page, Range, Score, Time
from service.jobs.states import FailureCode, JobState, Outcome, Stage

__all__ = ["Artifact", "ArtifactPage", "Estimate", "EventPage", "Job", "JobError", "JobPage"]

Spec: TypeAlias = Annotated[
    dict[str, Any],
    Field(description="The request with every default filled in; its fields are those of JobRequest."),
]


class Artifact(Answer):
    """A file of a job; `GET /v1/artifacts/{id}/content` fetches it."""

    id: str
    job_id: str
    kind: str
    """`glb | obj | ply | stl | thumbnail | turntable | report | preview`."""
    candidate: int | None
    """Index of the candidate whose it is; null: the whole job's."""
    name: str
    content_type: str
    size_bytes: int
    sha256: str
    created_at: Time
    expires_at: Time


class ArtifactPage(Page[Artifact]):
    """A job's files, those of the candidate that is kept foremost first."""


class QueuePlace(Answer):
    """Why a queued job waits, and how long."""

    reason: Literal["paused", "retry_backoff", "quota", "waiting_for_turn", "scaling_up"]
    position: int | None
    """1 is next; null: too far behind to be counted."""
    eta_s: Range | None
    """Seconds until it starts; null: unknown."""


class Progress(Answer):
    """How far a job is."""

    fraction: float
    """Of the whole job, 0 to 1."""
    step: int
    steps_total: int
    steps_per_s: float | None
    eta_s: float | None
    """Seconds until its optimization ends; null: unknown."""


class Attempt(Answer):
    """One try of a worker at a job."""

    number: int
    worker: str
    started_at: Time
    ended_at: Time | None
    outcome: Outcome | None
    resumed_from_step: int | None
    worker_s: float
    """Seconds for which it held its worker."""


class ScorePoint(Answer):
    """Scores at one checkpoint, by the reward that steers and by the referee."""

    step: int
    reward: Score | None
    referee: Score | None


class MeshReport(Answer):
    """A mesh, as measured on the written GLB."""

    faces: int
    vertices: int
    watertight: bool
    components: int
    non_manifold_edges: int
    size_bytes: int
    texture_px: list[int] | None
    """Width and height of the base color texture; null: it has none."""
    iso_level: float
    """Density of the field at the surface."""
    agreement: float
    """How much the mesh looks like its field, 0 to 1."""
    bounds: list[list[float]]
    """Least and greatest x, y, z."""


class Candidate(Answer):
    """One of the objects that a job has made."""

    index: int
    seed: int
    scores: dict[str, float]
    """By all that scored it but the referee; higher is better."""
    referee: Score | None
    kept: bool
    files: list[str]
    """Names of its artifacts."""
    mesh: MeshReport | None = None
    """Null: it was not exported, or is no object; release 0.2 did not tell."""
    field_sha256: str | None = None
    """Equal for two runs exactly when they ended with the same bits; release 0.2 did not tell."""


class Choice(Answer):
    """Which candidates are kept."""

    by: Literal["reward", "person"]
    candidates: list[int]
    """Their indices, the foremost first."""
    at: Time | None
    """When a person said so."""


class Provenance(Answer):
    """Where a result came from, and how exactly it can be made again."""

    code: str
    preset: str | None
    preset_changes: list[str]
    """Fields in which the job differs from its preset."""
    prior: str
    method: str
    seed: int
    weights: dict[str, str | None]
    """`sha256:…` of each weights file."""
    torch: str
    determinism: str
    field_sha256: str | None = None
    """Of the candidate that is kept foremost; a preview has none."""


class WeightsLicense(Answer):
    """The license of weights that took part."""

    name: str
    license: str


class JobResult(Answer):
    """What a job has made."""

    artifacts: list[Artifact]
    """Of the kept candidates and of the whole job."""
    partial: bool
    """Whether it is what a canceled job had made so far."""
    candidates: list[Candidate]
    choice: Choice | None
    """Null: there was nothing to choose from, or release 0.2 chose."""
    mesh: MeshReport | None
    """Of the candidate that is kept foremost."""
    provenance: Provenance
    licenses: list[WeightsLicense]


class JobError(Answer):
    """Why a job has failed."""

    code: FailureCode
    detail: str
    retryable: bool


class Job(Answer):
    """A job: the same fields in all states, null where one does not apply."""

    id: str
    status: JobState
    created_at: Time
    started_at: Time | None
    ended_at: Time | None
    retry_of: str | None
    batch_id: str | None
    spec: Spec
    queue: QueuePlace | None
    """While it is queued."""
    stage: Stage | None
    """While it runs."""
    progress: Progress | None
    """Null while it is queued."""
    attempts: list[Attempt]
    failures: int
    """Attempts that count against `limits.max_attempts`."""
    cancel_requested: bool
    warnings: list[Note]
    score_series: list[ScorePoint]
    result: JobResult | None
    error: JobError | None


class JobPage(Page[Job]):
    """Jobs, newest first."""


class Event(Answer):
    """One entry of a log; `id` counts from 1 without gaps."""

    id: int
    type: str
    at: Time
    data: dict[str, Any]


class EventPage(Page[Event]):
    """A page of a log, or with `Accept: text/event-stream` the log as it grows."""


class Estimate(Answer):
    """What a job would be, how long it would wait and run."""

    run_s: Range | None
    total_s: Range | None
    """With the wait."""
    reason: str | None
    """Why one of them is null."""
    based_on: int
    """How many jobs of the same kind the estimate goes by."""
    queue: QueuePlace
    spec: Spec
    warnings: list[Note]
