"""One attempt at one job on this worker: its lease, how far it is, and why it should stop."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TYPE_CHECKING

from service.jobs.states import Stage

if TYPE_CHECKING:
    from service.jobs.series import ScorePoint
    from service.jobs.states import Checkpoint, Lease, LeaseAnswer

__all__ = ["Attempt", "Verdict"]

RENEW_WITHIN = 0.75
"""Share of a lease after which a worker that could not renew it stops by itself: 45 s of 60 s. The rest is
margin for a write under way and for clocks that run at different speeds."""


class Verdict(Enum):
    """What the rest of the world wants from an attempt."""

    GO_ON = auto()
    LOST = auto()
    """The job is, or may soon be, somebody else's: stop without another word."""
    CANCEL = auto()
    DEADLINE = auto()
    OVERDRAWN = auto()
    """The job's budget of worker seconds is used up."""


@dataclass(slots=True)
class Attempt:
    """What the worker's loop writes and the reporter tells. Times are those of the monotonic clock.

    `claimed_at` is taken before the claim was made, so that this side's lease never outlives the database's.
    """

    lease: Lease
    claimed_at: float
    stage: Stage = Stage.LOADING
    step: int = 0
    steps_per_s: float | None = None
    alone: bool = True
    """Whether it has had the worker's engine to itself."""
    untold_resumption: int | None = None
    """The step it began at, if that is not the newest checkpoint's, as the claim supposed."""
    untold_scores: list[ScorePoint] = field(default_factory=list)
    no_scores_before: float | None = None
    """When the next checkpoint may be scored at the earliest; None before the first, never after a failure."""
    untold_warnings: list[dict[str, str]] = field(default_factory=list)
    untold_checkpoint: Checkpoint | None = None
    store_failures: int = 0
    """Tries at an object store that did not answer: a worker that tries again is not stuck."""
    cancel_requested: bool = False
    keep_partial: bool = False
    """Whether the cancel wants the scene exported as it is."""
    deadline_passed: bool = False
    overdrawn: str | None = None
    """How the job's budget is used up, once it is."""
    ended: bool = False
    """The worker has said its last word about this attempt, or was told that it has none."""
    renewed_at: float = field(init=False)
    _paced: tuple[float, int] = field(init=False)

    def __post_init__(self) -> None:
        self.renewed_at = self.claimed_at
        self._paced = (self.claimed_at, 0)

    def enter(self, stage: Stage) -> None:
        """Go to a stage; the pace is measured anew, since steps of different stages differ."""
        self.stage = stage
        self._paced = (time.monotonic(), self.step)

    def held_s(self, now: float) -> float:
        """Seconds since the claim."""
        return now - self.claimed_at

    def renewed(self, asked_at: float, answer: LeaseAnswer) -> None:
        """Note that a report which was sent at `asked_at` has renewed the lease."""
        self.renewed_at = asked_at
        self.cancel_requested |= answer.cancel_requested
        # The newest word counts: whoever cancels again without keeping the rest gets an end at once.
        self.keep_partial = answer.keep_partial
        self.deadline_passed |= answer.deadline_passed
        self.overdrawn = self.overdrawn or answer.overdrawn

    def measure_pace(self, now: float) -> None:
        """Update `steps_per_s`, smoothed, from the steps since the stage or the last measurement began."""
        since, step = self._paced
        if self.step > step and now - since >= 1.0:
            pace = (self.step - step) / (now - since)
            self.steps_per_s = pace if self.steps_per_s is None else 0.7 * self.steps_per_s + 0.3 * pace
            self._paced = (now, self.step)

    def verdict(self, now: float) -> Verdict:
        """Decide whether to go on."""
        if self.ended or now - self.renewed_at > RENEW_WITHIN * self.lease.lease_s:
            return Verdict.LOST
        if self.cancel_requested:
            return Verdict.CANCEL
        if self.deadline_passed or self.held_s(now) > self.lease.deadline_in_s:
            return Verdict.DEADLINE
        if self.overdrawn is not None:
            return Verdict.OVERDRAWN
        return Verdict.GO_ON

    def may_publish(self, now: float) -> bool:
        """Tell whether what it has made is wanted: also by a cancel that keeps the partial result."""
        verdict = self.verdict(now)
        return verdict is Verdict.GO_ON or (verdict is Verdict.CANCEL and self.keep_partial)
