"""Volume rendering: march rays through any field, fast enough for two CPU cores.

Legend: G groups, V views, H = W = `image_px`, R = G·V·H·W rays, S samples on a ray, P points worth asking about.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch.nn import functional as F

from workers.cameras import Cameras, camera_rays
from workers.contracts import Surface, Views
from workers.regularizers import backfacing
from workers.shading import shade

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from workers.contracts import Field
    from workers.shading import Look

__all__ = [
    "blend_colors",
    "depth_variance",
    "opacity_and_depth",
    "over_background",
    "render",
    "sample_alphas",
    "sample_transmittance",
    "sample_weights",
    "shrink",
]

_INVISIBLE_WEIGHT = 1e-5
"""Samples that add less than this to a pixel get no color: 48 of them are an eighth of an 8-bit level."""
_HIDDEN_TRANSMITTANCE = 1e-4
"""Where a look leaves samples out, those behind all but this much are. Source: nerfacc 0.5, `early_stop_eps`."""


class _March(NamedTuple):
    """Rays, and what was found on them; P counts the samples that a pixel shows."""

    directions: Tensor
    """(R, 3)"""
    t: Tensor
    """(R, S)"""
    weights: Tensor
    """(R, S)"""
    points: Tensor
    """(P, 3)"""
    sample: Tensor
    """(P,) which of the R·S samples each point is."""


def render(
    field: Field,
    cameras: Cameras,
    image_px: int,
    num_samples: int,
    generator: torch.Generator | None = None,
    *,
    occupied: Callable[[Tensor], Tensor] | None = None,
    look: Look | None = None,
) -> Views:
    """Render `field` for cameras (G, V) as square pictures; differentiable to the field's parameters.

    A ray's part inside the box [−1, 1]³ is cut into S equal intervals of length δ. With density σ_i and color
    c_i at interval i, α_i = 1 − exp(−σ_i δ), T_i = Π_{j<i}(1 − α_j), w_i = T_i α_i:
    rgb = Σ w_i c_i, opacity = Σ w_i, depth = Σ w_i t_i.

    Samples lie in the middle of their intervals; with a `generator` (on the CPU) each ray's samples are shifted
    together by one uniform draw within the interval, which makes the sum an unbiased estimate.
    `occupied` maps points (P, 3) to (P,) bool and says False only where the density is zero: the field is not asked
    there, which changes nothing but the time it takes.
    A `look` adds light and background, after which the picture is opaque, and the views' `surface`.
    """
    march = _march(field, cameras, image_px, num_samples, generator, occupied=occupied, look=look)

    def picture(values_RC: Tensor) -> Tensor:
        return values_RC.view(*cameras.c2w.shape[:-2], image_px, image_px, -1).movedim(-1, -3)

    if look is None:
        rgb_R3 = blend_colors(march.weights, field.color(march.points), march.sample)
        opacity_R1, depth_R1 = opacity_and_depth(march.weights, march.t)
        return Views(picture(rgb_R3), picture(opacity_R1), picture(depth_R1), cameras)
    rgb_R3, backfacing_R1 = _look_at(field, look, march)
    opacity_R1, depth_R1 = opacity_and_depth(march.weights, march.t)
    variance_R1 = depth_variance(march.weights, march.t, depth_R1)
    surface = Surface(*(picture(values) for values in (opacity_R1, variance_R1, backfacing_R1)))
    if look.background is not None:
        rgb_R3 = over_background(rgb_R3, opacity_R1, look.background(march.directions))
        opacity_R1 = torch.ones_like(opacity_R1)
    return Views(picture(rgb_R3), picture(opacity_R1), picture(depth_R1), cameras, surface)


def shrink(views: Views, factor: int) -> Views:
    """Average `factor` × `factor` pixels into one: exact for premultiplied colors, and how pictures are made."""

    def average(image: Tensor) -> Tensor:
        return F.avg_pool2d(image.flatten(0, 1), factor).unflatten(0, image.shape[:2])

    surface = None if views.surface is None else Surface(*(average(image) for image in views.surface))
    return Views(average(views.rgb), average(views.opacity), average(views.depth), views.cameras, surface)


# --- the integral along a ray; intervals broadcast against densities ---


def sample_alphas(density_RS: Tensor, interval_RS: Tensor) -> Tensor:
    """α_i = 1 − exp(−σ_i δ_i): (R, S)."""
    return -torch.expm1(-density_RS * interval_RS)


def sample_transmittance(density_RS: Tensor, interval_RS: Tensor) -> Tensor:
    """T_i = exp(−Σ_{j<i} σ_j δ_j): (R, S)."""
    return _before(torch.exp(-(density_RS * interval_RS).cumsum(-1)))


def sample_weights(density_RS: Tensor, interval_RS: Tensor) -> Tensor:
    """w_i = T_i α_i = T_i − T_{i+1}, with T_i = exp(−Σ_{j<i} σ_j δ_j): (R, S)."""
    after_RS = torch.exp(-(density_RS * interval_RS).cumsum(-1))
    return _before(after_RS) - after_RS


def opacity_and_depth(weights_RS: Tensor, t_RS: Tensor) -> tuple[Tensor, Tensor]:
    """Σ w_i, and Σ w_i t_i, which is not divided by it: (R, 1) each."""
    return weights_RS.sum(-1, keepdim=True), (weights_RS * t_RS).sum(-1, keepdim=True)


def depth_variance(weights_RS: Tensor, t_RS: Tensor, depth_R1: Tensor) -> Tensor:
    """Σ w_i (t_i − depth)² with depth = Σ w_i t_i: (R, 1)."""
    return (weights_RS * (t_RS - depth_R1).square()).sum(-1, keepdim=True)


def blend_colors(weights_RS: Tensor, color_P3: Tensor, index_P: Tensor) -> Tensor:
    """Σ w_i c_i of the colors (P, 3) of samples `index_P` among R·S: (R, 3)."""
    return _sum_on_rays(weights_RS.flatten()[index_P, None] * color_P3, index_P, weights_RS.shape)


def over_background(rgb_R3: Tensor, opacity_R1: Tensor, background_R3: Tensor) -> Tensor:
    """Put premultiplied colors in front of others: rgb + (1 − opacity) · background."""
    return rgb_R3 + (1 - opacity_R1) * background_R3


def _march(
    field: Field,
    cameras: Cameras,
    image_px: int,
    num_samples: int,
    generator: torch.Generator | None,
    *,
    occupied: Callable[[Tensor], Tensor] | None,
    look: Look | None,
) -> _March:
    """Sample the rays of all pixels, and weigh the samples."""
    origins_R3, directions_R3 = (x.reshape(-1, 3) for x in camera_rays(cameras, image_px, image_px))
    near_R, interval_R = _intervals(origins_R3, directions_R3, num_samples)
    interval_R1 = interval_R[:, None]
    shift = _shift(near_R, generator)
    t_RS = near_R[:, None] + (torch.arange(num_samples, device=near_R.device) + shift) * interval_R1
    points_RS3 = torch.addcmul(origins_R3[:, None], t_RS[..., None], directions_R3[:, None])

    points_P3, index_P = _worth_asking(points_RS3.flatten(0, 1), occupied)
    if look is not None and look.min_alpha > 0:
        learns = _worth_learning(field, points_P3, index_P, interval_R1.expand_as(t_RS), look.min_alpha)
        points_P3, index_P = points_P3[learns], index_P[learns]
    density_RS = _scatter(field.density(points_P3), index_P, t_RS.shape)
    weights_RS = sample_weights(density_RS, interval_R1)
    visible = weights_RS.detach().flatten()[index_P] > _INVISIBLE_WEIGHT
    return _March(directions_R3, t_RS, weights_RS, points_P3[visible], index_P[visible])


@torch.no_grad()
def _worth_learning(
    field: Field, points_P3: Tensor, index_P: Tensor, interval_RS: Tensor, min_alpha: float
) -> Tensor:
    """Tell which points add at least `min_alpha` and are not hidden: (P,) bool. It saves the others' backward."""
    density_RS = _scatter(field.density(points_P3), index_P, interval_RS.shape)
    adds = sample_alphas(density_RS, interval_RS) >= min_alpha
    shows = sample_transmittance(density_RS, interval_RS) >= _HIDDEN_TRANSMITTANCE
    return (adds & shows).flatten()[index_P]


def _look_at(field: Field, look: Look, march: _March) -> tuple[Tensor, Tensor]:
    """Light the samples: colors (R, 3), and how much of what is seen faces away (R, 1)."""
    color_P3, ray_P = field.color(march.points), march.sample // march.t.shape[1]
    away_P = march.weights.new_zeros(len(ray_P))
    if look.normals is not None:
        normals_P3 = look.normals(march.points)
        away_P = backfacing(march.weights.flatten()[march.sample], normals_P3, march.directions[ray_P])
        if look.light is not None:
            lights_N3 = look.light.positions.reshape(-1, 3)
            pixels = len(march.t) // len(lights_N3)
            light = look.light._replace(positions=lights_N3[ray_P // pixels])
            color_P3 = shade(color_P3, march.points, normals_P3, light)
    rgb_R3 = blend_colors(march.weights, color_P3, march.sample)
    return rgb_R3, _sum_on_rays(away_P[:, None], march.sample, march.t.shape)


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


def _before(after_RS: Tensor) -> Tensor:
    """T_i from T_{i+1}: nothing is lost before the first sample."""
    return torch.cat([torch.ones_like(after_RS[:, :1]), after_RS[:, :-1]], -1)


def _sum_on_rays(values_PC: Tensor, index_P: Tensor, shape: torch.Size) -> Tensor:
    num_rays, num_samples = shape
    nothing = torch.zeros(num_rays, values_PC.shape[-1], dtype=values_PC.dtype, device=values_PC.device)
    return nothing.index_add(0, index_P // num_samples, values_PC)
