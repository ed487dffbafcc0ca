"""The head of ImageReward, Reward3D and the aesthetic predictor: five linear layers without activations."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from reward_models.checkpoints import Checkpoint, Place, import_state

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["LinearHead"]

WIDTHS = (1024, 128, 64, 16, 1)
DROPOUTS = (0.2, 0.2, 0.1, 0.0, 0.0)
"""After each layer, in training only. Source: THUDM/ImageReward, and the aesthetic predictor, which shares it."""


class LinearHead(nn.Module):
    """Features (…, width) → (…, 1), with the published keys `layers.{0,2,4,6,7}`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential()
        for before, after, dropout in zip((width, *WIDTHS), WIDTHS, DROPOUTS, strict=False):
            linear = nn.Linear(before, after)
            nn.init.normal_(linear.weight, 0.0, 1 / (width + 1))
            nn.init.zeros_(linear.bias)
            self.layers.append(linear)
            if dropout:
                self.layers.append(nn.Dropout(dropout))

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, width: int) -> LinearHead:
        """Take a head that is published alone, frozen; raises ValueError naming file and key when it does not fit."""
        head = cls(width)
        import_state(head, checkpoint, Place)
        return head.eval().requires_grad_(False)

    def forward(self, features: Tensor) -> Tensor:
        """Score features (…, width): (…, 1)."""
        return self.layers(features)

    def narrowed(self, features: Tensor) -> Tensor:
        """Run the first two layers only: (…, 128), before the dropout that follows them."""
        return self.layers[2](self.layers[1](self.layers[0](features)))

    def collapsed(self) -> nn.Linear:
        """Compose the five layers, in float64, to the one affine map that they are when nothing is dropped."""
        first, *others = (layer for layer in self.layers if isinstance(layer, nn.Linear))
        with torch.no_grad():
            weight, bias = first.weight.double(), first.bias.double()
            for layer in others:
                weight = layer.weight.double() @ weight
                bias = layer.weight.double() @ bias + layer.bias.double()
            affine = nn.Linear(weight.shape[1], 1)
            affine.weight.copy_(weight)
            affine.bias.copy_(bias)
        return affine.requires_grad_(False)
