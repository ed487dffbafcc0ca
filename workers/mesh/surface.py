"""From a field's density to one clean closed surface.

A radiance field is foggy. No fixed density means "surface" (a fixed one lost most of the object in our prototype),
and inside an object, where no camera looks, the density does what it likes. So two steps stand between density and
surface:

1. Each cell gets its *dimming*: the optical depth between it and the outside, along the clearest of 26 straight
   ways, haze left out. It grows inward from every side, whatever the density does, so hollows, and pits under a
   weak spot of the shell, vanish.
2. The level is read off the field itself: it is the dimming at which the silhouette {largest dimming along a ray >
   level} matches best what cameras see, {opacity of the ray > 1/2}.
"""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import fast_simplification
import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage, sparse
from skimage.measure import marching_cubes
from torch.nn import functional

from workers.cameras import camera_rays, orbit_cameras

if TYPE_CHECKING:
    from torch import Tensor

    from workers.contracts import Field

__all__ = ["EmptyMesh", "Mesh", "Skin", "Topology", "dimming", "extract", "topology"]

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]
Bytes = NDArray[np.uint8]

HAZE_DENSITY = 5.0
"""Per unit length. Density σ counts as σ² / (σ + this) in the dimming, for thinner than this (half opaque after a
seventh of the object) is mostly haze: it must not add up to a surface across the hole of a torus. With it silhouettes
agree better on every field tried, and a hole stays open under a haze of a third of opacity."""
MIN_DIMMING, MAX_DIMMING = 1e-3, 10.0
"""Optical depths of an opacity of .1 % and of 99.995 %: what lies beyond looks the same."""
NUM_LEVELS = 64
"""Candidate levels, logarithmic from the clearest to the most opaque ray (a step is at most 16 %)."""
PLATEAU_IOU = 0.002
"""Levels whose silhouettes differ by less than this from the best are equally good; the middle one is taken."""
MIN_OPAQUE_RAYS = 1e-3
"""A field of which a smaller fraction of the rays is opaque holds nothing (an object 3 % as wide as the box)."""
MIN_COMPONENT_AREA = 0.02
"""Components with a smaller fraction of the whole area are floaters."""
BLUR_CELLS = 1.2
"""Standard deviation of the blur that takes off the staircase of the field's own grid (measured on cones and boxes:
a quarter less tilt of the normals, tips 2 % of the box lower at the most, silhouettes unchanged)."""
SILHOUETTE_PX = 96
TAUBIN_ROUNDS = 8
TAUBIN_FACTORS = (0.5, -0.53)
"""Shrinking and growing step of one Taubin round (Taubin 1995: the pair leaves low frequencies as they are)."""
CREASE_COS = 0.7071
"""Faces that meet at more than 45° are shaded apart."""
MIN_ALIKE = 0.1
"""Least fraction of the area around a vertex that must face the way of a corner for the corner to be sharp."""
POINTS_PER_CALL = 1 << 19


class EmptyMesh(Exception):
    """The field holds nothing that a surface could be drawn around."""


class Topology(NamedTuple):
    """How well a surface is closed."""

    watertight: bool
    """Every edge joins exactly two faces, which run along it in opposite directions."""
    components: int
    non_manifold_edges: int
    """Edges of more than two faces, or of two faces that run along it in the same direction."""
    open_edges: int
    """Edges of one face only."""


@dataclass(frozen=True)
class Skin:
    """The colors of a mesh, twice: per vertex and as a texture."""

    vertex_colors: Bytes
    """(V, 3) sRGB base color (albedo)."""
    corner_uv: Floats
    """(F, 3, 2) texture coordinates of each face's corners in [0, 1], (0, 0) = upper left corner of the image."""
    texture: Bytes
    """(px, px, 3) sRGB base color (albedo); what no face covers repeats the nearest color."""


@dataclass(frozen=True)
class Mesh:
    """A welded triangle mesh in [−1, 1]³, +Y up, front +Z; what has seams lives on the corners of faces."""

    vertices: Floats
    """(V, 3)."""
    faces: Ints
    """(F, 3) indices of vertices, counter-clockwise seen from outside."""
    level: float
    """The dimming (optical depth to the outside) at which the surface was drawn."""
    cell: float
    """Edge length of the grid's cells that the surface was drawn in."""
    skin: Skin | None = None
    """The colors, once baked."""

    @functools.cached_property
    def corner_normals(self) -> Floats:
        """(F, 3, 3) unit normal of each face's corners, smooth within 45° and sharp beyond."""
        return _corner_normals(self.vertices, self.faces)


def extract(
    field: Field, resolution: int = 128, target_faces: int = 20_000, device: torch.device | str = "cpu"
) -> Mesh:
    """Draw the surface of a field: closed, outward, without cavities and floaters, at most `target_faces` faces.

    `resolution` is the number of grid cells along each axis; `device` is where the field lives.
    Raises `EmptyMesh` when there is nothing to draw, ValueError when the density is not finite.
    """
    density = _density_grid(field, resolution, device)
    solid = dimming(density * density / (density + HAZE_DENSITY))
    log_dimming = np.log(np.clip(solid, MIN_DIMMING, MAX_DIMMING))
    log_dimming = ndimage.gaussian_filter(log_dimming, BLUR_CELLS, mode="nearest", truncate=2.5)
    log_level = _silhouette_level(*_cast_rays(density, log_dimming))
    vertices, faces = _isosurface(log_dimming, log_level)
    vertices, faces = _drop_floaters(vertices, faces)
    vertices = _taubin(vertices, faces)
    vertices, faces = _simplify(vertices, faces, target_faces)
    return Mesh(vertices, faces, level=float(np.exp(log_level)), cell=2 / resolution)


def _density_grid(field: Field, resolution: int, device: torch.device | str = "cpu") -> Floats:
    """Sample a field's density at the centers of resolution³ cells of [−1, 1]³: (x, y, z) float32."""
    centers = (torch.arange(resolution, device=device) + 0.5) * (2 / resolution) - 1
    points = torch.stack(torch.meshgrid(centers, centers, centers, indexing="ij"), -1).reshape(-1, 3)
    with torch.no_grad():
        density = torch.cat([field.density(chunk) for chunk in points.split(POINTS_PER_CALL)])
    grid: Floats = density.float().cpu().numpy().reshape(resolution, resolution, resolution)
    if not np.isfinite(grid).all():
        raise ValueError(
            f"{np.count_nonzero(~np.isfinite(grid))} of {grid.size} density samples are NaN or infinite; "
            "the optimization of this field has diverged, so run it again with a smaller learning rate."
        )
    return grid


def dimming(density: Floats) -> Floats:
    """Integrate a density grid of [−1, 1]³ from outside to each cell's center, along the clearest of 26 directions.

    dimming(x) = min over directions d of ∫ density(x + s d) ds, d towards the neighbors of a cell in a 3×3×3 block.
    """
    clearest = np.full(density.shape, np.inf, np.float32)
    for direction in itertools.product((-1, 0, 1), repeat=3):
        if any(direction):
            _sweep(density, direction, clearest)
    return clearest


def _sweep(density: Floats, direction: tuple[int, ...], clearest: Floats) -> None:
    """March all rays of one direction through the grid, layer by layer, and lower `clearest` to what they meet."""
    axis = next(i for i in range(3) if direction[i])
    layers, lowest = np.moveaxis(density, axis, 0), np.moveaxis(clearest, axis, 0)
    sideways = [direction[i] for i in range(3) if i != axis]
    size = len(layers)
    came_from = tuple(slice(max(0, -by), size - max(0, by)) for by in sideways)
    goes_to = tuple(slice(max(0, by), size - max(0, -by)) for by in sideways)
    half_step = np.float32(math.hypot(*direction) / size)
    depth = np.zeros(layers.shape[1:], np.float32)
    for index in range(size)[:: direction[axis]]:
        half = half_step * layers[index]
        np.minimum(lowest[index], depth + half, out=lowest[index])
        passed = depth + 2 * half
        depth = np.zeros_like(passed)  # rays that enter through a side wall start clear
        depth[goes_to] = passed[came_from]


def _cast_rays(density: Floats, log_dimming: Floats) -> tuple[Floats, Floats]:
    """March rays of 8 views all around: opacity of the field and largest log dimming of each ray, both (R,)."""
    azimuth_deg = torch.arange(8) * 45.0
    elevation_deg = torch.tensor([15.0, 60.0, -15.0, 30.0, 0.0, -45.0, 15.0, 45.0])
    cameras = orbit_cameras(azimuth_deg, elevation_deg, distance=4.0, fov_y_deg=45.0)
    origins, directions = (
        rays.reshape(8, -1, 3) for rays in camera_rays(cameras, SILHOUETTE_PX, SILHOUETTE_PX)
    )
    # grid_sample reads the last axis as x, so the grids' axes (x, y, z) are reversed.
    volume = torch.from_numpy(np.stack([density, log_dimming]))[None].permute(0, 1, 4, 3, 2)
    num_samples = density.shape[0]
    opacity, peak = [], []
    for origin, direction in zip(origins, directions, strict=True):
        near, far = _box_span(origin, direction)
        hit = far > near
        step = ((far - near) / num_samples)[hit]
        distance = near[hit, None] + (torch.arange(num_samples) + 0.5) * step[:, None]
        points = origin[hit, None] + distance[..., None] * direction[hit, None]
        samples = functional.grid_sample(
            volume, points[None, None], align_corners=False, padding_mode="border"
        )
        opacity.append(1 - torch.exp(-(samples[0, 0, 0] * step[:, None]).sum(-1)))
        peak.append(samples[0, 1, 0].amax(-1))
    return torch.cat(opacity).numpy(), torch.cat(peak).numpy()


def _box_span(origin: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """Distances at which rays (R, 3) enter and leave [−1, 1]³; they miss it where far ≤ near."""
    to_walls = torch.stack([(-1 - origin) / direction, (1 - origin) / direction])
    return to_walls.amin(0).amax(-1), to_walls.amax(0).amin(-1)


def _silhouette_level(opacity: Floats, peak: Floats) -> float:
    """Choose the log dimming whose silhouette {peak > level} has the best IoU with {opacity > 1/2}."""
    opaque = opacity > 0.5
    if opaque.mean() < MIN_OPAQUE_RAYS:
        raise EmptyMesh(
            f"The field is empty: its most opaque ray reaches an opacity of {opacity.max():.2f}, and a surface "
            "needs more than 0.5 over some area. Try more steps, another seed or a simpler prompt."
        )
    levels = np.linspace(peak.min(), peak.max(), NUM_LEVELS + 2)[1:-1]
    inside, covered = np.sort(peak[opaque]), np.sort(peak)
    hits = len(inside) - np.searchsorted(inside, levels, side="right")
    iou = hits / (len(inside) + len(covered) - np.searchsorted(covered, levels, side="right") - hits)
    good = iou >= iou.max() - PLATEAU_IOU
    run, _ = ndimage.label(good)
    return float(levels[run == run[iou.argmax()]].mean())


def _isosurface(log_dimming: Floats, log_level: float) -> tuple[Floats, Ints]:
    """Run marching cubes: (V, 3) vertices in [−1, 1]³ and (F, 3) outward faces."""
    # A layer of nothing closes the surface where the object touches the wall of the box.
    grid = np.pad(log_dimming, 1, constant_values=np.log(MIN_DIMMING) - 1)
    # A corner exactly on the level would give faces without area.
    grid[np.abs(grid - log_level) < 1e-4] = log_level + 1e-4
    vertices, faces, _, _ = marching_cubes(grid, log_level)  # type: ignore[no-untyped-call]
    vertices = np.clip((vertices - 0.5) * (2 / len(log_dimming)) - 1, -1, 1)
    if _signed_volume(vertices, faces) < 0:
        faces = faces[:, ::-1]
    return vertices.astype(np.float32), np.ascontiguousarray(faces, np.int32)


def _signed_volume(vertices: Floats, faces: Ints) -> float:
    a, b, c = (vertices[faces[:, corner]].astype(np.float64) for corner in range(3))
    return float(np.einsum("fi,fi->", a, np.cross(b, c)) / 6)


def _edge_graph(num_vertices: int, faces: Ints) -> sparse.csr_array:
    """The symmetric (V, V) adjacency matrix of the vertices, ones where an edge is."""
    start, end = faces.ravel(), np.roll(faces, -1, axis=1).ravel()
    ones = np.ones(2 * len(start), np.float32)
    rows, columns = np.concatenate([start, end]), np.concatenate([end, start])
    graph = sparse.csr_array((ones, (rows, columns)), shape=(num_vertices, num_vertices))
    graph.data[:] = 1
    return graph


def _drop_floaters(vertices: Floats, faces: Ints) -> tuple[Floats, Ints]:
    _, component = sparse.csgraph.connected_components(_edge_graph(len(vertices), faces), directed=False)
    a, b, c = (vertices[faces[:, corner]] for corner in range(3))
    area = np.linalg.norm(np.cross(b - a, c - a), axis=1)
    area_of = np.bincount(component[faces[:, 0]], weights=area)
    return _without_unused(
        vertices, faces[(area_of >= MIN_COMPONENT_AREA * area.sum())[component[faces[:, 0]]]]
    )


def _without_unused(vertices: Floats, faces: Ints) -> tuple[Floats, Ints]:
    used, renumbered = np.unique(faces, return_inverse=True)
    return vertices[used], renumbered.reshape(faces.shape).astype(np.int32)


def _taubin(vertices: Floats, faces: Ints) -> Floats:
    """Smooth away the grid's ripple without shrinking (Taubin 1995)."""
    graph = _edge_graph(len(vertices), faces)
    mean = sparse.diags_array((1 / graph.sum(axis=1)).astype(np.float32)) @ graph
    for _ in range(TAUBIN_ROUNDS):
        for factor in TAUBIN_FACTORS:
            vertices = vertices + np.float32(factor) * (mean @ vertices - vertices)
    return np.clip(vertices, -1, 1)


def _simplify(vertices: Floats, faces: Ints, target_faces: int) -> tuple[Floats, Ints]:
    """Collapse edges by quadric error until `target_faces` are left, keeping the surface closed if possible."""
    if len(faces) <= target_faces:
        return vertices, faces
    best: tuple[int, Floats, Ints] | None = None
    # The more aggressive the collapse the faster, but the likelier it pinches the surface somewhere.
    for aggression in (7.0, 5.0, 3.0):
        points, triangles = fast_simplification.simplify(
            vertices, faces, target_count=target_faces, agg=aggression
        )
        points, triangles = _without_unused(points.astype(np.float32), triangles.astype(np.int32))
        closed = topology(triangles)
        flaws = closed.open_edges + closed.non_manifold_edges
        if best is None or flaws < best[0]:
            best = flaws, points, triangles
        if flaws == 0:
            break
    assert best is not None
    return best[1], best[2]


def topology(faces: Ints) -> Topology:
    """Count what is open, doubled or apart in a surface given by welded faces (F, 3)."""
    start, end = faces.ravel().astype(np.int64), np.roll(faces, -1, axis=1).ravel().astype(np.int64)
    num_vertices = int(faces.max()) + 1
    edge = np.minimum(start, end) * num_vertices + np.maximum(start, end)
    _, which, uses = np.unique(edge, return_inverse=True, return_counts=True)
    balance = np.bincount(which, weights=np.where(start < end, 1, -1))
    non_manifold = (uses > 2) | ((uses == 2) & (balance != 0))
    used = np.unique(faces)
    _, component = sparse.csgraph.connected_components(_edge_graph(num_vertices, faces), directed=False)
    return Topology(
        watertight=bool(((uses == 2) & (balance == 0)).all()),
        components=len(np.unique(component[used])),
        non_manifold_edges=int(non_manifold.sum()),
        open_edges=int((uses == 1).sum()),
    )


def _corner_normals(vertices: Floats, faces: Ints) -> Floats:
    """Average, for each corner, the normals of the faces around its vertex that lie within 45° of its own."""
    a, b, c = (vertices[faces[:, corner]].astype(np.float64) for corner in range(3))
    scaled = np.cross(b - a, c - a)  # its length, twice the area, is the weight
    # Sparse (corner × face) matrix: which faces share the corner's vertex.
    corner_of = sparse.csr_array(
        (np.ones(faces.size), (np.arange(faces.size), faces.ravel())), shape=(faces.size, len(vertices))
    )
    face_of = sparse.csr_array(
        (np.ones(faces.size), (faces.ravel(), np.repeat(np.arange(len(faces)), 3))),
        shape=(len(vertices), len(faces)),
    )
    pairs = (corner_of @ face_of).tocoo()
    corner, face = pairs.coords
    weight = np.linalg.norm(scaled, axis=1)
    unit = scaled / np.maximum(weight, 1e-20)[:, None]
    near = np.einsum("pi,pi->p", unit[corner // 3], unit[face]) >= CREASE_COS
    around, alike = (np.bincount(corner, weight[face] * part, faces.size) for part in (1.0, near))
    # A sliver's own direction is noise: where hardly any of the surface around agrees, all of it counts.
    near |= (alike < MIN_ALIKE * around)[corner]
    corner, face = corner[near], face[near]
    normals = np.stack([np.bincount(corner, scaled[face, axis], faces.size) for axis in range(3)], -1)
    length = np.linalg.norm(normals, axis=1, keepdims=True)
    normals = np.where(length > 1e-20, normals / np.maximum(length, 1e-20), np.array([0.0, 1.0, 0.0]))
    return normals.reshape(len(faces), 3, 3).astype(np.float32)
