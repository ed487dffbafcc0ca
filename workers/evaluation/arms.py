"""What an evaluation compares: a method with its knobs, a prior, a judge, a number of steps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from workers.embedded.captions import plain_caption

if TYPE_CHECKING:
    from workers.embedded.world import Description

__all__ = ["SUITES", "Arm", "Case"]


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


def _preference_arms(prefix: str, *, weak: bool) -> list[Arm]:
    """SDS, its longer run at a DreamDPO step's cost, and both preference methods under reward and oracle."""
    dreamfl, dreamdpo = {"name": "dreamfl"}, {"name": "dreamdpo"}
    return [
        Arm(f"{prefix}sds", weak=weak),
        Arm(f"{prefix}sds-longer", steps=420, weak=weak),
        Arm(f"{prefix}dreamfl", dreamfl, weak=weak),
        Arm(f"{prefix}dreamdpo", dreamdpo, weak=weak),
        Arm(f"{prefix}dreamfl-oracle", dreamfl, weak=weak, oracle=True),
        Arm(f"{prefix}dreamdpo-oracle", dreamdpo, weak=weak, oracle=True),
    ]


def _sweep_arms() -> list[Arm]:
    """One knob at a time on the weak prior, steered by the shipped reward."""
    pushes = [Arm(f"weak-dreamdpo-push{p}", {"name": "dreamdpo", "push": p}, weak=True) for p in (0, 0.5, 6)]
    taus = [Arm(f"weak-dreamdpo-tau{t}", {"name": "dreamdpo", "tau": t}, weak=True) for t in (0, 0.5, 2)]
    weights = [
        Arm(f"weak-dreamfl-weight{w}", {"name": "dreamfl", "reward_weight": w}, weak=True)
        for w in (0.03, 0.1, 1)
    ]
    return pushes + taus + weights


SUITES: dict[str, list[Arm]] = {
    "default": [Arm("sds")],
    "weak": _preference_arms("weak-", weak=True),
    "methods": _preference_arms("", weak=False),
    "sweep": _sweep_arms(),
}
"""Arms by suite. Arms of one name are one arm, so suites share their results."""
