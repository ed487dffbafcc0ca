"""Encodings of positions: what the small networks of a radiance field see of a point.

Instant neural graphics primitives, arXiv 2201.05989, section 3, with the conventions of its published kernels
(tiny-cuda-nn, `encodings/grid.h`): level l = 0 … L − 1 is a grid over the unit cube with

    scale_l = b^l · N₀ − 1,   resolution_l = ⌈scale_l⌉ + 1,   position = x · scale_l + ½,

whose eight corners around a position are blended trilinearly. Corner (i, j, k) is found in the level's table of
T_l = min(resolution_l³ rounded up to eights, 2^19) entries at

    i + j · resolution_l + k · resolution_l²       where the whole grid fits into the table, else
    i ⊕ j · 2654435761 ⊕ k · 805459861,            both modulo T_l.

Differs from the paper: nothing. Differs from the kernels: float32 throughout, and it can be differentiated twice.

Legend: P points, L levels, F features of an entry, E encoded width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, assert_never

import torch
from torch import nn

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Frequencies", "GridSizes", "HashEncoding", "Level", "make_encoding"]

_PRIMES = (1, 2_654_435_761, 805_459_861)
"""Source: arXiv 2201.05989, below equation 4; products stay below 2^45, so 64-bit integers hold them."""
_ROUNDED_TO = 8
"""Entries. Source: tiny-cuda-nn, `grid.h`."""
_INITIAL_FEATURE = 1e-4
"""Features start uniform in ±10⁻⁴. Source: arXiv 2201.05989, section 4."""


@dataclass(frozen=True, slots=True)
class GridSizes:
    """Sizes of a hash grid. Source of the defaults: `configs/mvdream-sd21.yaml` of MVDream-threestudio."""

    num_levels: int = 16
    features_per_level: int = 2
    log2_entries: int = 19
    """A level's table has at most 2^19 entries."""
    base_resolution: int = 16
    level_scale: float = 1.447269237440378
    """Each level is this much finer than the one before: 16 becomes 4096 in 15 steps."""


@dataclass(frozen=True, slots=True)
class Frequencies:
    """Sines and cosines of 2^i · x instead of a grid: for tiny fields, and wherever a smooth field is wanted."""

    num_bands: int = 4


class Level(NamedTuple):
    """One grid of a hash encoding."""

    scale: float
    resolution: int
    num_entries: int
    """In the table that all levels share, where their entries follow each other."""

    @property
    def hashed(self) -> bool:
        """Whether corners share entries."""
        return self.resolution**3 > self.num_entries


def make_encoding(
    sizes: GridSizes | Frequencies, generator: torch.Generator, device: torch.device | str
) -> HashEncoding | FrequencyEncoding:
    """Make an encoding: a module (P, 3) in [0, 1] → (P, E) with the attribute `width` = E."""
    match sizes:
        case GridSizes():
            return HashEncoding(sizes, generator, device)
        case Frequencies():
            return FrequencyEncoding(sizes)
        case _:
            assert_never(sizes)


class HashEncoding(nn.Module):
    """Learned features on a pyramid of grids, the fine ones hashed into tables of bounded size."""

    def __init__(
        self, sizes: GridSizes, generator: torch.Generator, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__()
        self.levels = _levels(sizes)
        self.width = sizes.num_levels * sizes.features_per_level
        num_entries = sum(level.num_entries for level in self.levels)
        table = torch.empty(num_entries, sizes.features_per_level, device="cpu")
        table.uniform_(-_INITIAL_FEATURE, _INITIAL_FEATURE, generator=generator)
        self.table = nn.Parameter(table.to(device))

    def forward(self, unit_P3: Tensor) -> Tensor:
        """(P, 3) positions in [0, 1] → (P, L·F) features; differentiable to both, and again."""
        # Split first: a gradient of the whole table per level would cost more than all the rest.
        tables = self.table.split([level.num_entries for level in self.levels])
        pairs = zip(self.levels, tables, strict=True)
        return torch.cat([_at_level(unit_P3, level, table) for level, table in pairs], -1)


class FrequencyEncoding(nn.Module):
    """sin(2^i x), cos(2^i x) for i = 0 … n − 1: (P, 3) → (P, 6 n), band by band, all sines of a band first."""

    def __init__(self, sizes: Frequencies) -> None:
        super().__init__()
        self.num_bands = sizes.num_bands
        self.width = 6 * sizes.num_bands

    def forward(self, unit_P3: Tensor) -> Tensor:
        """(P, 3) positions in [0, 1] → (P, 6 n)."""
        bands = (unit_P3 * 2.0**band for band in range(self.num_bands))
        return torch.cat([wave for x in bands for wave in (x.sin(), x.cos())], -1)


def _levels(sizes: GridSizes) -> tuple[Level, ...]:
    levels = []
    # In float32, as the kernels have it: in float64 the finest of the published levels would round up to 4097.
    doublings = (
        torch.arange(sizes.num_levels, device="cpu") * torch.tensor(sizes.level_scale, device="cpu").log2()
    )
    for scale in (doublings.exp2() * sizes.base_resolution - 1).tolist():
        resolution = math.ceil(scale) + 1
        rounded = math.ceil(resolution**3 / _ROUNDED_TO) * _ROUNDED_TO
        levels.append(Level(scale, resolution, min(rounded, 2**sizes.log2_entries)))
    return tuple(levels)


def _at_level(unit_P3: Tensor, level: Level, table: Tensor) -> Tensor:
    """Blend the entries (P, 8, F) of the eight corners around each position: (P, F)."""
    position_P3 = unit_P3 * level.scale + 0.5
    corner_P3 = position_P3.detach().floor()
    beyond_P3 = position_P3 - corner_P3
    index_P8 = _corner_entries(corner_P3.long(), level)
    weight_P8 = _corner_products(torch.stack([1 - beyond_P3, beyond_P3], -1))
    # Its indices have 32 bits, since autograd keeps them for the backward pass.
    found_P8F = table.index_select(0, index_P8.flatten()).view(*index_P8.shape, -1)
    return (weight_P8[..., None] * found_P8F).sum(1)


def _corner_entries(corner_P3: Tensor, level: Level) -> Tensor:
    """The eight corners' places in the level's table, (P, 8) int32, x slowest.

    A hashed level's table has 2^n entries, and taking what is left modulo 2^n commutes with ⊕: so it is taken of the
    two terms per axis, not of the eight results.
    """
    both_P32 = torch.stack([corner_P3, corner_P3 + 1], -1)
    factors = _PRIMES if level.hashed else (1, level.resolution, level.resolution**2)
    terms = (both_P32[:, axis] * factor for axis, factor in enumerate(factors))
    if level.hashed:
        x, y, z = _crossed(*((term & (level.num_entries - 1)).int() for term in terms))
        return (x ^ y ^ z).flatten(1)
    x, y, z = _crossed(*(term.int() for term in terms))
    return ((x + y + z) % level.num_entries).flatten(1)


def _crossed(x_P2: Tensor, y_P2: Tensor, z_P2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Shape per-axis values of lower and upper corner so that they combine to all eight corners, x slowest."""
    return x_P2[:, :, None, None], y_P2[:, None, :, None], z_P2[:, None, None, :]


def _corner_products(share_P32: Tensor) -> Tensor:
    """Trilinear weights (P, 8), x slowest, of the shares (P, 3, 2) of the lower and the upper corner per axis."""
    x, y, z = _crossed(*share_P32.unbind(1))
    return (x * y * z).flatten(1)
