"""How often a reward is right when DreamDPO asks it: on the pairs of predictions of real steps, against the oracle."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from workers.evaluation.objects import open_scene, optimize, oracle_of
from workers.methods import make_method
from workers.opening import steering

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from workers.contracts import Reward, Scores
    from workers.evaluation.arms import Case
    from workers.networks import Networks

__all__ = ["VERDICT_HEADER", "Verdicts", "verdict_row", "verdicts_of"]

VERDICT_HEADER = (
    "| arm | pairs | right | as far apart as τ | right of these | of the truth's gaps |",
    "|---|---|---|---|---|---|",
)
"""Of `verdict_row`, in Markdown."""


class Verdicts(NamedTuple):
    """What reward and oracle say about the pair of each step: how much higher they score the first one, (steps,)."""

    reward: NDArray[np.float64]
    oracle: NDArray[np.float64]

    @property
    def agree(self) -> NDArray[np.bool_]:
        """(steps,) whether the reward prefers what is nearer to the truth."""
        return np.sign(self.reward) == np.sign(self.oracle)

    @property
    def kept(self) -> float:
        """Share of the truth's gaps that the reward's choices win: 1 is never wrong, 0 is chance."""
        return float((np.sign(self.reward) * self.oracle).sum() / np.abs(self.oracle).sum())


class _Witness:
    """A `contracts.Reward` that answers as `judge` does, and notes what the oracle says of the same pictures."""

    def __init__(self, judge: Reward, oracle: Reward) -> None:
        self.name, self._judge, self._oracle = judge.name, judge, oracle
        self.gaps: list[tuple[float, float]] = []

    async def score(self, images: Tensor, prompts: list[str], wants_gradient: Tensor) -> Scores:
        """Score as `contracts.Reward.score` does."""
        answer = await self._judge.score(images, prompts, wants_gradient)
        truth = await self._oracle.score(images, prompts, wants_gradient)
        reward_gap, oracle_gap = (
            float(first - second) for first, second in (x.values.mean(1) for x in (answer, truth))
        )
        self.gaps.append((reward_gap, oracle_gap))
        return answer


def verdicts_of(case: Case, networks: Networks) -> Verdicts:
    """Optimize a case of DreamDPO under its own reward, and compare each of its verdicts with the oracle's."""
    spec, scene = open_scene(case, networks)
    judge = steering(spec, networks)
    assert judge is not None  # without one DreamDPO's scene cannot be made
    witness = _Witness(judge, oracle_of(scene, case.description))
    scene.method = make_method(spec.method, witness)
    optimize(scene)
    reward, truth = np.array(witness.gaps).T
    return Verdicts(reward, truth)


def verdict_row(name: str, told: Sequence[Verdicts], tau: float) -> str:
    """Write one Markdown row of all pairs of some objects."""
    together = Verdicts(*(np.concatenate(column) for column in zip(*told, strict=True)))
    clear = np.abs(together.reward) >= tau
    right_if_clear = f"{together.agree[clear].mean():.2f}" if clear.any() else "–"
    return (
        f"| {name} | {len(clear)} | {together.agree.mean():.2f} | {clear.mean():.2f} | {right_if_clear} "
        f"| {together.kept:.2f} |"
    )
