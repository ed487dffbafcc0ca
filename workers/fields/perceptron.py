"""The small network of radiance fields: linear layers without biases, ReLU between them."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Perceptron"]


class Perceptron(nn.Module):
    """(P, ends[0]) → (P, ends[1]) through hidden layers of one width.

    Source: `VanillaMLP` of threestudio, whose parameter names (`layers.0.weight`, `layers.2.weight`, …) it has.
    """

    def __init__(
        self,
        ends: tuple[int, int],
        hidden_width: int,
        hidden_layers: int,
        generator: torch.Generator,
        device: torch.device | str = "cpu",
    ) -> None:
        """Start uniform in ±1/√inputs, as torch's linear layers do, with draws from `generator` (on the CPU)."""
        super().__init__()
        widths = (ends[0], *[hidden_width] * hidden_layers, ends[1])
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            layer = nn.Linear(inputs, outputs, bias=False, device="meta")
            weight = torch.empty(outputs, inputs, device="cpu")
            weight.uniform_(-1 / math.sqrt(inputs), 1 / math.sqrt(inputs), generator=generator)
            layer.weight = nn.Parameter(weight.to(device))
            layers += [layer, nn.ReLU()]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, inputs: Tensor) -> Tensor:
        """(P, inputs) → (P, outputs)."""
        return self.layers(inputs)
