"""Exact pictures of the world: which part each ray meets, and how that surface is shaded.

A training picture keeps *part* and *shade* apart, so that one rendering can be repainted in new colors for ever.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from workers.cameras import Cameras, camera_rays
from workers.embedded.primitives import intersect
from workers.embedded.world import Arrangement, Part, to_unit, world_half

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["NO_PART", "SHADE_SCALE", "SHADING", "raycast", "shade"]

SHADING = (0.70, 0.10, 0.22, 0.05)
"""World-fixed, view-independent shading: constant, and factors of the unit normal's x, y and z.
Training pictures are shaded so that shape shows; a mesh's colors are divided by it, so that they are albedo."""

NO_PART = 255
SHADE_SCALE = 255.0
"""A stored shade byte is 255 × the shading factor."""


def shade(normals: NDArray[np.float32]) -> NDArray[np.float32]:
    """Shading factor (N,) of unit normals (N, 3)."""
    return np.asarray(SHADING[0] + normals @ np.array(SHADING[1:], np.float32), np.float32)


def raycast(
    arrangement: Arrangement, cameras: Cameras, image_px: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Render part ids and shades, each (V, image_px, image_px); `NO_PART` where a ray meets nothing."""
    origins, directions = (rays.reshape(-1, 3).numpy() for rays in camera_rays(cameras, image_px, image_px))
    nearest = np.full(len(origins), np.inf, np.float32)
    part_ids = np.full(len(origins), NO_PART, np.uint8)
    normals = np.zeros_like(origins)
    for index, part in enumerate(arrangement.parts):
        rays = _rays_near(part, origins, directions)
        hits = intersect(
            part.solid, to_unit(part, origins[rays]), to_unit(part, directions[rays], directions=True)
        )
        closer = hits.t < nearest[rays]
        chosen = rays[closer]
        nearest[chosen], part_ids[chosen] = hits.t[closer], index
        normals[chosen] = _world_normal(part, hits.normal[closer])
    length = np.linalg.norm(normals, axis=-1, keepdims=True)
    shades = shade(normals / np.maximum(length, 1e-12)) * (part_ids != NO_PART)
    shape = (cameras.c2w.shape[0], image_px, image_px)
    return part_ids.reshape(shape), np.round(shades * SHADE_SCALE).astype(np.uint8).reshape(shape)


def _rays_near(part: Part, origins: NDArray[np.float32], directions: NDArray[np.float32]) -> NDArray[np.intp]:
    """Rays that pass through the part's bounding sphere."""
    offset = np.array(part.center, np.float32) - origins
    along = np.einsum("ij,ij->i", offset, directions)
    distance_sq = np.einsum("ij,ij->i", offset, offset) - along**2
    return np.flatnonzero(distance_sq <= (world_half(part) ** 2).sum())


def _world_normal(part: Part, normals: NDArray[np.float32]) -> NDArray[np.float32]:
    world = np.empty_like(normals)
    axes = {0: [1, 0, 2], 1: [0, 1, 2], 2: [0, 2, 1]}[part.axis]
    world[:, axes] = normals / np.array(part.half, np.float32)
    return world
