"""The procedural world on which the embedded models are trained, and where the truth is known.

A `Description` says what a caption says: one or two things with shape, color and size, and how they stand to
each other. `build` makes it an `Arrangement` of solid parts in the canonical layout, in the space of glTF
(+Y up, the front faces +Z, inside [−1, 1]³). Slot A is the upper, left or only thing, slot B the lower or right.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from workers.embedded.everyday import EVERYDAY, Part
from workers.embedded.primitives import inside, surface_mesh

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "COLORS",
    "EVERYDAY",
    "NAMES",
    "PALETTE",
    "RELATIONS",
    "SHAPES",
    "SIZES",
    "Arrangement",
    "Description",
    "Part",
    "Thing",
    "build",
    "ground_truth_mesh",
    "ground_truth_points",
    "is_held_out",
    "paint_color",
    "part_colors",
    "random_description",
]

Array = NDArray[np.floating]

PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (220, 30, 30),
    "green": (30, 160, 50),
    "blue": (35, 70, 215),
    "yellow": (240, 215, 40),
    "orange": (245, 135, 25),
    "purple": (130, 45, 170),
    "pink": (245, 130, 185),
    "white": (240, 240, 240),
    "black": (25, 25, 25),
    "gray": (128, 128, 128),
    "brown": (120, 75, 35),
    "cyan": (40, 205, 215),
}
"""sRGB, 0…255: what each color word means, everywhere in the project."""
COLORS = tuple(PALETTE)

SIZES = ("normal", "small", "large", "tall", "flat")
RELATIONS = ("single", "on", "next")

_HALF_EXTENTS: dict[str, tuple[float, float, float]] = {
    "cube": (0.5, 0.5, 0.5),
    "sphere": (0.55, 0.55, 0.55),
    "cylinder": (0.42, 0.6, 0.42),
    "cone": (0.52, 0.62, 0.52),
    "torus": (0.64, 0.17, 0.64),
    "pyramid": (0.56, 0.55, 0.56),
    "capsule": (0.34, 0.66, 0.34),
    "disk": (0.6, 0.13, 0.6),
    "egg": (0.44, 0.58, 0.44),
}
"""Half extents of each basic shape at normal size, before the layout scales the whole."""
SHAPES = tuple(_HALF_EXTENTS)


_UNSCALED = np.ones(3, np.float32)


NAMES = (*SHAPES, *EVERYDAY)
"""Every noun of the world, in the order of the networks' shape classes."""

_SIZE_FACTORS: dict[str, tuple[float, float]] = {
    "normal": (1.0, 1.0),
    "small": (0.68, 0.68),
    "large": (1.3, 1.3),
    "tall": (0.82, 1.45),
    "flat": (1.12, 0.5),
}
"""Factors on the width and on the height."""

_SINK_BELOW = {"cone": 0.08, "pyramid": 0.08, "sphere": 0.05, "egg": 0.05, "capsule": 0.05, "torus": 0.12}
_SINK_ABOVE = {"sphere": 0.05, "egg": 0.05, "capsule": 0.04, "torus": 0.08}
"""How much of its height a lower or an upper shape gives up so that curved or pointed ends touch."""
_ROW_GAP = 0.2
STACK_HEIGHT = 0.92
ROW_WIDTH = 0.92
"""Half extents to which a stack or a row is scaled."""
_MAX_HALF_WIDTH = 0.72


class Thing(NamedTuple):
    """What a caption says about one thing."""

    name: str
    color: str | None
    """None: the caption names no color, the thing has its own (a green tree)."""
    accent: str | None = None
    size: str = "normal"


class Description(NamedTuple):
    """What a caption says: `b` is None exactly when the relation is "single"."""

    a: Thing
    b: Thing | None
    relation: str


class Arrangement(NamedTuple):
    """A description made of parts, in the canonical layout."""

    parts: tuple[Part, ...]
    slots: tuple[int, ...]
    """For each part the slot of its thing, 0 (A) or 1 (B)."""
    boxes: Array
    """(2, 6) center and half extents of slots A and B; zeros for an absent B."""


def paint_color(thing: Thing, paint: str) -> str:
    """Name the color of a part of `thing`."""
    if paint == "main":
        color = thing.color or (EVERYDAY[thing.name].main if thing.name in EVERYDAY else None)
    elif paint == "accent":
        color = thing.accent or EVERYDAY[thing.name].accent
    else:
        color = paint
    assert color is not None, f"{thing} names no color for {paint!r}"
    return color


def part_colors(description: Description, arrangement: Arrangement) -> list[str]:
    """Name the color of each part of an arrangement of `description`."""
    things = [thing for thing in (description.a, description.b) if thing]
    return [
        paint_color(things[slot], part.paint)
        for part, slot in zip(arrangement.parts, arrangement.slots, strict=True)
    ]


def is_held_out(a: Thing, b: Thing) -> bool:
    """Tell whether this combination of two shapes and colors must never be trained on, in either order.

    One combination in five, by a fixed hash of the two (color, shape) pairs, and {red cube, blue cylinder}.
    """
    pair = sorted(f"{thing.color} {thing.name}" for thing in (a, b))
    return pair == ["blue cylinder", "red cube"] or zlib.crc32("|".join(pair).encode()) % 5 == 0


def random_description(rng: np.random.Generator) -> Description:
    """Draw what a picture shows: 36 % everyday, 8 % single shapes, 56 % pairs (three in five stacked)."""
    kind = rng.random()
    if kind < 0.44:
        everyday = kind < 0.36
        return Description(_random_thing(rng, everyday=1.0 if everyday else 0.0), None, "single")
    relation = "on" if rng.random() < 0.6 else "next"
    while True:
        a, b = _random_thing(rng, everyday=0.08), _random_thing(rng, everyday=0.08)
        if not is_held_out(a, b):
            return Description(a, b, relation)


_DIFFICULTY = {"torus": 1.7, "cone": 1.2, "pyramid": 1.2, "disk": 0.9, "egg": 0.5}
_SHAPE_SHARES = np.array([_DIFFICULTY.get(shape, 1.0) for shape in SHAPES])
_SHAPE_SHARES /= _SHAPE_SHARES.sum()
"""What is hard to draw is shown more often."""


def _random_thing(rng: np.random.Generator, everyday: float) -> Thing:
    size = "normal" if rng.random() < 0.55 else str(rng.choice(SIZES[1:]))
    if rng.random() < everyday:
        name = str(rng.choice(list(EVERYDAY)))
        template = EVERYDAY[name]
        color = None if rng.random() < 0.25 else str(rng.choice(COLORS))
        accent = str(rng.choice(COLORS)) if template.accent and rng.random() < 0.6 else None
        return Thing(name, color, accent, size if rng.random() < 0.4 else "normal")
    return Thing(str(rng.choice(SHAPES, p=_SHAPE_SHARES)), str(rng.choice(COLORS)), None, size)


def build(description: Description, rng: np.random.Generator | None = None) -> Arrangement:
    """Arrange a description's parts; with `rng` every dimension is jittered by up to 8 %."""
    a = _parts(description.a, rng)
    if description.b is None:
        lift = {"small": 0.72, "large": 1.2}.get(description.a.size, 1.0)
        groups = [_fitted(a, 0.76 * lift)]
    else:
        b = _parts(description.b, rng)
        placed = _stacked(a, b, description) if description.relation == "on" else _in_a_row(a, b)
        groups = list(placed)
    parts = tuple(part for group in groups for part in group)
    slots = tuple(slot for slot, group in enumerate(groups) for _ in group)
    boxes = np.zeros((2, 6), np.float32)
    for slot, group in enumerate(groups):
        low, high = _bounds(group)
        boxes[slot] = np.concatenate([(low + high) / 2, (high - low) / 2])
    return Arrangement(parts, slots, boxes)


def _parts(thing: Thing, rng: np.random.Generator | None) -> list[Part]:
    """One thing around the origin, at its own size."""
    jitter = np.ones(3) if rng is None else rng.uniform(0.92, 1.08, 3)
    width, height = _SIZE_FACTORS[thing.size]
    if thing.name in SHAPES:
        half = np.array(_HALF_EXTENTS[thing.name])
        parts = [Part("cylinder" if thing.name == "disk" else thing.name, (0, 0, 0), (1, 1, 1), "main")]
    else:
        half, parts = np.array(EVERYDAY[thing.name].half), list(EVERYDAY[thing.name].parts)
    low, high = _bounds(parts)
    scale = (half * jitter * np.array([width, height, width]) / ((high - low) / 2)).astype(np.float32)
    return [_moved(part, scale, -(low + high) / 2 * scale) for part in parts]


def _moved(part: Part, scale: Array, shift: Array) -> Part:
    center = np.array(part.center) * scale + shift
    half = np.array(part.half) * scale[[_AXES[part.axis][i] for i in range(3)]]
    return part._replace(center=_triple(center), half=_triple(half))


_AXES = {0: (1, 0, 2), 1: (0, 1, 2), 2: (0, 2, 1)}
"""World axis of each of a solid's own axes, by the world axis along which its height lies."""


def _triple(values: NDArray[np.floating]) -> tuple[float, float, float]:
    x, y, z = (float(v) for v in values)
    return x, y, z


def world_half(part: Part) -> Array:
    """Half extents (3,) of a part along the world's axes."""
    own = np.abs(np.array(part.half, np.float32))
    half = np.empty(3, np.float32)
    half[list(_AXES[part.axis])] = own
    return half


def _bounds(parts: list[Part]) -> tuple[Array, Array]:
    centers = np.array([part.center for part in parts], np.float32)
    halves = np.stack([world_half(part) for part in parts])
    return (centers - halves).min(0), (centers + halves).max(0)


def _fitted(parts: list[Part], half_extent: float) -> list[Part]:
    """Center a thing and scale it so that its largest half extent is `half_extent` and its shape stays."""
    low, high = _bounds(parts)
    scale = np.full(3, half_extent / ((high - low) / 2).max(), np.float32)
    return [_moved(part, scale, -(low + high) / 2 * scale) for part in parts]


def _stacked(a: list[Part], b: list[Part], description: Description) -> tuple[list[Part], list[Part]]:
    (low_a, high_a), (low_b, high_b) = _bounds(a), _bounds(b)
    assert description.b is not None
    sink = _SINK_BELOW.get(description.b.name, 0.02) * (high_b - low_b)[1]
    sink += _SINK_ABOVE.get(description.a.name, 0.0) * (high_a - low_a)[1]
    lift = np.array([0, high_b[1] - low_a[1] - sink, 0], np.float32)
    a = [_moved(part, _UNSCALED, lift) for part in a]
    return _scaled_together(
        a, b, lambda half: min(STACK_HEIGHT / half[1], _MAX_HALF_WIDTH / max(half[0], half[2]))
    )


def _in_a_row(a: list[Part], b: list[Part]) -> tuple[list[Part], list[Part]]:
    (low_a, high_a), (low_b, _) = _bounds(a), _bounds(b)
    shift = np.array([low_b[0] - high_a[0] - _ROW_GAP, low_b[1] - low_a[1], 0], np.float32)
    a = [_moved(part, _UNSCALED, shift) for part in a]
    return _scaled_together(
        a, b, lambda half: min(ROW_WIDTH / half[0], _MAX_HALF_WIDTH / max(half[1], half[2]))
    )


def _scaled_together(
    a: list[Part], b: list[Part], factor: Callable[[Array], float]
) -> tuple[list[Part], list[Part]]:
    low, high = _bounds([*a, *b])
    scale = np.full(3, factor((high - low) / 2), np.float32)
    shift = -(low + high) / 2 * scale
    return [_moved(part, scale, shift) for part in a], [_moved(part, scale, shift) for part in b]


def to_unit(part: Part, vectors: Array, *, directions: bool = False) -> Array:
    """Take world points (or directions), (N, 3), into the part's own unit box."""
    moved = vectors if directions else vectors - np.array(part.center, np.float32)
    return np.asarray(moved[:, list(_AXES[part.axis])] / np.array(part.half, np.float32))


def from_unit(part: Part, points: Array) -> Array:
    """Take points (N, 3) of the part's unit box into the world."""
    world = np.empty_like(points)
    world[:, list(_AXES[part.axis])] = points * np.array(part.half, np.float32)
    return world + np.array(part.center, np.float32)


def ground_truth_mesh(arrangement: Arrangement) -> tuple[Array, NDArray[np.int64], NDArray[np.intp]]:
    """Triangulate every solid: vertices (N, 3), faces (M, 3) wound outwards, and the part of each face (M,).

    Each part is closed by itself; where parts overlap, so do their meshes.
    """
    vertices, faces, owner, count = [], [], [], 0
    for index, part in enumerate(arrangement.parts):
        points, triangles = surface_mesh(part.solid)
        mirrored = (np.prod(part.half) < 0) != (part.axis != 1)  # head down; two axes swapped
        vertices.append(from_unit(part, points))
        faces.append((triangles[:, ::-1] if mirrored else triangles) + count)
        owner.append(np.full(len(triangles), index))
        count += len(points)
    return np.concatenate(vertices), np.concatenate(faces), np.concatenate(owner)


def ground_truth_points(
    arrangement: Arrangement, count: int, rng: np.random.Generator
) -> tuple[Array, NDArray[np.intp]]:
    """Draw points evenly from the visible surface of an arrangement: points (N, 3) and the part of each (N,).

    Surface that lies inside another part is left out, so slightly fewer than `count` points come back.
    """
    vertices, faces, owner = ground_truth_mesh(arrangement)
    triangles = vertices[faces]
    area = np.linalg.norm(
        np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0]), axis=-1
    )
    chosen = rng.choice(len(triangles), count, p=area / area.sum())
    u, v = np.sort(rng.random((2, count)), axis=0).astype(np.float32)
    corners = triangles[chosen]
    points = corners[:, 0] * u[:, None] + corners[:, 1] * (v - u)[:, None] + corners[:, 2] * (1 - v)[:, None]
    hidden = np.zeros(count, bool)
    for index, part in enumerate(arrangement.parts):
        hidden |= (owner[chosen] != index) & inside(part.solid, to_unit(part, points))
    return points[~hidden].astype(np.float32), owner[chosen][~hidden]
