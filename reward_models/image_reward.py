"""ImageReward (arXiv 2304.05977): how well a person would like a picture made for a prompt, each view alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reward_models.blip import BlipReward
from reward_models.contracts import RewardCard

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["ImageReward"]


class ImageReward(BlipReward):
    """ImageReward v1.0: r = (MLP(feature) − 0.167) / 1.033 for each view."""

    kind = "imagereward"
    text_length = 35

    @property
    def card(self) -> RewardCard:
        """Declare what this reward is."""
        return RewardCard(
            name="imagereward",
            value_range=None,
            scale="standard deviations of people's preference; 0 is an average picture, −2.3 to 2 are typical",
            views=None,
            uses_prompt=True,
            differentiable=True,
            license="Apache-2.0",
            weights_sha256=self.sha256,
            prompt_tokens=self.text_length,
            preprocessing=f"bicubic to {self.image_px} px, center crop, CLIP's mean and standard deviation",
        )

    def raw(self, features: Tensor) -> Tensor:
        """Score each view's feature (G, V, width): (G, V)."""
        return self.mlp(features).squeeze(-1)
