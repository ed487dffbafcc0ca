"""What a caller of `service.jobs` reacts to (beside `StaleLease`, which belongs to leases)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = [
    "ArtifactsExpired",
    "BatchConflict",
    "FieldProblem",
    "IdempotencyKeyReused",
    "JobActive",
    "NothingToChoose",
    "QueueFull",
    "QuotaExceeded",
    "RefusalCode",
    "Refused",
    "StoreUnavailable",
    "UnusableDatabase",
]

_NAMED_BY = {"database": "DREAMSERVE_DATABASE_URL", "objects": "DREAMSERVE_OBJECTS_URL"}
RefusalCode = Literal["invalid-request", "method-unavailable", "license-refused", "referee-is-reward"]


@dataclass(frozen=True, slots=True)
class FieldProblem:
    """One field that is wrong: `pointer` is an RFC 6901 JSON pointer into the request."""

    pointer: str
    detail: str


class Refused(ValueError):
    """A request that must not become a job: HTTP 422. All texts are encodable as UTF-8."""

    def __init__(
        self, code: RefusalCode, problems: list[FieldProblem], suggestion: str | None = None
    ) -> None:
        super().__init__("; ".join(f"{problem.pointer or '/'}: {problem.detail}" for problem in problems))
        self.code: RefusalCode = code
        self.problems = problems
        self.suggestion = suggestion

    @property
    def pointer(self) -> str:
        """Where the first problem is."""
        return self.problems[0].pointer

    @property
    def detail(self) -> str:
        """What the first problem is."""
        return self.problems[0].detail


class BatchConflict(Exception):
    """The state of a batch forbids what was asked: HTTP 409, `batch-conflict`."""


class IdempotencyKeyReused(ValueError):
    """One idempotency key came with two different bodies: HTTP 422, `idempotency-key-reused`."""


class QueueFull(Exception):
    """The operator's bound on queued jobs is reached: HTTP 429; `retry_after_s` says when to come back."""

    def __init__(self, queued: int, max_queued: int) -> None:
        super().__init__(f"{queued} jobs are queued and this server accepts {max_queued}; come back later")
        self.retry_after_s = 10


class QuotaExceeded(Exception):
    """The owner's quota is used up: HTTP 429, `quota-exceeded`; `retry_after_s` says when to come back."""

    def __init__(self, detail: str, retry_after_s: int = 10) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s


class StoreUnavailable(Exception):
    """The database or the object store did not answer: HTTP 503, to be retried.

    `detail` may name hosts and users; `advice`, which says what the operator can do, names none: anybody may read it.
    """

    def __init__(self, dependency: Literal["database", "objects"], detail: str, advice: str = "") -> None:
        name = "object store" if dependency == "objects" else "database"
        self.advice = advice or f"see that it is there and lets us in; {_NAMED_BY[dependency]} names it"
        super().__init__(f"the {name} did not answer: {detail}; {self.advice}")
        self.dependency: Literal["database", "objects"] = dependency


class UnusableDatabase(StoreUnavailable):
    """The database belongs to another release: it stays unavailable until the operator does something."""

    def __init__(self, sentence: str) -> None:
        Exception.__init__(self, sentence)
        self.dependency = "database"
        self.advice = sentence


class JobActive(Exception):
    """This can be done to an ended job only: HTTP 409."""

    def __init__(self, job_id: str, state: str, wish: str) -> None:
        super().__init__(f"{job_id} is {state}, and only a job that has ended can be {wish}")


class NothingToChoose(Exception):
    """The job has no candidates to choose among: HTTP 409, with this code."""

    def __init__(self, code: Literal["job-not-succeeded", "no-candidates"], detail: str) -> None:
        super().__init__(detail)
        self.code = code


class ArtifactsExpired(Exception):
    """The files that this is about are gone: HTTP 410, `artifact-expired`."""
