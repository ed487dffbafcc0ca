"""Reward3D (DreamReward, arXiv 2403.14613): how well a person would like an object, from four views together.

Both published variants see each view with its own view-dependent prompt ("…, front view") of 100 tokens: ask with a
`ViewPrompt` where the sides are known. The views are evenly spaced around the object.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from reward_models.blip import BLIP_LARGE, REWARD_MEAN, REWARD_STD, BlipConfig, BlipReward
from reward_models.contracts import RewardCard

if TYPE_CHECKING:
    from reward_models.tokens import PromptTokens

__all__ = ["Reward3DCrossView", "Reward3DScorer"]

NUM_VIEWS = 4
VIEW_WIDTH = 128
"""What the Scorer keeps of each view: the output of the MLP's second layer."""
FUSION_HEADS = 12
CROSS_VIEW_STD = 5.0
"""Source: Reward3D/Reward3D.py, class Reward3D."""


class _Reward3D(BlipReward):
    text_length = 100
    scale = "standard deviations of people's preference; 0 is an average object"

    @property
    def card(self) -> RewardCard:
        """Declare what this reward is."""
        return RewardCard(
            name=self.kind,
            value_range=None,
            scale=self.scale,
            views=NUM_VIEWS,
            uses_prompt=True,
            differentiable=True,
            license="NOASSERTION",  # the code is MIT, but nobody has said how the weights may be used
            weights_sha256=self.sha256,
            prompt_tokens=self.text_length,
            prompt_per_view=True,
            preprocessing=f"bicubic to {self.image_px} px, center crop, CLIP's mean and standard deviation",
        )


class Reward3DScorer(_Reward3D):
    """The paper's variant: the views' 128 numbers each, in their order, through three more linear layers."""

    kind = "reward3d"

    def __init__(
        self,
        config: BlipConfig = BLIP_LARGE,
        tokens: PromptTokens | None = None,
        *,
        mean: float = REWARD_MEAN,
        std: float = REWARD_STD,
        antialias: bool = True,
    ) -> None:
        super().__init__(config, tokens, mean=mean, std=std, antialias=antialias)
        self.scorer = _Scorer()

    def raw(self, features: Tensor) -> Tensor:
        """Score features (G, 4, width) of an object's views: (G, 1)."""
        return self.scorer(self.mlp.narrowed(features).flatten(1))


class Reward3DCrossView(_Reward3D):
    """The extended variant: the views attend to each other, are averaged (so their order does not matter), scored.

    Only the cross-view adapter was trained, on top of ImageReward's trunk and head.
    """

    kind = "reward3d-crossview"
    scale = "people's preference for an object; 0 is average, above 4 is rare"

    def __init__(
        self,
        config: BlipConfig = BLIP_LARGE,
        tokens: PromptTokens | None = None,
        *,
        mean: float = REWARD_MEAN,
        std: float = CROSS_VIEW_STD,
        antialias: bool = True,
    ) -> None:
        super().__init__(config, tokens, mean=mean, std=std, antialias=antialias)
        self.cross_view_adapter = _CrossViewFusion(config.text_width)

    def fused(self, features: Tensor) -> Tensor:
        """Make one feature (G, width) of those of an object's views (G, 4, width)."""
        return self.cross_view_adapter(features)

    def raw(self, features: Tensor) -> Tensor:
        """Score features (G, 4, width) of an object's views: (G, 1)."""
        return self.mlp(self.fused(features))


class _Scorer(nn.Module):
    """(G, 4·128) → (G, 1), without activations."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(NUM_VIEWS * VIEW_WIDTH, 256)
        self.fc2 = nn.Linear(256, 64)
        self.fc3 = nn.Linear(64, 1)
        self.dropout = nn.Dropout(0.2)

    def forward(self, views: Tensor) -> Tensor:
        return self.fc3(self.dropout(self.fc2(self.dropout(self.fc1(views)))))


class _CrossViewFusion(nn.Module):
    """gate · attention(x) + (1 − gate) · x, the mean over views; gate = sigmoid(W [x, attention(x)])."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(width, FUSION_HEADS, dropout=0.1, batch_first=True)
        self.fusion_gate = nn.Sequential(nn.Linear(2 * width, width), nn.Sigmoid())

    def forward(self, views: Tensor) -> Tensor:
        attended, _ = self.self_attn(views, views, views, need_weights=False)
        gate = self.fusion_gate(torch.cat([views, attended], -1))
        return (gate * attended + (1 - gate) * views).mean(1)
