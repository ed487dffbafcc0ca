"""The colors of a mesh, read from the field it was extracted from: per vertex, and as a texture on a UV atlas."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from workers.mesh.atlas import unfold
from workers.mesh.raster import cover
from workers.mesh.surface import Mesh, Skin

if TYPE_CHECKING:
    from collections.abc import Callable

    from workers.contracts import Field

__all__ = ["LinearShading", "bake"]

DEPTHS_CELLS = np.arange(-0.5, 8.5, 1.0, dtype=np.float32)
"""Where colors are read, in grid cells below the surface: to where the fog of a trained field has become opaque
(.5 to 1.5 cells alone gave a third more noise in the albedo), but hardly outside, where another object may touch."""
INVISIBLE_WEIGHT = 2e-3
"""Samples that add less than this to a color are not asked for theirs."""
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
        color = _color_seen(field, points, normals, mesh.cell, device)
        if shading is not None:
            color = color / shading(normals)[:, None]
        return np.rint(np.clip(color, 0, 1) * 255).astype(np.uint8)

    corner_uv = unfold(mesh.vertices, mesh.faces, texture_px)
    vertex_colors = albedo(mesh.vertices, _vertex_normals(mesh))
    face, weights = cover(corner_uv.astype(np.float64) * texture_px - 0.5, None, texture_px, texture_px)
    covered = face >= 0
    corner_weights = weights[covered].astype(np.float32)
    points = np.einsum("pck,pc->pk", mesh.vertices[mesh.faces[face[covered]]], corner_weights)
    normals = np.einsum("pck,pc->pk", mesh.corner_normals[face[covered]], corner_weights)
    texture = np.zeros((texture_px, texture_px, 3), np.uint8)
    texture[covered] = albedo(points, _unit(normals))
    _cover_corners(texture, covered, corner_uv, vertex_colors[mesh.faces])
    # Beside the charts the nearest color goes on: no seam shows in look-ups between pixels or in mip levels.
    nearest = ndimage.distance_transform_edt(~covered, return_distances=False, return_indices=True)
    return dataclasses.replace(mesh, skin=Skin(vertex_colors, corner_uv, texture[tuple(nearest)]))


def _color_seen(
    field: Field, points: Points, normals: Points, cell: float, device: torch.device | str
) -> NDArray[np.float32]:
    """The color (P, 3) that a camera straight above each point of the surface sees, as `render` composites it.

    So a color counts as much as it is seen: neither the arbitrary one of empty space, nor, where two objects touch,
    the one behind the other.
    """
    below = points[:, None] - normals[:, None] * (DEPTHS_CELLS * cell)[:, None]
    num_depths = len(DEPTHS_CELLS)
    colors = []
    with torch.no_grad():
        for chunk in torch.from_numpy(np.clip(below, -1, 1)).split(POINTS_PER_CALL // num_depths):
            samples = chunk.reshape(-1, 3).to(device)
            opacity = 1 - torch.exp(-cell * field.density(samples).float().view(-1, num_depths))
            clear = torch.cumprod(1 - opacity, 1).roll(1, 1)
            clear[:, 0] = 1
            weight = clear * opacity
            weight += 1e-6  # where nothing is, all depths count alike
            weight = weight / weight.sum(1, keepdim=True)
            (visible,) = torch.nonzero(weight.flatten() > INVISIBLE_WEIGHT, as_tuple=True)
            parts = weight.flatten()[visible, None] * field.color(samples[visible]).float()
            whole = torch.zeros(len(weight), 4, device=parts.device)
            whole.index_add_(0, visible // num_depths, torch.cat([parts, weight.flatten()[visible, None]], 1))
            colors.append(whole[:, :3] / whole[:, 3:])
    seen: NDArray[np.float32] = torch.cat(colors).cpu().numpy()
    return seen


def _cover_corners(
    texture: NDArray[np.uint8],
    covered: NDArray[np.bool_],
    corner_uv: NDArray[np.float32],
    corner_colors: NDArray[np.uint8],
) -> None:
    """Paint the four texels around each corner that no face covers: a chart may be too small to cover any."""
    texture_px = len(texture)
    first = np.floor(corner_uv.reshape(-1, 2) * texture_px - 0.5).astype(np.int64)
    free = ~covered
    for offset in ((0, 0), (0, 1), (1, 0), (1, 1)):
        column, row = np.clip(first + offset, 0, texture_px - 1).T
        todo = free[row, column]
        texture[row[todo], column[todo]] = corner_colors.reshape(-1, 3)[todo]
        covered[row[todo], column[todo]] = True


def _vertex_normals(mesh: Mesh) -> Points:
    corners = mesh.corner_normals.reshape(-1, 3)
    index = mesh.faces.ravel()
    return _unit(
        np.stack([np.bincount(index, corners[:, axis], len(mesh.vertices)) for axis in range(3)], -1)
    )


def _unit(vectors: NDArray[np.floating]) -> Points:
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.maximum(length, 1e-12)).astype(np.float32)
