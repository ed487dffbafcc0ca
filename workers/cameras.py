"""Cameras on a sphere around the object, and their rays, in the space of glTF.

Right-handed, +Y up, the object's front faces +Z and it lies inside [−1, 1]³. Azimuth 0° looks at the front
(the camera stands on +Z), 90° has the camera on +X. Cameras look along their own −Z.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["CameraRig", "Cameras", "camera_rays", "orbit_cameras"]


class Cameras(NamedTuple):
    """Pinhole cameras with square pixels and the principal point at the center."""

    c2w: Tensor
    """(..., 4, 4) camera-to-world matrices."""
    fov_y_deg: Tensor
    """(...) vertical field of view, degrees."""


def orbit_cameras(azimuth_deg: Tensor, elevation_deg: Tensor, distance: float, fov_y_deg: float) -> Cameras:
    """Place cameras at `distance` from the origin, looking at it, upright.

    Angles are broadcast against each other to the batch shape (...); |elevation| must stay below 90°.
    """
    azimuth, elevation = torch.broadcast_tensors(torch.deg2rad(azimuth_deg), torch.deg2rad(elevation_deg))
    sin_a, cos_a, sin_e, cos_e = azimuth.sin(), azimuth.cos(), elevation.sin(), elevation.cos()
    zero = torch.zeros_like(sin_a)
    right = torch.stack([cos_a, zero, -sin_a], -1)
    up = torch.stack([-sin_e * sin_a, cos_e, -sin_e * cos_a], -1)
    back = torch.stack([cos_e * sin_a, sin_e, cos_e * cos_a], -1)
    c2w = torch.zeros(*azimuth.shape, 4, 4, dtype=back.dtype, device=back.device)
    c2w[..., :3, 0], c2w[..., :3, 1], c2w[..., :3, 2], c2w[..., :3, 3] = right, up, back, back * distance
    c2w[..., 3, 3] = 1.0
    return Cameras(c2w, torch.full_like(azimuth, fov_y_deg))


def camera_rays(cameras: Cameras, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Rays through the pixel centers: origins and unit directions, each (..., height, width, 3), row 0 on top."""
    c2w = cameras.c2w
    focal_px = 0.5 * height / torch.tan(cameras.fov_y_deg * (math.pi / 360))[..., None, None]
    x = torch.arange(width, device=c2w.device) + 0.5 - width / 2
    y = height / 2 - torch.arange(height, device=c2w.device) - 0.5
    x_HW, y_HW = torch.meshgrid(x, y, indexing="xy")
    in_camera = torch.stack([x_HW / focal_px, y_HW / focal_px, -torch.ones_like(focal_px * x_HW)], -1)
    directions = torch.einsum("...ij,...hwj->...hwi", c2w[..., :3, :3], in_camera)
    directions = torch.nn.functional.normalize(directions, dim=-1)
    return c2w[..., None, None, :3, 3].expand_as(directions), directions


@dataclass(frozen=True, slots=True)
class CameraRig:
    """Where a prior wants its cameras during optimization: one ring of views, evenly spaced, at one elevation."""

    num_views: int = 4
    elevation_deg: tuple[float, float] = (-30.0, 75.0)
    moderate_elevation_deg: tuple[float, float] = (0.0, 35.0)
    moderate_share: float = 0.5
    """How often the elevation comes from the moderate range, which people look from."""
    distance: float = 3.6
    fov_y_deg: float = 40.0

    def draw(self, generator: torch.Generator) -> Cameras:
        """Draw one group (1, V): a base azimuth in [0°, 360°) and an elevation, from a generator on the CPU."""
        base, which, where = torch.rand(3, generator=generator).tolist()
        low, high = self.moderate_elevation_deg if which < self.moderate_share else self.elevation_deg
        azimuth_deg = 360 * (base + torch.arange(self.num_views) / self.num_views)
        elevation_deg = torch.tensor(low + (high - low) * where)
        return orbit_cameras(azimuth_deg[None], elevation_deg, self.distance, self.fov_y_deg)
