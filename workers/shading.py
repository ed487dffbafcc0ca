"""Light on a field: how it looks in one training step, lit by a point light or not at all.

DreamFusion, arXiv 2209.14988, section 3.1, as in `diffuse_with_point_light_material.py` and
`random_multiview.py` of MVDream-threestudio, in its shading configuration. With albedo ρ, outward normal n and the
unit vector ℓ from the point to the light,

    light = ambient + diffuse · max(n · ℓ, 0);   color = ρ (albedo), light (textureless) or ρ · light (diffuse).

Differs from the published code: nothing (its random numbers come from another generator).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple, assert_never

import torch
from torch.nn import functional as F

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from workers.cameras import Cameras

__all__ = ["Look", "PointLight", "ShadingMode", "draw_light", "shade"]

ShadingMode = Literal["albedo", "textureless", "diffuse"]

_AMBIENT_ONLY_UNTIL = 0.5
"""Progress before which nothing is shaded: step 5000 of 10 000. Source, as for the shares and the distance below:
`configs/mvdream-sd21-shading.yaml` of MVDream-threestudio."""
_LIT_SHARE, _TEXTURELESS_SHARE = 0.75, 0.5
"""How often a picture is shaded after that, and how often a shaded one has no texture."""
_LIGHT_DISTANCE = (0.8, 1.5)
"""From the origin; the box's edge is 2 long."""


class PointLight(NamedTuple):
    """One point light per view, and the ambient light beside it."""

    positions: Tensor
    """(..., 3) in world space."""
    ambient: float
    """Light that comes from everywhere, in [0, 1]."""
    diffuse: float
    """Light of the point, in [0, 1]: its distance does not matter."""
    mode: ShadingMode


class Look(NamedTuple):
    """How a field wants to be rendered in one step; by default as it is."""

    background: Callable[[Tensor], Tensor] | None = None
    """Colors (R, 3) behind the object for unit directions (R, 3); None leaves the picture transparent."""
    light: PointLight | None = None
    """Lights of the views (G, V); None shows the plain color."""
    normals: Callable[[Tensor], Tensor] | None = None
    """Outward unit normals (P, 3) at positions (P, 3); needed to shade, and to tell what faces away."""
    min_alpha: float = 0.0
    """Samples of less alpha than this, or behind 99.99 % of opacity, are left out of picture and gradient."""


def shade(albedo_P3: Tensor, points_P3: Tensor, normals_P3: Tensor, light: PointLight) -> Tensor:
    """Light points (P, 3) of a color by a light at `light.positions` (P, 3): (P, 3), may exceed 1 if the lights do.

    Differentiable to color, points and normals.
    """
    if light.mode == "albedo":
        return albedo_P3
    toward_P3 = F.normalize(light.positions - points_P3, dim=-1)
    facing_P1 = (normals_P3 * toward_P3).sum(-1, keepdim=True).clamp_min(0)
    light_P1 = facing_P1 * light.diffuse + light.ambient
    match light.mode:
        case "textureless":
            return light_P1.expand_as(albedo_P3)
        case "diffuse":
            return albedo_P3.clamp(0, 1) * light_P1
        case _:
            assert_never(light.mode)


def draw_light(cameras: Cameras, progress: float, generator: torch.Generator) -> PointLight:
    """Draw a light for cameras (G, V) from a generator on the CPU.

    Until half of the steps nothing is shaded; then a quarter is not, and a half of what is has no texture. The
    diffuse share is uniform in [0, 1] and the ambient light is the rest. The direction of a light is that of the
    camera plus one normal draw per group, its distance uniform.
    """
    lit, textureless, diffuse = torch.rand(3, generator=generator, dtype=torch.float64).tolist()
    mode: ShadingMode = "textureless" if textureless < _TEXTURELESS_SHARE else "diffuse"
    if progress < _AMBIENT_ONLY_UNTIL or lit > _LIT_SHARE:
        mode = "albedo"
    where_GV3 = cameras.c2w[..., :3, 3]
    shift_G13 = torch.randn(len(where_GV3), 1, 3, generator=generator).to(where_GV3)
    near, far = _LIGHT_DISTANCE
    distance_G11 = near + (far - near) * torch.rand(len(where_GV3), 1, 1, generator=generator).to(where_GV3)
    positions = F.normalize(where_GV3 + shift_G13, dim=-1) * distance_G11
    return PointLight(positions, ambient=1 - diffuse, diffuse=diffuse, mode=mode)
