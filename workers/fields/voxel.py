"""A dense grid of density and color: trilinear, pure torch, made for CPUs and small sizes; coarse to fine.

Both grids are stored as (1, C, Z, Y, X): the last axis runs along +X (to the right in a picture of the front),
Y along +Y (up), Z along +Z (out of the front). Node i of N stands at −1 + 2i/(N − 1), so the outermost nodes lie
on the faces of the box. Resolutions, learning rates and weights were measured for the embedded prior (300 steps
on two CPU cores); half of the steps run on the coarse grid.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from workers.regularizers import filled_share, opacity_ambiguity, total_variation

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from workers.cameras import Cameras
    from workers.contracts import Views

__all__ = ["VoxelField"]

_DENSITY_SCALE = 25.0
"""density = 25 · softplus(raw), per unit length: a raw value of 1 is opaque within a tenth of the box."""
_BLOB_CENTER, _BLOB_SLOPE, _BLOB_RADIUS = -3.0, 4.0, 0.7
_CLEARED_DENSITY = 0.1
"""Per unit length. Regularizers hold a fog of about .05 in empty space against the prior's weak pull; clearing what
is thinner than this, and not near anything denser, took the picture's error to a third and a step's time to half
(the analytic prior's ball, 300 steps)."""
_REFRESH_EVERY = 20
_LEARNING_RATE = (0.1, 0.06)
_BETAS = (0.9, 0.95)
_DENSITY_VARIATION, _COLOR_VARIATION, _AMBIGUITY = 0.03, 0.05, 0.02
"""Fitted to true pictures, a stack's ring keeps its hole filled under a density variation of .1 and opens under .02
(at the price of a rougher skin)."""
_SPARSITY = 0.01
"""What no picture asks for goes. Where a ring and what stands on it are of like colors, its hole is filled up to a
bottom painted as what lies behind, and leaving it costs next to nothing: twice as much opens more such holes, and
flat faces sink between their edges."""
_LATE_VARIATION = 0.3
"""Share of the smoothness that is asked of the fine grid: all of it fills the necks between touching things."""


class VoxelField(nn.Module):
    """A radiance field on a grid, with the schedule by which it is trained."""

    occupancy: Tensor
    """(Z, Y, X) bool: around nodes where it is False, space is empty, whatever their raw density."""

    def __init__(self, coarse: int = 40, fine: int = 64, device: torch.device | str = "cpu") -> None:
        """Start with a blob, raw density −3 + 4(1 − r/.7), of middle gray; `coarse` and `fine` count nodes per axis."""
        super().__init__()
        self.coarse, self.fine = coarse, fine
        axis = torch.linspace(-1, 1, coarse, device=device)
        radius = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij")).norm(dim=0)
        blob = _BLOB_CENTER + _BLOB_SLOPE * (1 - radius / _BLOB_RADIUS)
        self.raw_density = nn.Parameter(blob[None, None])
        self.raw_color = nn.Parameter(torch.zeros(1, 3, coarse, coarse, coarse, device=device))
        self.register_buffer("occupancy", torch.ones(coarse, coarse, coarse, dtype=torch.bool, device=device))

    @property
    def resolution(self) -> int:
        """Nodes per axis now."""
        return self.raw_density.shape[-1]

    def density(self, points: Tensor) -> Tensor:
        """(P, 3) positions → (P,) density per unit length; outside the box, that of the nearest face."""
        return self.occupied(points) * _density_of(_trilinear(self.raw_density, points)[0])

    def color(self, points: Tensor) -> Tensor:
        """(P, 3) positions → (P, 3) sRGB in [0, 1]."""
        return torch.sigmoid(_trilinear(self.raw_color, points)).T

    def occupied(self, points: Tensor) -> Tensor:
        """(P, 3) positions → (P,) bool: False where space was cleared, so that the density is zero."""
        last = self.resolution - 1
        x, y, z = ((points + 1) * (last / 2)).round().clamp(0, last).long().unbind(-1)
        return self.occupancy.view(-1)[(z * self.resolution + y) * self.resolution + x]

    # --- training ---

    def prepare(self, step: int, steps_total: int) -> bool:
        """Refine the grid and its occupancy as `step` wants; True if the parameters are new ones.

        Doing it twice for one step changes nothing.
        """
        wanted = self.fine if 2 * step >= steps_total else self.coarse
        refined = wanted != self.resolution
        if refined:
            self._resample(wanted)
        if refined or step % _REFRESH_EVERY == 0:
            self._clear_fog()
        return refined

    def new_optimizer(self) -> torch.optim.Optimizer:
        """Make a fresh Adam for the present grid: moments of coarse voxels say nothing about fine ones."""
        return torch.optim.Adam(self.parameters(), lr=_LEARNING_RATE[0], betas=_BETAS, fused=True)

    def draw_look(self, cameras: Cameras, step: int, steps_total: int, generator: torch.Generator) -> None:
        """Show it plain in every step: no light, no background."""

    def learning_rate(self, progress: float) -> float:
        """Fall linearly from .1 to .06 while `progress` goes from 0 to 1."""
        start, end = _LEARNING_RATE
        return start + (end - start) * progress

    def regularization(self, views: Views, step: int, steps_total: int) -> Tensor:
        """Weigh sparsity, smoothness in every second step, and decided pixels in the second half.

        .01 · mean σ/(σ + 1), .03 · mean|∇ raw density| + .05 · mean|∇ raw color| (three tenths of it in the second
        half), and .02 · mean α(1 − α).
        """
        late = 2 * step >= steps_total
        loss = _SPARSITY * filled_share(_density_of(self.raw_density))
        if step % 2 == 1:
            rough = _DENSITY_VARIATION * total_variation(self.raw_density)
            rough = rough + _COLOR_VARIATION * total_variation(self.raw_color)
            loss = loss + (_LATE_VARIATION if late else 1.0) * rough
        if late:
            loss = loss + _AMBIGUITY * opacity_ambiguity(views.opacity)
        return loss

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load a saved field of either resolution."""
        self._resample(state["raw_density"].shape[-1])
        return super().load_state_dict(state, strict, assign)

    @torch.no_grad()
    def _resample(self, resolution: int) -> None:
        if resolution == self.resolution:
            return
        size = (resolution,) * 3
        for name in ("raw_density", "raw_color"):
            grid = F.interpolate(getattr(self, name), size, mode="trilinear", align_corners=True)
            setattr(self, name, nn.Parameter(grid))
        self.occupancy = torch.ones(size, dtype=torch.bool, device=self.occupancy.device)

    @torch.no_grad()
    def _clear_fog(self) -> None:
        """Keep what lies within two nodes of density: one is what interpolation needs, one lets things grow."""
        raw = math.log(math.expm1(_CLEARED_DENSITY / _DENSITY_SCALE))
        self.occupancy = F.max_pool3d(self.raw_density, kernel_size=5, stride=1, padding=2)[0, 0] > raw


def _density_of(raw: Tensor) -> Tensor:
    return _DENSITY_SCALE * F.softplus(raw)


def _trilinear(grid: Tensor, points: Tensor) -> Tensor:
    """Interpolate a grid (1, C, Z, Y, X) at points (P, 3): (C, P)."""
    where = points.view(1, 1, 1, -1, 3)
    return F.grid_sample(grid, where, mode="bilinear", padding_mode="border", align_corners=True)[0, :, 0, 0]
