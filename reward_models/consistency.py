"""3D consistency without a trained network: do the renders of an object show one and the same solid thing?

Legend: V views, K neighbors of a view, P = V·K ordered pairs of views (i, j), N = H·W pixels, M cells.

What is measured, for renders with depth and cameras (nothing is said about the prompt or about beauty):

1. *Reprojection.* Each view i has K neighbors j, those whose cameras look from the nearest directions. A pixel of i
   inside the object is put where its depth says, x = o + t d, and looked up in j, in the 3 × 3 pixels around x's image:
   - **met**: one of them lies as far from camera j as x does, within 1.5 pixel widths: both views see that surface;
   - **hidden**: not met, and something in j stands before x, or x is outside j's picture. This says nothing;
   - **contradicted**: j looks through x, although i says that there is matter.
   c is the share of contradicted pixels among the met and the contradicted ones.
2. *Feature agreement.* a is the mean over met pixels of exp(−½ |f_i(x) − f_j(x)|² / 0.12²), with f the color freed of
   its alpha (or what `features` computes), and the best of the window's pixels that lie as far away as x.
3. *Stray matter.* The box around all surface points is cut into cells. What no view looks through, and every cell that
   holds a surface point, is matter; a connected piece of it is stray when its surface is less than a fifth of the
   largest piece's. s is the share of the surface cells that stray pieces have.

    score = a · 1 / (1 + c / 0.03) · 1 / (1 + s / 0.02)        in [0, 1]

Pixels at the rim of the object and at jumps of the depth are left out of 1 and 2: there depth and color are mixtures.
So a body that some views show and others do not, or with another shape, is contradicted; color that changes with the
view disagrees; a mist before the object is contradicted, as its depth is a mean of two; a detached blob is stray.
Not found: a second face that is the same from all sides (such a Janus is a consistent solid), a blob that touches the
object or is as large as its parts, what no two neighbors see. A gloss that moves with the view counts as a fault.
Eight views around the object at two elevations in turn serve well; fewer see less of each other's surface.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from reward_models.contracts import IN_RANGE, PosedViews, RewardCard

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Consistency3D"]

MIN_OPACITY = 0.1
"""A pixel with less shows no surface."""
TOLERANCE_PX = 1.5
"""Two depths are one surface when they differ by this many pixel widths at most."""
JUMP_PX = 8.0
"""Neighboring pixels whose depths differ by more pixel widths belong to two surfaces."""
FEATURE_SCALE = 0.12
"""Distance of two features (of colors: Euclidean, in sRGB units) at which agreement has fallen to 0.61."""
CELL_PX = 1.0
"""Edge of a cell in pixel widths."""
STRAY_PIECE = 0.2
"""Surface of the largest stray piece, relative to the largest piece. The procedural world's things stay above it."""
DOUBT_HALF = 0.03
"""Share of contradicted surface that halves the score."""
STRAY_HALF = 0.02
"""Share of stray surface that halves the score."""
MAX_CELLS = 64
"""Along the longest side of the box around the points, whatever the pictures' size."""


class _Evidence(NamedTuple):
    """What the views of an object say about each other, summed over pixels and pairs of views; each ()."""

    agreement: Tensor
    """Of the met pixels, each between 0 and 1."""
    met: Tensor
    contradicted: Tensor


class _Surface(NamedTuple):
    """What the views of one object say, pixel by pixel."""

    points: Tensor
    """(V, N, 3) where each pixel's surface lies."""
    distance: Tensor
    """(V, N) along the ray."""
    shown: Tensor
    """(V, N) bool: there is something."""
    inner: Tensor
    """(V, N) bool: there is one surface, not a rim or a jump."""
    features: Tensor
    """(V, N, C)"""


class Consistency3D:
    """Score how well the views of an object agree on one solid thing: see this module's docstring.

    `features` may replace the colors: pictures (V, 3, H, W) without alpha to maps (V, C, H, W) whose distances are
    measured in units of `feature_scale`.
    """

    def __init__(
        self,
        *,
        num_neighbors: int = 2,
        features: Callable[[Tensor], Tensor] | None = None,
        feature_scale: float = FEATURE_SCALE,
    ) -> None:
        self.num_neighbors = num_neighbors
        self._features = features or _colors
        self._feature_scale = feature_scale
        self.card = RewardCard(
            name="consistency3d",
            value_range=(0.0, 1.0),
            scale="1: all views show one solid of one color; 0.5: a tenth of an sRGB unit, 3 % of contradicted or "
            "2 % of stray surface",
            views=None,
            uses_prompt=False,
            differentiable=False,
            license="Apache-2.0",
            weights_sha256=None,
            preprocessing="none; wants depth and cameras, so only renders of a field can be scored",
        )

    @torch.no_grad()
    def score_views(self, views: PosedViews) -> Tensor:
        """Score the views (at least 3) of G objects: (G, 1) in [0, 1]; an object that no view shows scores 0.

        Raises ValueError for views of wrong shapes or values, and where no neighbors see any surface in common.
        """
        _check(views, self.num_neighbors)
        return torch.stack(
            [
                self._score_one(PosedViews(*(x[row].float() for x in views)), row)
                for row in range(len(views.rgb))
            ]
        )[:, None]

    def _score_one(self, views: PosedViews, row: int) -> Tensor:
        surface = _surface(views, self._features)
        if not bool(surface.shown.any()):
            return torch.zeros((), device=views.rgb.device)
        pairs = _neighbors(views.c2w, self.num_neighbors)
        evidence = _reprojected(views, surface, pairs, self._feature_scale)
        compared = evidence.met + evidence.contradicted
        if not bool(compared):
            raise ValueError(
                f"the {len(views.rgb)} views of object {row} have no surface in common, so nothing can be compared: "
                "give more views around it, at most 90° apart"
            )
        agreement = evidence.agreement / evidence.met.clamp(min=1)
        doubt, stray = evidence.contradicted / compared, _stray_share(views, surface)
        return agreement / (1 + doubt / DOUBT_HALF) / (1 + stray / STRAY_HALF)


def _reprojected(views: PosedViews, surface: _Surface, pairs: Tensor, feature_scale: float) -> _Evidence:
    """Look up the surface that view i shows in view j, for the pairs (i, j) (P, 2) of views of one object."""
    height, width = views.rgb.shape[-2:]
    sums = []
    for i, j in pairs.tolist():
        inner = surface.inner[i]
        pixel, distance, inside = _project(
            surface.points[i, inner], views.c2w[j], views.fov_y_deg[j], height, width
        )
        window, exists = _windows(pixel, height, width)
        shown = surface.shown[j][window] & exists
        excess = surface.distance[j][window] - distance[:, None]
        tolerance = TOLERANCE_PX * _footprint(distance, views.fov_y_deg[j], height)[:, None]
        same = shown & (excess.abs() <= tolerance)
        met = same.any(1) & inside
        hidden = (shown & (excess < -tolerance)).any(1)
        contradicted = inside & ~met & ~hidden
        gap = surface.features[j][window] - surface.features[i, inner][:, None]
        agreement = torch.exp(-0.5 * gap.square().sum(-1) / feature_scale**2)
        best = torch.where(same, agreement, 0.0).amax(1)
        sums.append(torch.stack([best[met].sum(), met.sum().float(), contradicted.sum().float()]))
    return _Evidence(*torch.stack(sums).sum(0))


def _surface(views: PosedViews, features: Callable[[Tensor], Tensor]) -> _Surface:
    """Put every pixel where its depth says, and tell which pixels show one surface."""
    height, width = views.rgb.shape[-2:]
    shown = views.opacity[:, 0] >= MIN_OPACITY
    alpha = views.opacity.clamp(min=MIN_OPACITY)
    distance = torch.where(shown, views.depth[:, 0] / alpha[:, 0], 0.0)
    rays = _directions(views.c2w, views.fov_y_deg, height, width)
    points = views.c2w[:, None, None, :3, 3] + distance[..., None] * rays
    farthest = F.max_pool2d(distance, 3, 1, 1)
    nearest = -F.max_pool2d(-distance, 3, 1, 1)  # 0 beside what shows nothing
    jump = JUMP_PX * _footprint(distance, views.fov_y_deg[:, None, None], height)
    maps = features((views.rgb / alpha).clamp(0, 1) * shown[:, None])
    return _Surface(
        points.flatten(1, 2),
        distance.flatten(1),
        shown.flatten(1),
        (shown & (nearest > 0) & (farthest - nearest <= jump)).flatten(1),
        maps.flatten(2).mT,
    )


def _colors(colors: Tensor) -> Tensor:
    return colors


def _neighbors(c2w: Tensor, count: int) -> Tensor:
    """Pairs (P, 2) of each of the cameras (V, 4, 4) and its `count` nearest others by viewing direction."""
    back = c2w[:, :3, 2]
    alike = (back @ back.T).fill_diagonal_(-math.inf)
    nearest = alike.topk(min(count, len(c2w) - 1)).indices
    first = torch.arange(len(c2w), device=c2w.device)[:, None].expand_as(nearest)
    return torch.stack([first, nearest], -1).flatten(0, 1)


def _footprint(distance: Tensor, fov_y_deg: Tensor, height: int) -> Tensor:
    """Width of a pixel at a distance, in world units."""
    return distance * (2 / height) * torch.tan(fov_y_deg * (math.pi / 360))


def _directions(c2w: Tensor, fov_y_deg: Tensor, height: int, width: int) -> Tensor:
    """Unit directions (V, H, W, 3) of the rays through the pixels' centers."""
    focal = 0.5 * height / torch.tan(fov_y_deg * (math.pi / 360))[:, None, None]
    x = torch.arange(width, device=c2w.device) + 0.5 - width / 2
    y = height / 2 - torch.arange(height, device=c2w.device) - 0.5
    x_HW, y_HW = torch.meshgrid(x, y, indexing="xy")
    rays = torch.stack([x_HW / focal, y_HW / focal, -torch.ones_like(focal * x_HW)], -1)
    return torch.einsum("vij,vhwj->vhwi", c2w[:, :3, :3], F.normalize(rays, dim=-1))


def _project(
    points: Tensor, c2w: Tensor, fov_y_deg: Tensor, height: int, width: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Image of points (N, 3): pixel (N, 2) as row and column, distance (N,), whether it is in the picture."""
    local = (points - c2w[:3, 3]) @ c2w[:3, :3]
    ahead = (-local[:, 2]).clamp(min=1e-6)
    focal = 0.5 * height / torch.tan(fov_y_deg * (math.pi / 360))
    column = focal * local[:, 0] / ahead + width / 2
    row = height / 2 - focal * local[:, 1] / ahead
    inside = (local[:, 2] < 0) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
    pixel = torch.stack([row.clamp(0, height - 1), column.clamp(0, width - 1)], -1)
    return pixel.long(), local.norm(dim=-1), inside


def _windows(pixel: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """The 3 × 3 pixels around each of N: flat indices (N, 9), and which of them are in the picture."""
    step = torch.tensor([-1, 0, 1], device=pixel.device)
    around = torch.cartesian_prod(step, step)
    row, column = (pixel[:, None] + around).unbind(-1)
    exists = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    return row.clamp(0, height - 1) * width + column.clamp(0, width - 1), exists


def _stray_share(views: PosedViews, surface: _Surface) -> float:
    """Share of the surface's cells that belong to small pieces of what no view looks through."""
    points = surface.points[surface.shown]
    low, high = points.amin(0), points.amax(0)
    longest = float((high - low).max())
    cell = max(CELL_PX * _pixel_width(views, surface), longest / MAX_CELLS)
    counts = ((high - low) / cell).long() + 1
    index = ((points - low) / cell).long()
    surface_cells = torch.zeros(counts.tolist(), dtype=torch.bool, device=points.device)
    surface_cells[tuple(index.T)] = True
    axes = [
        low[axis] + cell * (torch.arange(int(counts[axis]), device=points.device) + 0.5) for axis in range(3)
    ]
    empty = _looked_through(torch.cartesian_prod(*axes), cell, views, surface).reshape(surface_cells.shape)
    pieces, _ = ndimage.label((surface_cells | ~empty).cpu().numpy(), np.ones((3, 3, 3)))
    sizes = np.bincount(pieces[surface_cells.cpu().numpy()])
    return float(sizes[sizes < STRAY_PIECE * sizes.max()].sum() / sizes.sum())


def _looked_through(centers: Tensor, cell: float, views: PosedViews, surface: _Surface) -> Tensor:
    """Tell which cells (M,) lie, as a whole, before the surface of some view, or where it shows nothing."""
    height, width = views.rgb.shape[-2:]
    empty = torch.zeros(len(centers), dtype=torch.bool, device=centers.device)
    for j, (c2w, fov_y_deg) in enumerate(zip(views.c2w, views.fov_y_deg, strict=True)):
        pixel, distance, inside = _project(centers, c2w, fov_y_deg, height, width)
        flat = pixel[:, 0] * width + pixel[:, 1]
        beyond = surface.distance[j][flat] > distance + 0.5 * math.sqrt(3) * cell
        empty |= inside & (beyond | ~surface.shown[j][flat])
    return empty


def _pixel_width(views: PosedViews, surface: _Surface) -> float:
    """Mean width of the pixels that show something, in world units."""
    width = _footprint(surface.distance, views.fov_y_deg[:, None], views.rgb.shape[-2])
    return float(width[surface.shown].mean())


def _check(views: PosedViews, num_neighbors: int) -> None:
    """Raise ValueError, saying what was found, unless the views can be compared."""
    rgb = views.rgb
    if rgb.ndim != 5 or rgb.shape[2] != 3 or not rgb.numel():
        raise ValueError(
            f"consistency3d wants rgb (objects, views, 3, height, width), but got {tuple(rgb.shape)}"
        )
    (objects, num_views), pixels = rgb.shape[:2], rgb.shape[3:]
    if num_views <= num_neighbors:
        raise ValueError(
            f"consistency3d compares each view with {num_neighbors} others, but got {num_views} views of each object: "
            f"render at least {num_neighbors + 1} around it"
        )
    shapes = {
        "opacity": (objects, num_views, 1, *pixels),
        "depth": (objects, num_views, 1, *pixels),
        "c2w": (objects, num_views, 4, 4),
        "fov_y_deg": (objects, num_views),
    }
    for name, shape in shapes.items():
        if (found := tuple(getattr(views, name).shape)) != shape:
            raise ValueError(f"consistency3d wants {name} of shape {shape} with this rgb, but got {found}")
    for name, tensor in views._asdict().items():
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"consistency3d wants finite views, but {name} is not: was the scene diverging?")
    for name, most in (("rgb", 1.0), ("opacity", 1.0), ("depth", math.inf)):
        low, high = (float(x) for x in getattr(views, name).aminmax())
        if low < -IN_RANGE or high > most + IN_RANGE:
            raise ValueError(
                f"consistency3d wants {name} from 0 to {most:g}, but got values from {low:.4g} to {high:.4g}"
            )
