from __future__ import annotations

import math

import torch
from torch.nn import functional as F

from workers.fields.background import Background, spherical_harmonics


def test_harmonics_are_orthonormal_on_the_sphere() -> None:
    # A product grid: midpoints in cos θ and φ integrate these low degrees well.
    cos, phi = (torch.arange(400) + 0.5) / 200 - 1, (torch.arange(8) + 0.5) / 4 * math.pi
    cos, phi = (x.flatten() for x in torch.meshgrid(cos, phi, indexing="ij"))
    sin = (1 - cos**2).sqrt()
    harmonics = spherical_harmonics(torch.stack([sin * phi.cos(), sin * phi.sin(), cos], -1).double())
    products = harmonics.T @ harmonics * (4 * math.pi / len(harmonics))
    torch.testing.assert_close(products, torch.eye(9).double(), atol=1e-4, rtol=0)


def test_harmonics_have_degrees_0_1_2() -> None:
    d = F.normalize(torch.randn(5, 3, generator=torch.Generator().manual_seed(0)), dim=-1)
    one, other = spherical_harmonics(d), spherical_harmonics(-d)
    parity = torch.tensor([1.0, -1, -1, -1, 1, 1, 1, 1, 1])
    torch.testing.assert_close(other, one * parity)


def test_a_background_has_the_published_layers_and_gives_colors() -> None:
    background = Background(torch.Generator().manual_seed(0))
    shapes = {name: tuple(p.shape) for name, p in background.named_parameters()}
    assert shapes == {
        "network.layers.0.weight": (16, 9),
        "network.layers.2.weight": (16, 16),
        "network.layers.4.weight": (3, 16),
    }
    color = background(torch.eye(3))
    assert color.shape == (3, 3)
    assert 0 < color.min() < color.max() < 1
