"""The life of a job: its states and transitions, its stages, its failures, and the lease that guards every write."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from service.jobs.spec import JobSpec

__all__ = [
    "ACTIVE",
    "FINAL",
    "TRANSITIONS",
    "Checkpoint",
    "FailureCode",
    "JobState",
    "Lease",
    "LeaseAnswer",
    "NewArtifact",
    "Outcome",
    "Stage",
    "StaleLease",
    "outcome_of",
    "overall_fraction",
]


class JobState(StrEnum):
    """Where a job stands; `TRANSITIONS` says what may follow."""

    QUEUED = "queued"
    RUNNING = "running"
    CANCELING = "canceling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"


TRANSITIONS: dict[JobState, frozenset[JobState]] = {
    JobState.QUEUED: frozenset({JobState.RUNNING, JobState.CANCELED, JobState.FAILED}),
    # Back to the queue: a lost worker, a retryable failure, a preemption.
    JobState.RUNNING: frozenset({JobState.QUEUED, JobState.CANCELING, JobState.SUCCEEDED, JobState.FAILED}),
    # A cancel may come too late: a result that is complete and published counts.
    JobState.CANCELING: frozenset({JobState.CANCELED, JobState.SUCCEEDED}),
    JobState.SUCCEEDED: frozenset(),
    JobState.FAILED: frozenset(),
    JobState.CANCELED: frozenset(),
}

ACTIVE = frozenset({JobState.RUNNING, JobState.CANCELING})
"""The states in which a worker holds a lease."""
FINAL = frozenset(state for state, following in TRANSITIONS.items() if not following)


class Stage(StrEnum):
    """What a running job is doing."""

    LOADING = "loading"
    PREVIEW = "preview"
    COARSE = "coarse"
    REFINE = "refine"
    EXPORT = "export"
    VERIFY = "verify"
    UPLOAD = "upload"


_STAGE_BEGINS: dict[Stage, float] = {
    Stage.LOADING: 0.0,
    Stage.PREVIEW: 0.02,
    Stage.COARSE: 0.03,
    Stage.REFINE: 0.03,
    Stage.EXPORT: 0.90,
    Stage.VERIFY: 0.96,
    Stage.UPLOAD: 0.98,
}
"""Share of a job's work done when a stage begins; the optimization steps make up .03 to .90."""


def overall_fraction(stage: Stage, step: int, steps_total: int) -> float:
    """Estimate the share of a running job that is done, in [0, 1]."""
    begins = _STAGE_BEGINS[stage]
    if stage in (Stage.COARSE, Stage.REFINE) and steps_total > 0:
        return round(begins + (_STAGE_BEGINS[Stage.EXPORT] - begins) * min(1.0, step / steps_total), 4)
    return begins


class FailureCode(StrEnum):
    """Why a job, or one attempt at it, failed; `retryable` ones are tried again by themselves."""

    GPU_OUT_OF_MEMORY = "gpu-out-of-memory"
    WORKER_LOST = "worker-lost"
    PREEMPTED = "preempted"
    STAGE_TIMEOUT = "stage-timeout"
    STORAGE_ERROR = "storage-error"
    WEIGHTS_MISSING = "weights-missing"
    NAN_DIVERGENCE = "nan-divergence"
    EMPTY_MESH = "empty-mesh"
    INVALID_GLB = "invalid-glb"
    DEADLINE_EXCEEDED = "deadline-exceeded"
    GPU_BUDGET_EXCEEDED = "gpu-budget-exceeded"
    POISON_JOB = "poison-job"
    INTERNAL = "internal"

    @property
    def retryable(self) -> bool:
        """Whether another attempt may well succeed."""
        return self in _RETRYABLE


_RETRYABLE = frozenset(
    {
        FailureCode.GPU_OUT_OF_MEMORY,
        FailureCode.WORKER_LOST,
        FailureCode.PREEMPTED,
        FailureCode.STAGE_TIMEOUT,
        FailureCode.STORAGE_ERROR,
    }
)


class Outcome(StrEnum):
    """How one attempt ended."""

    WORKER_LOST = "worker_lost"
    OOM = "oom"
    PREEMPTED = "preempted"
    STALLED = "stalled"
    ERROR = "error"
    CANCELED = "canceled"
    SUCCEEDED = "succeeded"


def outcome_of(code: FailureCode) -> Outcome:
    """Translate a failure into the outcome of the attempt that met it."""
    match code:
        case FailureCode.GPU_OUT_OF_MEMORY:
            return Outcome.OOM
        case FailureCode.WORKER_LOST:
            return Outcome.WORKER_LOST
        case FailureCode.PREEMPTED:
            return Outcome.PREEMPTED
        case FailureCode.STAGE_TIMEOUT:
            return Outcome.STALLED
        case _:
            return Outcome.ERROR


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A saved scene in the object store."""

    key: str
    sha256: str
    step: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class NewArtifact:
    """A file that a worker has put into the object store and verified there."""

    kind: str
    """`glb | obj | ply | stl | thumbnail | turntable | report | preview`."""
    name: str
    content_type: str
    size_bytes: int
    sha256: str
    key: str
    candidate: int | None = None
    """Index of the candidate whose it is; None for what is the whole job's."""


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to write one job, until a newer attempt exists; `attempt` is its fence."""

    job_id: str
    attempt: int
    worker: str
    spec: JobSpec
    checkpoints: tuple[Checkpoint, ...]
    """What to resume from: at most two, newest first; empty for a fresh start."""
    failures: int
    """Earlier ends of this job that were its own or its worker's fault."""
    lease_s: float
    """Seconds that one `report` keeps the lease."""
    created_at: float
    started_at: float
    """When the first attempt began; like all times here, seconds since 1970 by the database's clock."""
    deadline_at: float
    deadline_in_s: float
    """Seconds left at the claim: to be counted down by the worker's own monotonic clock."""
    max_step: int = 0
    """The furthest step that any earlier attempt has reported: up to there, steps are redone."""


@dataclass(frozen=True, slots=True)
class LeaseAnswer:
    """What a report brings back."""

    cancel_requested: bool
    deadline_passed: bool
    overdrawn: str | None = None
    """How the job's budget of worker seconds is used up; None while it is not."""
    keep_partial: bool = False
    """A cancel was requested that keeps what there is: export the scene as it is."""
    superseded: tuple[str, ...] = ()
    """Keys of checkpoints that newer ones replaced: the worker may delete these objects."""


class StaleLease(Exception):
    """A newer attempt exists, or the job has ended: this writer must stop, its write changed nothing."""

    def __init__(self, job_id: str, attempt: int, found: str) -> None:
        super().__init__(
            f"attempt {attempt} of {job_id} may no longer write: {found}. "
            "Another attempt took over or the job has ended; drop this scene."
        )
        self.job_id = job_id
        self.attempt = attempt
