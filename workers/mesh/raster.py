"""Pictures of a mesh without a GPU: a z-buffer over all triangles at once, in numpy.

F faces, V views, H height, W width. Pixel centers have integer coordinates, row 0 on top, as in
`cameras.camera_rays`, so that a raster and a render of the same cameras lie on each other pixel by pixel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from scipy import ndimage

from workers.cameras import Cameras, view_projection

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from workers.mesh.surface import Mesh

__all__ = ["Raster", "cover", "rasterize", "sample_texture"]

PLAIN_COLOR = 0.7
"""sRGB gray of a mesh that has no colors yet."""
CANDIDATES_PER_PASS = 1 << 20
"""Pairs of a triangle and a pixel of its bounding box that are tested at a time; bounds the memory (~100 MB)."""


_NOTHING = np.iinfo(np.uint64).max


class Raster(NamedTuple):
    """What cameras see of a mesh's surface, unlit; zeros beside it. The leading shape is the cameras'."""

    rgb: Tensor
    """(..., 3, H, W) sRGB base color in [0, 1]."""
    mask: Tensor
    """(..., 1, H, W) 1 where the mesh is, else 0."""
    depth: Tensor
    """(..., 1, H, W) distance along the ray."""
    normals: Tensor
    """(..., 3, H, W) unit normals in world space."""


def rasterize(mesh: Mesh, cameras: Cameras, image_px: int) -> Raster:
    """See the outer side of a mesh from every camera, image_px × image_px pixels, one sample each.

    Faces that reach behind a camera are not drawn. On the CPU, whatever device the cameras are on.
    """
    batch = cameras.fov_y_deg.shape
    exact = Cameras(*(x.detach().cpu().double() for x in cameras))
    to_clip = view_projection(exact).numpy().reshape(-1, 4, 4)
    positions = exact.c2w[..., :3, 3].numpy().reshape(-1, 3)
    views = [_rasterize_view(mesh, *view, image_px) for view in zip(to_clip, positions, strict=True)]
    images = torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2).reshape(*batch, 8, image_px, image_px)
    return Raster(*images.split([3, 1, 1, 3], dim=-3))


def _rasterize_view(
    mesh: Mesh, to_clip: NDArray[np.float64], position: NDArray[np.float64], px: int
) -> NDArray[np.float32]:
    """One view as (H, W, 8): rgb, mask, depth, normal."""
    clip = mesh.vertices @ to_clip[:, :3].T + to_clip[:, 3]
    ahead = clip[:, 3]
    with np.errstate(divide="ignore"):
        inverse_depth = np.where(ahead > 1e-6, 1 / ahead, np.nan)
    xy_px = clip[:, :2] * inverse_depth[:, None] * (px / 2) + (px - 1) / 2
    corners = xy_px[mesh.faces]
    (ax, ay), (bx, by) = (np.moveaxis(corners[:, i] - corners[:, 0], 1, 0) for i in (1, 2))
    # Rows point down, so what is counter-clockwise from outside turns clockwise here; NaN drops out as well.
    (front,) = np.nonzero(ax * by - ay * bx < 0)
    face, weights = cover(corners[front], inverse_depth[mesh.faces[front]], px, px)
    row, column = np.nonzero(face >= 0)
    hit = front[face[row, column]]
    weights = weights[row, column] * inverse_depth[mesh.faces[hit]]  # linear on the screen → linear in space
    weights /= weights.sum(1, keepdims=True)
    image = np.zeros((px, px, 8), np.float32)
    image[row, column, :3] = _colors(mesh, hit, weights)
    image[row, column, 3] = 1
    image[row, column, 4] = np.linalg.norm(_blend(mesh.vertices[mesh.faces[hit]], weights) - position, axis=1)
    normals = _blend(mesh.corner_normals[hit], weights)
    image[row, column, 5:] = normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
    return image


def _blend(corner_values: NDArray[np.float32], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    blended: NDArray[np.float64] = np.einsum("pck,pc->pk", corner_values, weights)
    return blended


def _colors(mesh: Mesh, face: NDArray[np.int64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    if mesh.skin is None:
        return np.full((len(face), 3), PLAIN_COLOR)
    return sample_texture(mesh.skin.texture, _blend(mesh.skin.corner_uv[face], weights))


def sample_texture(texture: NDArray[np.uint8], uv: NDArray[np.float64]) -> NDArray[np.float64]:
    """Look colors up bilinearly at (P, 2) coordinates, (0, 0) = the image's upper left corner: (P, 3) in [0, 1]."""
    height, width, _ = texture.shape
    row, column = uv[:, 1] * height - 0.5, uv[:, 0] * width - 0.5
    channels = [
        ndimage.map_coordinates(
            texture[..., channel], [row, column], output=np.float64, order=1, mode="nearest"
        )
        for channel in range(3)
    ]
    return np.stack(channels, -1) / 255


def cover(
    corners_px: NDArray[np.float64], inverse_depth: NDArray[np.float64] | None, height: int, width: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Find which triangle each pixel center of an image lies in; the nearest, then the first, wins.

    `corners_px` (F, 3, 2) are the corners' columns and rows, `inverse_depth` (F, 3) > 0 is linear on the
    screen (None: all equally near). Returns the triangle's index (H, W), −1 where there is none, and the
    pixel's barycentric weights in it (H, W, 3).
    """
    x, y = corners_px[..., 0], corners_px[..., 1]
    first_x, first_y = (np.maximum(np.ceil(v.min(1)), 0).astype(np.int64) for v in (x, y))
    last_x, last_y = (
        np.minimum(np.floor(v.max(1)), size - 1).astype(np.int64) for v, size in ((x, width), (y, height))
    )
    columns = np.maximum(last_x - first_x + 1, 0)
    candidates = columns * np.maximum(last_y - first_y + 1, 0)
    plane = _barycentric_planes(x, y)
    candidates[~np.isfinite(plane).all((1, 2))] = 0
    nearest = np.full(height * width, _NOTHING)
    for block in _blocks(candidates):
        face = np.repeat(block, candidates[block])
        start = np.cumsum(candidates[block]) - candidates[block]
        index = np.arange(len(face)) - np.repeat(start, candidates[block])
        px, py = first_x[face] + index % columns[face], first_y[face] + index // columns[face]
        weights = _weights(plane[face], px, py)
        inside = weights.min(1) >= -1e-9
        face, pixel, weights = face[inside], (py * width + px)[inside], weights[inside]
        near = None if inverse_depth is None else (weights * inverse_depth[face]).sum(1)
        np.minimum.at(nearest, pixel, _order(face, near))
    (hit,) = np.nonzero(nearest != _NOTHING)
    winner = (nearest[hit] & np.uint64(0xFFFFFFFF)).astype(np.int64)
    face_of, weights_of = np.full(height * width, -1), np.zeros((height * width, 3))
    face_of[hit], weights_of[hit] = winner, _weights(plane[winner], hit % width, hit // width)
    return face_of.reshape(height, width), weights_of.reshape(height, width, 3)


def _weights(plane: NDArray[np.float64], x: NDArray[np.int64], y: NDArray[np.int64]) -> NDArray[np.float64]:
    """Barycentric weights (P, 3) of pixels in their triangles' planes (P, 3, 3)."""
    weights: NDArray[np.float64] = plane[..., 0] * x[:, None] + plane[..., 1] * y[:, None] + plane[..., 2]
    return weights


def _order(face: NDArray[np.int64], inverse_depth: NDArray[np.float64] | None) -> NDArray[np.uint64]:
    """Keys of which the least is the nearest, then the first: far-ness in the upper half, index in the lower."""
    index = face.astype(np.uint64)
    if inverse_depth is None:
        return index
    # A positive float's bits order like the float itself.
    farness = np.iinfo(np.uint32).max - inverse_depth.astype(np.float32).view(np.uint32)
    return (farness.astype(np.uint64) << np.uint64(32)) | index


def _barycentric_planes(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """(F, 3, 3): weight i of a pixel = plane[i] · (column, row, 1); not finite for triangles without area."""
    x1, x2 = np.roll(x, -1, 1), np.roll(x, -2, 1)
    y1, y2 = np.roll(y, -1, 1), np.roll(y, -2, 1)
    planes = np.stack([y1 - y2, x2 - x1, x1 * y2 - x2 * y1], -1)
    with np.errstate(divide="ignore", invalid="ignore"):
        scaled: NDArray[np.float64] = planes / planes[..., 2].sum(1)[:, None, None]
    return scaled


def _blocks(candidates: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Group the triangles that have candidates so that a group has about CANDIDATES_PER_PASS of them."""
    (some,) = np.nonzero(candidates)
    group = np.cumsum(candidates[some]) // CANDIDATES_PER_PASS
    return np.split(some, np.nonzero(np.diff(group))[0] + 1) if len(some) else []
