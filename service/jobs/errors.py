"""What a caller of `service.jobs` reacts to (beside `StaleLease`, which belongs to leases)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["FieldProblem", "IdempotencyKeyReused", "QueueFull", "RefusalCode", "Refused", "StoreUnavailable"]

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


class IdempotencyKeyReused(ValueError):
    """One idempotency key came with two different bodies: HTTP 422, `idempotency-key-reused`."""


class QueueFull(Exception):
    """The operator's bound on queued jobs is reached: HTTP 429; `retry_after_s` says when to come back."""

    def __init__(self, queued: int, max_queued: int) -> None:
        super().__init__(f"{queued} jobs are queued and this server accepts {max_queued}; come back later")
        self.retry_after_s = 10


class StoreUnavailable(Exception):
    """The database or the object store did not answer: HTTP 503, to be retried."""

    def __init__(self, dependency: Literal["database", "objects"], detail: str) -> None:
        name = "object store" if dependency == "objects" else "database"
        super().__init__(f"the {name} did not answer: {detail}")
        self.dependency: Literal["database", "objects"] = dependency
