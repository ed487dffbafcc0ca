"""Analytic solids as radiance fields: their true surface and colors are known everywhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from workers.mesh import Mesh, bake, extract

RED, BLUE = torch.tensor([0.85, 0.12, 0.10]), torch.tensor([0.10, 0.20, 0.80])

Distance = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Solid:
    """A field whose density falls from `peak` to 0 across the surface of a signed distance function."""

    sdf: Distance
    paint: Callable[[Tensor], Tensor]
    volume: float = 0.0
    peak: float = 60.0
    sharpness: float = 200.0

    def density(self, points: Tensor) -> Tensor:
        return self.peak * torch.sigmoid(-self.sharpness * self.sdf(points))

    def color(self, points: Tensor) -> Tensor:
        return self.paint(points)

    def foggy(self) -> Solid:
        """The same solid as a cloud: a tenth of the density, a border ten times as wide."""
        return replace(self, peak=self.peak / 10, sharpness=self.sharpness / 10)


def ball_sdf(radius: float, center: tuple[float, float, float] = (0, 0, 0)) -> Distance:
    return lambda points: (points - torch.tensor(center)).norm(dim=-1) - radius


def box_sdf(half: tuple[float, float, float], center: tuple[float, float, float] = (0, 0, 0)) -> Distance:
    def distance(points: Tensor) -> Tensor:
        beyond = (points - torch.tensor(center)).abs() - torch.tensor(half)
        return beyond.clamp_min(0).norm(dim=-1) + beyond.amax(-1).clamp_max(0)

    return distance


def plain(color: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda points: color.expand(len(points), 3)


@pytest.fixture(scope="session")
def ball() -> Solid:
    return Solid(ball_sdf(0.7), plain(RED), volume=4 / 3 * torch.pi * 0.7**3)


@pytest.fixture(scope="session")
def box() -> Solid:
    return Solid(box_sdf((0.5, 0.4, 0.6)), plain(BLUE), volume=8 * 0.5 * 0.4 * 0.6)


@pytest.fixture(scope="session")
def torus() -> Solid:
    def distance(points: Tensor) -> Tensor:
        x, y, z = points.unbind(-1)
        return torch.hypot(torch.hypot(x, z) - 0.6, y) - 0.2

    return Solid(distance, plain(BLUE), volume=2 * torch.pi**2 * 0.6 * 0.2**2)


@pytest.fixture(scope="session")
def cone() -> Solid:
    """Apex at y = .8, base of radius .6 at y = −.7."""

    def distance(points: Tensor) -> Tensor:
        x, y, z = points.unbind(-1)
        side = (torch.hypot(x, z) * 1.5 + (y - 0.8) * 0.6) / (0.6**2 + 1.5**2) ** 0.5
        return torch.maximum(side, -0.7 - y)

    return Solid(distance, plain(RED), volume=torch.pi * 0.6**2 * 1.5 / 3)


@pytest.fixture(scope="session")
def pair() -> Solid:
    """A red box on a blue ball, which touch at y = .05."""
    upper, lower = box_sdf((0.45, 0.4, 0.45), (0, 0.45, 0)), ball_sdf(0.5, (0, -0.44, 0))

    def paint(points: Tensor) -> Tensor:
        return torch.where((upper(points) < lower(points))[:, None], RED, BLUE)

    return Solid(lambda points: torch.minimum(upper(points), lower(points)), paint)


@pytest.fixture(scope="session")
def pair_mesh(pair: Solid) -> Mesh:
    return bake(extract(pair, resolution=96, target_faces=6000), pair, texture_px=256)
