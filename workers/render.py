"""Volume rendering: march rays through any field, fast enough for two CPU cores.

Legend: G groups, V views, H = W = `image_px`, R = G·V·H·W rays, S samples on a ray, P points worth asking about.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from workers.cameras import Cameras, camera_rays
from workers.contracts import Views

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from workers.contracts import Field

__all__ = ["render", "shrink"]

_INVISIBLE_WEIGHT = 1e-5
"""Samples that add less than this to a pixel get no color: 48 of them are an eighth of an 8-bit level."""


def render(
    field: Field,
    cameras: Cameras,
    image_px: int,
    num_samples: int,
    generator: torch.Generator | None = None,
    *,
    occupied: Callable[[Tensor], Tensor] | None = None,
) -> Views:
    """Render `field` for cameras (G, V) as square pictures; differentiable to the field's parameters.

    A ray's part inside the box [−1, 1]³ is cut into S equal intervals of length δ. With density σ_i and color
    c_i at interval i, α_i = 1 − exp(−σ_i δ), T_i = Π_{j<i}(1 − α_j), w_i = T_i α_i:
    rgb = Σ w_i c_i, opacity = Σ w_i, depth = Σ w_i t_i.

    Samples lie in the middle of their intervals; with a `generator` (on the CPU) each ray's samples are shifted
    together by one uniform draw within the interval, which makes the sum an unbiased estimate.
    `occupied` maps points (P, 3) to (P,) bool and says False only where the density is zero: the field is not asked
    there, which changes nothing but the time it takes.
    """
    origins_R3, directions_R3 = (x.reshape(-1, 3) for x in camera_rays(cameras, image_px, image_px))
    near_R, interval_R = _intervals(origins_R3, directions_R3, num_samples)
    shift = _shift(near_R, generator)
    t_RS = near_R[:, None] + (torch.arange(num_samples, device=near_R.device) + shift) * interval_R[:, None]
    points_RS3 = torch.addcmul(origins_R3[:, None], t_RS[..., None], directions_R3[:, None])

    points_P3, index_P = _worth_asking(points_RS3.flatten(0, 1), occupied)
    density_RS = _scatter(field.density(points_P3), index_P, t_RS.shape)
    weights_RS = _weights(density_RS * interval_R[:, None])
    visible = weights_RS.detach().flatten()[index_P] > _INVISIBLE_WEIGHT
    rgb_R3 = _blend_colors(field, weights_RS, points_P3[visible], index_P[visible])

    picture = (*cameras.c2w.shape[:-2], image_px, image_px)
    opacity = weights_RS.sum(-1).view(*picture, 1)
    depth = (weights_RS * t_RS).sum(-1).view(*picture, 1)
    return Views(
        rgb_R3.view(*picture, 3).movedim(-1, -3), opacity.movedim(-1, -3), depth.movedim(-1, -3), cameras
    )


def shrink(views: Views, factor: int) -> Views:
    """Average `factor` × `factor` pixels into one: exact for premultiplied colors, and how pictures are made."""

    def average(image: Tensor) -> Tensor:
        return F.avg_pool2d(image.flatten(0, 1), factor).unflatten(0, image.shape[:2])

    return Views(average(views.rgb), average(views.opacity), average(views.depth), views.cameras)


def _intervals(origins_R3: Tensor, directions_R3: Tensor, num_samples: int) -> tuple[Tensor, Tensor]:
    """Cut each ray's part inside the box: distance of entry and length of an interval (0 for a miss), each (R,)."""
    inverse = 1.0 / torch.where(directions_R3 == 0, torch.finfo(directions_R3.dtype).eps, directions_R3)
    one, other = (-1.0 - origins_R3) * inverse, (1.0 - origins_R3) * inverse
    near_R = torch.minimum(one, other).amax(-1).clamp_min(0.0)
    far_R = torch.maximum(one, other).amin(-1)
    return near_R, (far_R - near_R).clamp_min(0.0) / num_samples


def _shift(near_R: Tensor, generator: torch.Generator | None) -> Tensor | float:
    if generator is None:
        return 0.5
    return torch.rand(len(near_R), 1, generator=generator, dtype=near_R.dtype).to(near_R.device)


def _worth_asking(points: Tensor, occupied: Callable[[Tensor], Tensor] | None) -> tuple[Tensor, Tensor]:
    if occupied is None:
        return points, torch.arange(len(points), device=points.device)
    index_P = occupied(points).nonzero().squeeze(-1)
    return points[index_P], index_P


def _scatter(values_P: Tensor, index_P: Tensor, shape: torch.Size) -> Tensor:
    flat = torch.zeros(shape.numel(), dtype=values_P.dtype, device=values_P.device)
    return flat.index_copy(0, index_P, values_P).view(shape)


def _weights(optical_RS: Tensor) -> Tensor:
    """w_i = T_i α_i = T_i − T_{i+1}, with T_i = exp(−Σ_{j<i} σ_j δ)."""
    after_RS = torch.exp(-optical_RS.cumsum(-1))
    before_RS = torch.cat([torch.ones_like(after_RS[:, :1]), after_RS[:, :-1]], -1)
    return before_RS - after_RS


def _blend_colors(field: Field, weights_RS: Tensor, points_P3: Tensor, index_P: Tensor) -> Tensor:
    num_rays, num_samples = weights_RS.shape
    seen_P3 = weights_RS.flatten()[index_P, None] * field.color(points_P3)
    black = torch.zeros(num_rays, 3, dtype=weights_RS.dtype, device=weights_RS.device)
    return black.index_add(0, index_P // num_samples, seen_P3)
