"""Where a field may have density: a coarse grid of cells that is kept up to date while the field is trained.

nerfacc 0.5, `OccGridEstimator`, as MVDream-threestudio uses it. Every 16 steps each cell is probed at one point,

    o ← max(.95 · o, density · δ),   δ = 2√3 · radius / 512 (the published length of a step along a ray),

and is taken for empty where o ≤ min(mean o, .01).

Differs from the published code: all cells are probed each time (there, half of them after 256 steps), and the point
within the cell depends on the step alone, so that a resumed scene probes where the uninterrupted one would have.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

__all__ = ["OccupancyGrid"]

_PROBE_EVERY, _DECAY, _THRESHOLD, _SAMPLES_ALONG_DIAGONAL = 16, 0.95, 0.01, 512
"""Steps, per probe, δ-optical depth, and the published `num_samples_per_ray`. Source: nerfacc 0.5 (the defaults of
`update_every_n_steps`) and `nerf_volume_renderer.py` of MVDream-threestudio."""


class OccupancyGrid(nn.Module):
    """Cells of a box, told apart in empty and occupied."""

    optical: Tensor
    """(Z, Y, X) o: decaying maximum of what a cell adds to the optical depth of a ray in one step."""
    occupied: Tensor
    """(Z, Y, X) bool; all True before the first probe."""
    probed_at: Tensor
    """() int64: the last step of a probe, −1 before."""

    def __init__(self, num_cells: int, radius: float, device: torch.device | str = "cpu") -> None:
        """Divide [−radius, radius]³ into num_cells³ cells."""
        super().__init__()
        self.num_cells, self.radius = num_cells, radius
        size = (num_cells,) * 3
        self.register_buffer("optical", torch.zeros(size, device=device))
        self.register_buffer("occupied", torch.ones(size, dtype=torch.bool, device=device))
        self.register_buffer("probed_at", torch.tensor(-1, device=device))

    def contains(self, points_P3: Tensor) -> Tensor:
        """(P, 3) positions → (P,) bool; outside the box, that of the nearest cell."""
        n = self.num_cells
        cell = ((points_P3.detach() / self.radius + 1) * (n / 2)).long().clamp_(0, n - 1)
        x, y, z = cell.unbind(-1)
        return self.occupied.view(-1)[(z * n + y) * n + x]

    def threshold(self) -> Tensor:
        """min(mean o, .01), a scalar: what adds less than this in a step is taken for empty."""
        return self.optical.mean().clamp_max(_THRESHOLD)

    @torch.no_grad()
    def probe(self, step: int, density: Callable[[Tensor], Tensor]) -> None:
        """Ask `density` in every cell if `step` is one of every 16; a second time for one step changes nothing."""
        if step % _PROBE_EVERY != 0 or step == int(self.probed_at):
            return
        step_length = 2 * math.sqrt(3) * self.radius / _SAMPLES_ALONG_DIAGONAL
        found = density(self._probed_points(step)).view_as(self.optical) * step_length
        self.optical.copy_(torch.maximum(self.optical * _DECAY, found))
        self.occupied.copy_(self.optical > self.threshold())
        self.probed_at.fill_(step)

    def _probed_points(self, step: int) -> Tensor:
        """One point (num_cells³, 3) within each cell, drawn by a generator that the step seeds."""
        n = self.num_cells
        axis = torch.arange(n)
        z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
        corner = torch.stack([x, y, z], -1).view(-1, 3)
        within = torch.rand(n**3, 3, generator=torch.Generator().manual_seed(step))
        return ((corner + within) * (2 / n) - 1).to(self.optical) * self.radius
