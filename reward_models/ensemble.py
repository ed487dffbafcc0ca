"""Several rewards as one: a weighted sum of their scores, each brought to a common scale and reduced over views.

    score = Σ_i w_i · N_i(reduce_i(scores_i over an object's views))

N_i is either *affine*, (x − center_i) / scale_i with constants that are written down, or *group*, the z-score among
the candidates of one prompt, (x − mean) / (population standard deviation + 10⁻⁴) as in group-relative policy
optimization. Affine sums are differentiable to the images where all their members are; group scores only rank.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from reward_models.contracts import RewardCard
from reward_models.picture_reward import Reduction, reduce_views
from reward_models.typical import TYPICAL

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from reward_models.contracts import RewardModel

__all__ = [
    "Ensemble",
    "EnsembleSpec",
    "Member",
    "group_scores",
    "joined_answer",
    "standard_member",
    "weighted_sum",
]

Z_FLOOR = 1e-4
"""Added to a group's standard deviation. Source: arXiv 2512.10949, appendix B."""


@dataclass(frozen=True, slots=True)
class Member:
    """One reward's part in an ensemble."""

    reward: str
    """Its name."""
    weight: float = 1.0
    center: float = 0.0
    scale: float = 1.0
    reduce: Reduction | None = "mean"
    """How its scores of an object's views become one; `None` keeps each view's own."""
    source: str = ""
    """Where these numbers come from."""


@dataclass(frozen=True, slots=True)
class EnsembleSpec:
    """A named, complete ensemble."""

    name: str
    members: tuple[Member, ...]
    normalization: Literal["affine", "group"] = "affine"
    source: str = ""

    def __post_init__(self) -> None:
        if not self.members:
            raise ValueError(f"ensemble {self.name!r} has no members: name at least one reward")
        if bad := [member for member in self.members if not member.scale > 0]:
            raise ValueError(f"ensemble {self.name!r}: the scale of {bad[0].reward!r} must be above 0")


def standard_member(reward: str, weight: float = 1.0, reduce: Reduction | None = "mean") -> Member:
    """Make a member whose scores are about standard normal; raises ValueError where no constants are known."""
    if reward not in TYPICAL:
        raise ValueError(
            f"no typical center and spread of {reward!r} are known (only of: {', '.join(TYPICAL)}). "
            "Give them in a Member, or use normalization 'group'"
        )
    center, scale, source = TYPICAL[reward]
    return Member(reward, weight, center, scale, reduce, source)


class Ensemble:
    """A `RewardModel` made of others, in this process or remote."""

    def __init__(self, spec: EnsembleSpec, rewards: Mapping[str, RewardModel]) -> None:
        if missing := [member.reward for member in spec.members if member.reward not in rewards]:
            raise ValueError(
                f"ensemble {spec.name!r} needs {', '.join(map(repr, missing))}, but only these rewards are loaded: "
                f"{', '.join(rewards) or 'none'}"
            )
        self.spec = spec
        self._rewards = [rewards[member.reward] for member in spec.members]
        self.card = _joined_card(spec, [reward.card for reward in self._rewards])

    def score_batch(
        self, images: Tensor, prompts: list[str], wants_gradient: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Answer as `RewardModel.score_batch` says: each object's weighted sum, affinely normalized.

        Raises ValueError for an ensemble that scores groups, and where a gradient of a judge is wanted.
        """
        if self.spec.normalization == "group":
            raise ValueError(
                f"ensemble {self.spec.name!r} compares the candidates of a prompt: a score of one object alone "
                "does not exist. Call score_groups, or choose normalization 'affine'"
            )
        if bool(wants_gradient.any()) and not self.card.differentiable:
            judges = ", ".join(r.card.name for r in self._rewards if not r.card.differentiable)
            raise ValueError(f"ensemble {self.spec.name!r} has no gradient, as {judges} only ranks images")
        answers = [reward.score_batch(images, prompts, wants_gradient) for reward in self._rewards]
        return joined_answer(self.spec.members, answers)

    def score_groups(self, images: Tensor, prompts: list[str], groups: Tensor) -> Tensor:
        """Score candidates (G, V, 3, H, W) within their groups (G,) of whole numbers: (G,), without gradient."""
        none = torch.zeros(len(images), dtype=torch.bool)
        values = [reward.score_batch(images, prompts, none)[0] for reward in self._rewards]
        if self.spec.normalization == "affine":
            return weighted_sum(self.spec.members, values).mean(1)
        return group_scores(self.spec.members, values, groups)


def joined_answer(
    members: Sequence[Member], answers: Sequence[tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """Make members' answers (values, gradient), as `RewardModel.score_batch` gives them, one answer."""
    with torch.enable_grad():
        values = [one.detach().requires_grad_() for one, _ in answers]
        total = weighted_sum(members, values)
        slopes = torch.autograd.grad(total.sum(), values)
    # A score of one view depends on that view only, one of an object on all its views: both broadcast.
    gradient = torch.zeros_like(answers[0][1])
    for slope, (_, of_images) in zip(slopes, answers, strict=True):
        gradient += slope[..., None, None, None] * of_images
    return total.detach(), gradient


def weighted_sum(members: Sequence[Member], values: Sequence[Tensor]) -> Tensor:
    """Σ w (reduce(x) − center) / scale of members' values (G, V) or (G, 1): (G, 1), or (G, V) if one keeps views."""
    total: Tensor | None = None
    for member, scores in zip(members, values, strict=True):
        term = member.weight * (_reduced(member, scores) - member.center) / member.scale
        total = term if total is None else total + term
    assert total is not None, "an ensemble has members"
    return total


def group_scores(members: Sequence[Member], values: Sequence[Tensor], groups: Tensor) -> Tensor:
    """Σ w z(reduce(x)) of members' values (G, V) or (G, 1), z being taken within each group (G,): (G,).

    A group of one, and one whose scores are all alike, has z = 0.
    """
    total = torch.zeros(len(groups), dtype=values[0].dtype, device=values[0].device)
    for member, scores in zip(members, values, strict=True):
        x = _reduced(member, scores).mean(1)
        for group in groups.unique():
            rows = groups == group
            total[rows] += member.weight * (x[rows] - x[rows].mean()) / (x[rows].std(correction=0) + Z_FLOOR)
    return total


def _reduced(member: Member, scores: Tensor) -> Tensor:
    return scores if member.reduce is None else reduce_views(scores, member.reduce)


def _joined_card(spec: EnsembleSpec, cards: Sequence[RewardCard]) -> RewardCard:
    views = {card.views for card in cards if card.views not in (None, 1)}
    if len(views) > 1:
        wanted = ", ".join(f"{card.name} {card.views}" for card in cards if card.views in views)
        raise ValueError(f"ensemble {spec.name!r}: its rewards want different numbers of views ({wanted})")
    hashes = [f"{card.name} {card.weights_sha256}" for card in cards if card.weights_sha256]
    tokens = [card.prompt_tokens for card in cards if card.prompt_tokens is not None]
    terms = " + ".join(f"{member.weight:g}·{member.reward}" for member in spec.members)
    return RewardCard(
        name=spec.name,
        value_range=_joined_range(spec, cards),
        scale=f"{terms}, {spec.normalization} normalization",
        views=next(iter(views), None),
        uses_prompt=any(card.uses_prompt for card in cards),
        differentiable=spec.normalization == "affine" and all(card.differentiable for card in cards),
        license=" AND ".join(dict.fromkeys(card.license for card in cards)),
        weights_sha256=hashlib.sha256("\n".join(hashes).encode()).hexdigest() if hashes else None,
        prompt_tokens=min(tokens, default=None),
        prompt_per_view=any(card.prompt_per_view for card in cards),
        preprocessing="each reward's own",
    )


def _joined_range(spec: EnsembleSpec, cards: Sequence[RewardCard]) -> tuple[float, float] | None:
    if spec.normalization == "group" or any(card.value_range is None for card in cards):
        return None
    low = high = 0.0
    for member, card in zip(spec.members, cards, strict=True):
        assert card.value_range is not None
        ends = sorted(member.weight * (end - member.center) / member.scale for end in card.value_range)
        low, high = low + ends[0], high + ends[1]
    return low, high
