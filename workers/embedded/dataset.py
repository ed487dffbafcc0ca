"""Pictures of the procedural world: rendered once, repainted at every visit.

A geometry is stored as part ids and shade bytes of four 64 px views (32 KiB); a visit paints its parts in new
random colors, averages 2 × 2 pixels and premultiplies: RGBA latents at 32 px, with the words that describe them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from workers.cameras import Cameras, orbit_cameras
from workers.embedded.raycast import NO_PART, SHADE_SCALE, raycast
from workers.embedded.world import (
    COLORS,
    EVERYDAY,
    NAMES,
    PALETTE,
    RELATIONS,
    SIZES,
    Description,
    Thing,
    build,
    is_held_out,
    random_description,
)

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = [
    "CAMERA_DISTANCE",
    "CAMERA_FOV_Y_DEG",
    "MAX_PARTS",
    "NO_COLOR",
    "STORED_PX",
    "VIEWS",
    "Batch",
    "Pictures",
    "compose",
    "draw_elevation_deg",
    "group_cameras",
    "render_pictures",
]

CAMERA_DISTANCE = 3.6
CAMERA_FOV_Y_DEG = 40.0
VIEWS = 4
STORED_PX = 64
MAX_PARTS = 12
NO_COLOR = len(COLORS)
"""Class of "the caption names no color"."""


def draw_elevation_deg(rng: np.random.Generator) -> float:
    """Draw the elevation of a picture's cameras: half moderate, half wide, so that undersides and holes are seen."""
    return float(rng.uniform(0, 35) if rng.random() < 0.5 else rng.uniform(-60, 80))


class _Record(NamedTuple):
    """One geometry's row in each array of the file."""

    part_ids: NDArray[np.uint8]
    shades: NDArray[np.uint8]
    angles_deg: NDArray[np.float32]
    boxes: NDArray[np.float32]
    names: NDArray[np.int8]
    sizes: NDArray[np.int8]
    relation: NDArray[np.int8]
    part_slots: NDArray[np.int8]
    part_paints: NDArray[np.int8]


_PAINTS = {"main": 0, "accent": 1, **{color: 2 + i for i, color in enumerate(COLORS)}}


def _record(description: Description, rng: np.random.Generator) -> _Record:
    arrangement = build(description, rng)
    angles = np.array([rng.uniform(0, 360), draw_elevation_deg(rng)], np.float32)
    part_ids, shades = raycast(arrangement, group_cameras(torch.from_numpy(angles)), STORED_PX)
    things = [thing for thing in (description.a, description.b) if thing]
    names = np.array([NAMES.index(thing.name) for thing in things] + [-1] * (2 - len(things)), np.int8)
    sizes = np.array([SIZES.index(thing.size) for thing in things] + [0] * (2 - len(things)), np.int8)
    slots, paints = np.zeros(MAX_PARTS, np.int8), np.zeros(MAX_PARTS, np.int8)
    slots[: len(arrangement.parts)] = arrangement.slots
    paints[: len(arrangement.parts)] = [_PAINTS[part.paint] for part in arrangement.parts]
    relation = np.array(RELATIONS.index(description.relation), np.int8)
    return _Record(part_ids, shades, angles, arrangement.boxes, names, sizes, relation, slots, paints)


def group_cameras(angles_deg: Tensor) -> Cameras:
    """The four cameras of a group, 90° apart, from (..., 2) base azimuth and elevation."""
    azimuth = angles_deg[..., :1] + torch.arange(VIEWS, device=angles_deg.device) * (360 / VIEWS)
    return orbit_cameras(azimuth, angles_deg[..., 1:], CAMERA_DISTANCE, CAMERA_FOV_Y_DEG)


def render_pictures(folder: Path, count: int, seed: int) -> None:
    """Ray-cast `count` random geometries into `folder`/pictures-<seed>.npz (32 KiB each)."""
    rng = np.random.default_rng(seed)
    records: list[_Record] = []
    while len(records) < count:
        description = random_description(rng)
        arrangement_parts = sum(
            len(EVERYDAY[t.name].parts) if t.name in EVERYDAY else 1
            for t in (description.a, description.b)
            if t
        )
        if arrangement_parts <= MAX_PARTS:
            records.append(_record(description, rng))
    folder.mkdir(parents=True, exist_ok=True)
    columns = {field: np.stack([getattr(record, field) for record in records]) for field in _Record._fields}
    partial = folder / f"partial-{seed}.npz"
    np.savez(partial, **columns)  # type: ignore[arg-type]
    partial.rename(folder / f"pictures-{seed}.npz")


class Batch(NamedTuple):
    """N painted pictures and what describes them; classes index `NAMES`, `COLORS` (12: none), `SIZES`."""

    latents: Tensor
    """(N, V, 4, 32, 32) premultiplied RGBA in [−1, 1]."""
    cameras: Cameras
    names: Tensor
    """(N, 2) int64; −1: slot B is absent."""
    colors: Tensor
    accents: Tensor
    sizes: Tensor
    relation: Tensor
    """(N,) int64."""
    boxes: Tensor
    """(N, 2, 6)."""


class Pictures:
    """All rendered geometries of a folder, and the painter that makes batches of them."""

    def __init__(self, folder: Path) -> None:
        files = sorted(folder.glob("pictures-*.npz"))
        if not files:
            raise FileNotFoundError(
                f"no pictures-*.npz in {folder}: run `make train-embedded`, which renders them"
            )
        loaded = [np.load(file) for file in files]
        columns = {field: np.concatenate([file[field] for file in loaded]) for field in _Record._fields}
        self._columns = {field: torch.from_numpy(column) for field, column in columns.items()}
        self._held_out = torch.from_numpy(_held_out_table())
        palette = np.array([PALETTE[color] for color in COLORS], np.float32) / 255
        self._palette = torch.from_numpy(palette)
        self._alike = torch.cdist(self._palette, self._palette).argsort(1)

    def __len__(self) -> int:
        return len(self._columns["relation"])

    @property
    def ring_stacks(self) -> Tensor:
        """(len,) bool: stacks of two things of which one at least is a ring."""
        stacked = self._columns["relation"] == RELATIONS.index("on")
        return stacked & (self._columns["names"] == NAMES.index("torus")).any(1)

    @property
    def elevation_deg(self) -> Tensor:
        """(len,) of the cameras."""
        return self._columns["angles_deg"][:, 1]

    def sample(
        self, count: int, generator: torch.Generator, shares: Tensor | None = None, alike: float = 0.0
    ) -> Batch:
        """Draw and paint `count` pictures; no held-out combination of shapes and colors is ever painted.

        `shares` (len,) says how often each is drawn, relative to the others; by default all the same. `alike` is
        the share of pictures whose two things get one color (half of them) or two that are near each other.
        """
        shares = torch.ones(len(self)) if shares is None else shares
        rows = torch.multinomial(shares, count, replacement=True, generator=generator)
        return self.paint(rows, generator, alike)

    def paint(self, rows: Tensor, generator: torch.Generator, alike: float = 0.0) -> Batch:
        """Paint the geometries `rows` (N,) in random allowed colors, of which `alike` says what it does in `sample`."""
        c = {field: column[rows] for field, column in self._columns.items()}
        names = c["names"].long()
        colors, accents = self._draw_colors(names, generator, alike)
        rgb = self._part_colors(names, colors, accents, c, generator)
        latents = compose(c["part_ids"].long(), c["shades"], rgb)
        cameras = group_cameras(c["angles_deg"])
        sizes, relation = c["sizes"].long(), c["relation"].long()
        return Batch(latents, cameras, names, colors, accents, sizes, relation, c["boxes"])

    def _draw_colors(self, names: Tensor, generator: torch.Generator, alike: float) -> tuple[Tensor, Tensor]:
        everyday = names >= len(NAMES) - len(EVERYDAY)

        def draw() -> Tensor:
            drawn = torch.randint(len(COLORS), names.shape, generator=generator)
            if alike:
                rank = torch.tensor([0, 0, 1, 2])[torch.randint(4, (len(names),), generator=generator)]
                like_first = torch.rand(len(names), generator=generator) < alike
                drawn[:, 1] = torch.where(like_first, self._alike[drawn[:, 0], rank], drawn[:, 1])
            unnamed = everyday & (torch.rand(names.shape, generator=generator) < 0.25)
            return torch.where(unnamed, NO_COLOR, drawn)

        colors = draw()
        while (bad := self._held_out[names[:, 0], colors[:, 0], names[:, 1], colors[:, 1]]).any():
            colors = torch.where(bad[:, None], draw(), colors)
        accents = torch.randint(len(COLORS), names.shape, generator=generator)
        named = _HAS_ACCENT[names] & (torch.rand(names.shape, generator=generator) < 0.6)
        return torch.where(names < 0, NO_COLOR, colors), torch.where(named, accents, NO_COLOR)

    def _part_colors(
        self, names: Tensor, colors: Tensor, accents: Tensor, c: dict[str, Tensor], generator: torch.Generator
    ) -> Tensor:
        """(N, MAX_PARTS, 3) jittered color of each part."""
        main = torch.where(colors == NO_COLOR, _DEFAULT_MAIN[names], colors)
        accent = torch.where(accents == NO_COLOR, _DEFAULT_ACCENT[names], accents)
        paints, slots = c["part_paints"].long(), c["part_slots"].long()
        index = torch.where(
            paints == 0, main.gather(1, slots), torch.where(paints == 1, accent.gather(1, slots), paints - 2)
        )
        rgb = self._palette[index]
        jitter = (torch.rand(index.shape[0], len(COLORS), 3, generator=generator) * 2 - 1) * 0.025
        return rgb + jitter.gather(1, index[..., None].expand(-1, -1, 3))


def compose(part_ids: Tensor, shades: Tensor, rgb: Tensor) -> Tensor:
    """Paint (N, V, 64, 64) part ids and shades; average to 32 px; premultiply: (N, V, 4, 32, 32) in [−1, 1]."""
    count, views, height, width = part_ids.shape
    alpha = (part_ids != NO_PART).float()
    index = part_ids.clamp(max=MAX_PARTS - 1).reshape(count, -1, 1).expand(-1, -1, 3)
    shaded = (
        rgb.gather(1, index).reshape(count, views, height, width, 3)
        * (shades.float() / SHADE_SCALE)[..., None]
    )
    rgba = torch.cat([shaded.clamp(0, 1) * alpha[..., None], alpha[..., None]], -1)
    pooled = rgba.reshape(count, views, height // 2, 2, width // 2, 2, 4).mean((3, 5)).permute(0, 1, 4, 2, 3)
    color, opacity = pooled[:, :, :3], pooled[:, :, 3:]
    return torch.cat([2 * color - opacity, 2 * opacity - 1], 2)


def _held_out_table() -> NDArray[np.bool_]:
    """(names + 1, colors + 1, names + 1, colors + 1): the last row of names is "no thing" (index −1)."""
    table = np.zeros((len(NAMES) + 1, len(COLORS) + 1) * 2, bool)
    things = [
        (n, c, Thing(name, color)) for n, name in enumerate(NAMES) for c, color in enumerate((*COLORS, None))
    ]
    for n, c, first in things:
        for m, k, second in things:
            table[n, c, m, k] = is_held_out(first, second)
    return table


def _default(paint: str) -> Tensor:
    """(names + 1,) color class of a thing's parts where the caption names none; 0 where that cannot be."""
    colors = [getattr(EVERYDAY[name], paint) if name in EVERYDAY else None for name in NAMES]
    return torch.tensor([COLORS.index(color) if color else 0 for color in colors] + [0])


_DEFAULT_MAIN, _DEFAULT_ACCENT = _default("main"), _default("accent")
_HAS_ACCENT = torch.tensor(
    [name in EVERYDAY and EVERYDAY[name].accent is not None for name in NAMES] + [False]
)
