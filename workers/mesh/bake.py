"""The colors of a mesh, read from the field it was extracted from: per vertex, and as a texture on a UV atlas."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
import xatlas
from numpy.typing import NDArray
from scipy import ndimage

from workers.mesh.raster import cover
from workers.mesh.surface import Mesh, Skin

if TYPE_CHECKING:
    from collections.abc import Callable

    from workers.contracts import Field

__all__ = ["LinearShading", "bake"]

INSIDE_CELLS = (0.5, 1.0, 1.5)
"""Depths below the surface, in grid cells, at which the field's color is read. On the surface itself half of
the color would be that of the empty space outside, which no loss ever looked at."""
GUTTER_PX = 2
"""Least distance between charts in the atlas, so that bilinear look-ups do not mix them."""
POINTS_PER_CALL = 1 << 18

Points = NDArray[np.float32]


class LinearShading(NamedTuple):
    """Light that does not move with the camera: factor = constant + x·n_x + y·n_y + z·n_z, on sRGB values."""

    constant: float
    x: float
    y: float
    z: float

    def __call__(self, normals: Points) -> Points:
        """(P, 3) unit normals → (P,) factors."""
        factor: Points = self.constant + normals @ np.array(self[1:], np.float32)
        return factor


def bake(
    mesh: Mesh,
    field: Field,
    texture_px: int = 512,
    shading: Callable[[Points], Points] | None = None,
    device: torch.device | str = "cpu",
) -> Mesh:
    """Give a mesh its colors: the field's, divided by the light that the prior paints into its pictures.

    `shading` maps unit normals (P, 3) to the factors (P,) > 0 that are to be divided out (None: nothing is),
    so that what is stored is albedo. `device` is where the field lives.
    """

    def albedo(points: Points, normals: Points) -> NDArray[np.uint8]:
        color = _color_inside(field, points, normals, mesh.cell, device)
        if shading is not None:
            color = color / shading(normals)[:, None]
        return np.rint(np.clip(color, 0, 1) * 255).astype(np.uint8)

    corner_uv = _atlas(mesh, texture_px)
    vertex_colors = albedo(mesh.vertices, _vertex_normals(mesh))
    face, weights = cover(corner_uv.astype(np.float64) * texture_px - 0.5, None, texture_px, texture_px)
    covered = face >= 0
    corner_weights = weights[covered].astype(np.float32)
    points = np.einsum("pck,pc->pk", mesh.vertices[mesh.faces[face[covered]]], corner_weights)
    normals = np.einsum("pck,pc->pk", mesh.corner_normals[face[covered]], corner_weights)
    texture = np.zeros((texture_px, texture_px, 3), np.uint8)
    texture[covered] = albedo(points, _unit(normals))
    # Beside the charts the nearest color goes on: no seam shows in look-ups between pixels or in mip levels.
    nearest = ndimage.distance_transform_edt(~covered, return_distances=False, return_indices=True)
    return dataclasses.replace(mesh, skin=Skin(vertex_colors, corner_uv, texture[tuple(nearest)]))


def _color_inside(
    field: Field, points: Points, normals: Points, cell: float, device: torch.device | str
) -> NDArray[np.float32]:
    """Mean color (P, 3) a little below the surface, weighted by density: where nothing is, no color counts."""
    below = points[:, None] - normals[:, None] * (np.array(INSIDE_CELLS, np.float32) * cell)[:, None]
    samples = torch.from_numpy(np.clip(below, -1, 1).astype(np.float32))
    colors = []
    with torch.no_grad():
        for chunk in samples.split(POINTS_PER_CALL // len(INSIDE_CELLS)):
            flat = chunk.reshape(-1, 3).to(device)
            weight = field.density(flat).float().reshape(-1, len(INSIDE_CELLS), 1) + 1e-6
            color = field.color(flat).float().reshape(-1, len(INSIDE_CELLS), 3)
            colors.append((weight * color).sum(1) / weight.sum(1))
    mean: NDArray[np.float32] = torch.cat(colors).cpu().numpy()
    return mean


def _vertex_normals(mesh: Mesh) -> Points:
    corners = mesh.corner_normals.reshape(-1, 3)
    index = mesh.faces.ravel()
    return _unit(
        np.stack([np.bincount(index, corners[:, axis], len(mesh.vertices)) for axis in range(3)], -1)
    )


def _unit(vectors: NDArray[np.floating]) -> Points:
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.maximum(length, 1e-12)).astype(np.float32)


def _atlas(mesh: Mesh, texture_px: int) -> NDArray[np.float32]:
    """Unfold the surface into one square image: (F, 3, 2) coordinates of the corners in [0, 1]."""
    atlas = xatlas.Atlas()
    atlas.add_mesh(mesh.vertices, mesh.faces.astype(np.uint32))
    packing = xatlas.PackOptions()
    # With a resolution and no texel size xatlas packs one atlas of about that size; its coordinates are
    # fractions of the true size, so it is the baked image that has exactly texture_px.
    packing.resolution, packing.padding, packing.bilinear = texture_px, GUTTER_PX, True
    atlas.generate(xatlas.ChartOptions(), packing)
    assert atlas.atlas_count == 1, f"xatlas made {atlas.atlas_count} atlases of one surface"
    _, indices, uv = atlas.get_mesh(0)
    return np.ascontiguousarray(uv[indices], np.float32)
