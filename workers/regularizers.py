"""What a field is asked to be besides liked by the prior: pure functions, weighed by the field that uses them.

The first three belong to the voxel grid. The four of a surface are those of MVDream-threestudio (`systems/mvdream.py`):
orientation from Ref-NeRF, arXiv 2112.03907, equation 11; sparsity and opaqueness from threestudio; the variance of
depth from HiFA, arXiv 2305.18766. Differs from the published code: a mean over no pixels is 0, not NaN.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from workers.contracts import Surface

__all__ = [
    "Penalties",
    "backfacing",
    "depth_spread",
    "filled_share",
    "opacity_ambiguity",
    "opaqueness",
    "orientation",
    "sparsity",
    "surface_penalty",
    "total_variation",
]


def total_variation(grid: Tensor) -> Tensor:
    """mean|∂/∂z| + mean|∂/∂y| + mean|∂/∂x| of a grid (1, C, Z, Y, X), per voxel: noise becomes plains with edges."""
    return sum((grid.diff(dim=axis).abs().mean() for axis in (-3, -2, -1)), start=grid.new_zeros(()))


def opacity_ambiguity(opacity: Tensor) -> Tensor:
    """mean α(1 − α): 0 when every pixel is either empty or covered, ¼ at most."""
    return (opacity * (1 - opacity)).mean()


def filled_share(density: Tensor) -> Tensor:
    """mean σ/(σ + 1) of densities per unit length: near 0 where there is haze only, near 1 where all is opaque."""
    return (density / (density + 1)).mean()


@dataclass(frozen=True, slots=True)
class Penalties:
    """Weights of a surface's four penalties. Source of the defaults: `configs/mvdream-sd21.yaml`, which has none."""

    orient: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """(start, end, until): from start to end while the progress goes from 0 to until, then end."""
    sparsity: float = 0.0
    opaque: float = 0.0
    depth_variance: float = 0.0
    unit: float = 1.0
    """Factor of all: published weights stand beside a sum over a view's latents, halved, of which our methods
    return 2/(C·H·W) times (`methods/sds.py`). So for latents C × H × W, published weights want this unit."""

    @property
    def none(self) -> bool:
        """Whether all weights are 0 throughout."""
        return not any((*self.orient[:2], self.sparsity, self.opaque, self.depth_variance))

    def orient_at(self, progress: float) -> float:
        """The weight of orientation at `progress` in [0, 1]."""
        start, end, until = self.orient
        return start + (end - start) * min(1.0, progress / until) if until > 0 else end


def surface_penalty(surface: Surface, weights: Penalties, progress: float) -> Tensor:
    """Weigh the four penalties of a render at `progress`; differentiable to the surface. A scalar."""
    total = surface.opacity.new_zeros(())
    if (orient := weights.orient_at(progress)) > 0:
        total = total + orient * orientation(surface.backfacing, surface.opacity)
    if weights.sparsity > 0:
        total = total + weights.sparsity * sparsity(surface.opacity)
    if weights.opaque > 0:
        total = total + weights.opaque * opaqueness(surface.opacity)
    if weights.depth_variance > 0:
        total = total + weights.depth_variance * depth_spread(surface.depth_variance, surface.opacity)
    return weights.unit * total


def backfacing(weights_P: Tensor, normals_P3: Tensor, directions_P3: Tensor) -> Tensor:
    """sg[w] max(n · d, 0)² for samples with outward normals n on rays in direction d: (P,).

    Differentiable to the normals: what is seen shall face the camera, not hide.
    """
    away_P = (normals_P3 * directions_P3).sum(-1).clamp_min(0)
    return weights_P.detach() * away_P.square()


def orientation(backfacing: Tensor, opacity: Tensor) -> Tensor:
    """Σ backfacing / #(pixels with opacity > 0), of tensors of any shapes: 0 when all that is seen faces the camera."""
    return backfacing.sum() / (opacity > 0).sum().clamp_min(1)


def sparsity(opacity: Tensor) -> Tensor:
    """mean √(α² + .01): least when pixels are empty."""
    return (opacity.square() + 0.01).sqrt().mean()


def opaqueness(opacity: Tensor) -> Tensor:
    """Mean entropy −α log α − (1 − α) log(1 − α), α clamped to [.001, .999]: least for decided pixels."""
    alpha = opacity.clamp(1e-3, 1 - 1e-3)
    return -(alpha * alpha.log() + (1 - alpha) * (1 - alpha).log()).mean()


def depth_spread(depth_variance: Tensor, opacity: Tensor) -> Tensor:
    """Mean of Σ w (t − depth)² over pixels of opacity > ½: least when a ray meets one thin surface."""
    seen = opacity > 0.5
    return (depth_variance * seen).sum() / seen.sum().clamp_min(1)
