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

__all__ = ["CameraRig", "Cameras", "VariedRig", "camera_rays", "orbit_cameras", "view_projection"]


class Cameras(NamedTuple):
    """Pinhole cameras with square pixels and the principal point at the center."""

    c2w: Tensor
    """(..., 4, 4) camera-to-world matrices."""
    fov_y_deg: Tensor
    """(...) vertical field of view, degrees."""


def orbit_cameras(
    azimuth_deg: Tensor, elevation_deg: Tensor, distance: Tensor | float, fov_y_deg: Tensor | float
) -> Cameras:
    """Place cameras at `distance` from the origin, looking at it, upright.

    All four are broadcast against each other to the batch shape (...); |elevation| must stay below 90°.
    """
    azimuth, elevation, far, fov_y = torch.broadcast_tensors(
        torch.deg2rad(azimuth_deg),
        torch.deg2rad(elevation_deg),
        torch.as_tensor(distance, dtype=azimuth_deg.dtype, device=azimuth_deg.device),
        torch.as_tensor(fov_y_deg, dtype=azimuth_deg.dtype, device=azimuth_deg.device),
    )
    sin_a, cos_a, sin_e, cos_e = azimuth.sin(), azimuth.cos(), elevation.sin(), elevation.cos()
    zero = torch.zeros_like(sin_a)
    right = torch.stack([cos_a, zero, -sin_a], -1)
    up = torch.stack([-sin_e * sin_a, cos_e, -sin_e * cos_a], -1)
    back = torch.stack([cos_e * sin_a, sin_e, cos_e * cos_a], -1)
    c2w = torch.zeros(*azimuth.shape, 4, 4, dtype=back.dtype, device=back.device)
    c2w[..., :3, :] = torch.stack([right, up, back, back * far[..., None]], -1)
    c2w[..., 3, 3] = 1.0
    return Cameras(c2w, fov_y.clone())


def view_projection(cameras: Cameras, aspect: float = 1.0, near: float = 0.1, far: float = 1000.0) -> Tensor:
    """Matrices (..., 4, 4) from homogeneous world to clip space, as rasterizers want them, rows pointing down.

    For a point (x, y, z, 1) they give (X, Y, Z, W): W > 0 is how far it lies ahead, X/W and Y/W go from −1 to 1
    from the left to the right and from the top to the bottom edge of a picture of width/height = `aspect`, Z/W from
    −1 at `near` to 1 at `far`.
    """
    per_height = 1 / torch.tan(cameras.fov_y_deg * (math.pi / 360))
    projection = torch.zeros_like(cameras.c2w)
    projection[..., 0, 0] = per_height / aspect
    projection[..., 1, 1] = -per_height
    projection[..., 2, 2] = -(far + near) / (far - near)
    projection[..., 2, 3] = -2 * far * near / (far - near)
    projection[..., 3, 2] = -1.0
    return projection @ _inverse(cameras.c2w)


def _inverse(c2w: Tensor) -> Tensor:
    """World-to-camera matrices (..., 4, 4) of rotations and translations."""
    w2c = torch.zeros_like(c2w)
    rotation = c2w[..., :3, :3].mT
    w2c[..., :3, :3] = rotation
    w2c[..., :3, 3] = -(rotation @ c2w[..., :3, 3:]).squeeze(-1)
    w2c[..., 3, 3] = 1.0
    return w2c


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
    elevation_deg: tuple[float, float] = (-60.0, 80.0)
    moderate_elevation_deg: tuple[float, float] = (0.0, 35.0)
    moderate_share: float = 0.25
    """How often the elevation comes from the moderate range, which people look from; more, and rings stay closed."""
    distance: float = 3.6
    fov_y_deg: float = 40.0

    def draw(self, generator: torch.Generator) -> Cameras:
        """Draw one group (1, V): a base azimuth in [0°, 360°) and an elevation, from a generator on the CPU."""
        base, which, where = torch.rand(3, generator=generator).tolist()
        low, high = self.moderate_elevation_deg if which < self.moderate_share else self.elevation_deg
        azimuth_deg = 360 * (base + torch.arange(self.num_views) / self.num_views)
        elevation_deg = torch.tensor(low + (high - low) * where)
        return orbit_cameras(azimuth_deg[None], elevation_deg, self.distance, self.fov_y_deg)


@dataclass(frozen=True, slots=True)
class VariedRig(CameraRig):
    """The cameras of MVDream's training: one ring of views whose elevation, field of view and distance vary.

    Source: `random_multiview.py` and `configs/mvdream-sd21.yaml` of MVDream-threestudio. `distance` and `fov_y_deg`
    are those of its test views, and what looks at a finished object. Differs from it: its step 0, where all
    views coincide, is a step like all others.
    """

    elevation_deg: tuple[float, float] = (0.0, 30.0)
    distance: float = 3.0
    fov_y_deg: float = 40.0
    drawn_fov_y_deg: tuple[float, float] = (15.0, 60.0)
    drawn_distance: tuple[float, float] = (0.8, 1.0)
    """In units of 1/tan(fov/2): at 1, the height of the picture is that of the box."""

    def draw(self, generator: torch.Generator) -> Cameras:
        """Draw one group (1, V) from a generator on the CPU.

        The elevation is uniform in its range or, as often, asin(2u − 1) for u uniform between (low + 90)/180 and
        (high + 90)/180: the published code's reading of "uniform on the sphere", which ends at 19.5° for 30°.
        """
        base, which, where, field, far = torch.rand(5, generator=generator, dtype=torch.float64).tolist()
        low, high = self.elevation_deg
        elevation_deg = low + (high - low) * where
        if which >= 0.5:
            elevation_deg = math.degrees(math.asin(elevation_deg / 90))
        fov_y_deg = _between(self.drawn_fov_y_deg, field)
        distance = _between(self.drawn_distance, far) / math.tan(math.radians(fov_y_deg) / 2)
        azimuth_deg = 360 * (base + torch.arange(self.num_views) / self.num_views)
        return orbit_cameras(azimuth_deg[None], torch.tensor(elevation_deg), distance, fov_y_deg)


def _between(bounds: tuple[float, float], share: float) -> float:
    return bounds[0] + (bounds[1] - bounds[0]) * share
