"""What an evaluation compares: a method with its knobs, a prior, a judge, a number of steps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from workers.embedded.captions import plain_caption

if TYPE_CHECKING:
    from workers.embedded.world import Description

__all__ = ["RECIPE", "SUITES", "Arm", "Case"]

RECIPE = 1
"""Raised when field, cameras, methods, mesh or judge change what comes out: lines of before are made anew."""


@dataclass(frozen=True)
class Arm:
    """One way to make objects."""

    name: str
    method: dict[str, Any] = field(default_factory=lambda: {"name": "sds"})
    """As in a job's `method`."""
    steps: int = 300
    weak: bool = False
    """Use the early checkpoint of the prior in place of the shipped one."""
    oracle: bool = False
    """Let the truth steer in place of the shipped reward."""


@dataclass(frozen=True)
class Case:
    """One object to make."""

    description: Description
    arm: Arm
    seed: int

    @property
    def key(self) -> str:
        """Name the case, for files and for going on after an interruption."""
        return f"{self.arm.name}|{plain_caption(self.description)}|{self.seed}"


WEAK_STEPS = 150
"""On the weak prior half the default's steps: there is less to converge to."""
DRAFT_STEPS = 100
"""As `effort: draft`: the shipped prior far from convergence, where methods differ more than at the default's 300."""
LONGER = 1.4
"""A DreamDPO step costs about this many SDS steps: SDS with so many more steps is the rival at equal seconds."""


def _preference_arms(prefix: str, steps: int, *, weak: bool) -> list[Arm]:
    """SDS, its longer run at a DreamDPO step's cost, and the preference methods under reward and oracle.

    The oracle is never in doubt, and its gaps are in another unit: DreamDPO ignores no loser under it.
    """
    dreamfl, dreamdpo = {"name": "dreamfl"}, {"name": "dreamdpo"}
    return [
        Arm(f"{prefix}sds", steps=steps, weak=weak),
        Arm(f"{prefix}sds-longer", steps=round(LONGER * steps), weak=weak),
        Arm(f"{prefix}dreamfl", dreamfl, steps, weak),
        Arm(f"{prefix}dreamdpo", dreamdpo, steps, weak),
        Arm(f"{prefix}psd", {"name": "psd"}, steps, weak),
        Arm(f"{prefix}dreamfl-oracle", dreamfl, steps, weak, oracle=True),
        Arm(f"{prefix}dreamdpo-oracle", dreamdpo | {"tau": 0}, steps, weak, oracle=True),
    ]


def _sweep_arms() -> list[Arm]:
    """One knob at a time on the weak prior, steered by the shipped reward."""
    pushes = [_swept("dreamdpo", "push", value) for value in (0, 0.5, 6)]
    taus = [_swept("dreamdpo", "tau", value) for value in (0.05, 0.5, 5)]
    weights = [_swept("dreamfl", "reward_weight", value) for value in (0.0003, 0.003, 0.01)]
    return [*pushes, *taus, *weights, _swept("dreamdpo", "form", "paper")]


def _swept(method: str, knob: str, value: float | str) -> Arm:
    return Arm(f"weak-{method}-{knob}-{value}", {"name": method, knob: value}, WEAK_STEPS, weak=True)


SUITES: dict[str, list[Arm]] = {
    "default": [Arm("sds")],
    "weak": _preference_arms("weak-", WEAK_STEPS, weak=True),
    "draft": [
        *_preference_arms("draft-", DRAFT_STEPS, weak=False),
        Arm("draft-dreamdpo-paper", {"name": "dreamdpo", "form": "paper"}, DRAFT_STEPS),
    ],
    "methods": _preference_arms("", 300, weak=False),
    "sweep": _sweep_arms(),
}
"""Arms by suite. Arms of one name are one arm, so suites share their results."""
