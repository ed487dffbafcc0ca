"""Rewards as the engine asks them: one answer for all scenes, from this process or from a shared actor."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from workers.contracts import Ask, Scores

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["RewardSource", "SharedReward"]

RewardSource = Callable[["Tensor", list[str], "Tensor", int], tuple["Tensor", "Tensor"]]
"""(images (G, V, 3, H, W), prompts (G), wants_gradient (G,), number of scenes) → values (G, V | 1), gradient."""


class SharedReward:
    """`contracts.Reward` over any source: a network in this process, or a remote one.

    It counts who asks between two answers, so that a shared actor can tell how many scenes a message holds.
    """

    def __init__(self, name: str, source: RewardSource) -> None:
        self.name = name
        self._source = source
        self._num_asking = 0

    def score(self, images: Tensor, prompts: list[str], wants_gradient: Tensor) -> Ask[Scores]:
        """Score images (G, V, 3, H, W) in [0, 1] for prompts (G); `wants_gradient` (G,) bool."""
        self._num_asking += 1
        return Ask("score", self, self._answer, (images, prompts, wants_gradient))

    def _answer(self, images: Tensor, prompts: list[str], wants_gradient: Tensor) -> Scores:
        num_scenes, self._num_asking = max(1, self._num_asking), 0
        return Scores(*self._source(images.detach(), prompts, wants_gradient, num_scenes))
