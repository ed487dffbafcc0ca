"""Rewards as the engine asks them: one answer for all scenes, from this process or from a shared actor.

Several of them can steer as one: `JointReward` is their weighted sum.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from reward_models.contracts import VIEW_SUFFIXES, ViewPrompt
from reward_models.ensemble import joined_answer
from workers.contracts import Ask, Scores
from workers.priors.view_prompts import SeenPrompt

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from reward_models.contracts import RewardCard
    from reward_models.ensemble import Member
    from workers.contracts import Reward

__all__ = ["JointReward", "RewardSource", "SharedReward"]

RewardSource = Callable[["Tensor", list[str], "Tensor", int], tuple["Tensor", "Tensor"]]
"""(images (G, V, 3, H, W), prompts (G), wants_gradient (G,), number of scenes) → values (G, V | 1), gradient."""


class SharedReward:
    """`contracts.Reward` over any source: a network in this process, or a remote one.

    It counts who asks between two answers, so that a shared actor can tell how many scenes a message holds.
    """

    def __init__(self, name: str, source: RewardSource, card: RewardCard | None = None) -> None:
        """`card`: what the reward declares; by default it reads one text for all views."""
        self.name = name
        self._source = source
        self._per_view = card is not None and card.prompt_per_view
        self._num_asking = 0

    def score(self, images: Tensor, prompts: list[str], wants_gradient: Tensor) -> Ask[Scores]:
        """Score images (G, V, 3, H, W) in [0, 1] for prompts (G); `wants_gradient` (G,) bool."""
        self._num_asking += 1
        return Ask("score", self, self._answer, (images, prompts, wants_gradient))

    def _answer(self, images: Tensor, prompts: list[str], wants_gradient: Tensor) -> Scores:
        num_scenes, self._num_asking = max(1, self._num_asking), 0
        texts = [self._text(prompt) for prompt in prompts]
        return Scores(*self._source(images.detach(), texts, wants_gradient, num_scenes))

    def _text(self, prompt: str) -> str:
        """Say a prompt as the reward was trained with it: for each view from where it looks, or plainly."""
        if self._per_view and isinstance(prompt, SeenPrompt):
            return ViewPrompt(prompt, [prompt + VIEW_SUFFIXES[one] for one in prompt.directions])
        return str(prompt)


class JointReward:
    """`contracts.Reward` made of others: Σ w (score − center) / scale, an object's views reduced as each member says.

    Each member is asked by itself, so it may be shared with scenes that follow it alone. Source: the affine form of
    `reward_models.ensemble`.
    """

    def __init__(self, name: str, members: Sequence[Member], rewards: Sequence[Reward]) -> None:
        """`rewards` are those of `members`, in their order."""
        assert len(members) == len(rewards), "a reward for each member"
        self.name = name
        self._members, self._rewards = members, rewards

    async def score(self, images: Tensor, prompts: list[str], wants_gradient: Tensor) -> Scores:
        """Score as `contracts.Reward.score` does."""
        answers = [await reward.score(images, prompts, wants_gradient) for reward in self._rewards]
        return Scores(*joined_answer(self._members, answers))
