"""What is behind the object: colors that depend on the direction of sight only, learned with the field.

MVDream, arXiv 2308.16512, as in `neural_environment_map_background.py` of MVDream-threestudio: spherical harmonics
of the direction up to degree 2, a network 9-16-16-3 without biases, a sigmoid. While training, every second picture
has one random color instead, so that the object cannot hide in what the background has learned.

Differs from the published code: nothing, but for the axes (ours are glTF's), which the first layer can turn.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from workers.fields.perceptron import Perceptron

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Background", "spherical_harmonics"]

_NUM_HARMONICS, _HIDDEN_WIDTH, _HIDDEN_LAYERS = 9, 16, 2
"""Source: `configs/mvdream-sd21.yaml` of MVDream-threestudio (degree 3 there counts 0, 1, 2)."""


class Background(nn.Module):
    """An environment map: directions in, colors out."""

    def __init__(self, generator: torch.Generator, device: torch.device | str = "cpu") -> None:
        super().__init__()
        self.network = Perceptron((_NUM_HARMONICS, 3), _HIDDEN_WIDTH, _HIDDEN_LAYERS, generator, device)

    def forward(self, directions_R3: Tensor) -> Tensor:
        """(R, 3) unit directions → (R, 3) sRGB in [0, 1]."""
        return torch.sigmoid(self.network(spherical_harmonics(directions_R3)))


def spherical_harmonics(directions_R3: Tensor) -> Tensor:
    """Real spherical harmonics of degrees 0, 1, 2 at unit directions: (R, 3) → (R, 9), orthonormal on the sphere.

    Order and signs (Condon–Shortley) are those of tiny-cuda-nn, `spherical_harmonics.h`.
    """
    x, y, z = directions_R3.unbind(-1)
    first, cross = 0.48860251190291987, 1.0925484305920792  # √(3/4π), √(15/4π)
    harmonics = [
        torch.full_like(x, 0.28209479177387814),  # √(1/4π)
        -first * y,
        first * z,
        -first * x,
        cross * x * y,
        -cross * y * z,
        0.94617469575755997 * z * z - 0.31539156525251999,  # √(5/16π) (3z² − 1)
        -cross * x * z,
        cross / 2 * (x * x - y * y),
    ]
    return torch.stack(harmonics, -1)
