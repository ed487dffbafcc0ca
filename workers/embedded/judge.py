"""Judge a finished mesh against the world's truth: is it what the words say?

*Right* is decided on the colored surface alone (points with colors), never by a network:

- colors: each thing's median color is nearest to its own palette entry;
- shapes: each thing's surface, its box scaled to a unit cube, at its best yaw, has a higher F-score against what is
  to be seen of the named solid in its place than against what would be seen of any other (a disk, which cannot be
  told from a cylinder then, is less than half as high as wide and as good a cylinder as anything else);
- relation: on top of: A is above B, stands over it, and no gap is between them (it may sink in); next to: side by side,
  not far apart, on one floor.

For everyday objects: F-score against the world's own surface, and the share of that surface whose nearest mesh point
has the right color.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from workers.embedded.primitives import SOLIDS
from workers.embedded.world import (
    COLORS,
    EVERYDAY,
    PALETTE,
    Description,
    Thing,
    build,
    ground_truth_points,
    paint_color,
    part_colors,
)

__all__ = ["Surface", "Verdict", "f_score", "judge"]

Array = NDArray[np.floating]

NUM_POINTS = 2000
F_DISTANCE = 0.10
"""Two points agree when they are this close, in units of a half extent."""
FLATTEST = 0.4
"""Flatter things (disks, rings) have their heights counted less, or a millimeter of relief would decide."""
DISK_TIE = 0.05
"""So flat, the F-scores of cylinder and capsule differ by less than their noise."""
EVERYDAY_F, EVERYDAY_COLOR = 0.75, 0.75
"""Least F-score and least share of rightly colored surface of an everyday object."""
TOUCH = 0.15
"""Largest gap of a stack, overlap of a row and difference of a row's floors, in units of the space."""
APART = 0.6
"""Largest gap of a row."""
MIN_POINTS = 60
"""A thing with fewer points is not there."""
_PALETTE = np.array([PALETTE[color] for color in COLORS], float)


class Surface(NamedTuple):
    """Points drawn evenly from a colored surface."""

    points: Array
    """(N, 3) in the space of glTF."""
    colors: Array
    """(N, 3) sRGB, 0…255."""


class Verdict(NamedTuple):
    """What the judge says of one mesh."""

    right: bool
    faults: list[str]
    """One sentence each; empty exactly when `right`."""
    f_score: float
    """Mean F-score of the things against what they are named."""


def judge(surface: Surface, description: Description, seed: int = 0) -> Verdict:
    """Judge a surface (at least a few thousand points) against a description."""
    rng = np.random.default_rng(seed)
    things = [thing for thing in (description.a, description.b) if thing]
    groups = _split(surface, description)
    faults, scores = [], []
    for slot, (thing, group) in enumerate(zip(things, groups, strict=True)):
        if len(group.points) < MIN_POINTS:
            faults.append(f"there is no {thing.color or ''} {thing.name}".replace("  ", " "))
            scores.append(0.0)
            continue
        thing_faults, score = _judge_thing(description, slot, group, rng)
        faults += thing_faults
        scores.append(score)
    if description.b is not None and all(len(group.points) >= MIN_POINTS for group in groups):
        faults += _judge_relation(description.relation, *groups)
    return Verdict(not faults, faults, float(np.mean(scores)))


def f_score(points: Array, reference: Array, distance: float = F_DISTANCE) -> float:
    """Harmonic mean of the share of `points` near `reference` and of `reference` near `points`."""
    precision = (cKDTree(reference).query(points)[0] <= distance).mean()
    recall = (cKDTree(points).query(reference)[0] <= distance).mean()
    return float(2 * precision * recall / max(precision + recall, 1e-9))


def _split(surface: Surface, description: Description) -> list[Surface]:
    """Divide a surface between two things: by color where the words name two colors, else by place."""
    if description.b is None:
        return [surface]
    color_a, color_b = (paint_color(thing, "main") for thing in (description.a, description.b))
    basic = description.a.name not in EVERYDAY and description.b.name not in EVERYDAY
    if color_a != color_b and basic:
        distance = [
            np.linalg.norm(surface.colors - np.array(PALETTE[c]), axis=-1) for c in (color_a, color_b)
        ]
        first = distance[0] < distance[1]
    else:
        axis, sign = (1, 1) if description.relation == "on" else (0, -1)  # towards A: up, or left
        a, b = build(description).boxes
        low_a, high_b = sign * a[axis] - a[3 + axis], sign * b[axis] + b[3 + axis]
        first = sign * surface.points[:, axis] > (low_a + high_b) / 2
    return [Surface(surface.points[part], surface.colors[part]) for part in (first, ~first)]


def _judge_thing(
    description: Description, slot: int, surface: Surface, rng: np.random.Generator
) -> tuple[list[str], float]:
    thing = (description.a, description.b)[slot]
    assert thing is not None
    if thing.name in EVERYDAY:
        return _judge_everyday(thing, surface, rng)
    faults = []
    found = COLORS[int(_nearest_color(np.median(surface.colors, 0)))]
    if found != thing.color:
        faults.append(f"the {thing.name} is {found}, not {thing.color}")
    unit, flatness = _unit_box(surface.points)
    unit = unit[rng.permutation(len(unit))[:NUM_POINTS]]
    height = min(1.0, flatness / FLATTEST)
    scores = {
        solid: _best_yaw_f(unit, _visible(description, slot, solid, rng), solid, height) for solid in SOLIDS
    }
    if thing.name == "disk":
        if flatness > 0.5 or scores["cylinder"] < max(scores.values()) - DISK_TIE:
            faults.append(
                f"the {thing.color} disk has height/width {flatness:.2f} and scores {_told(scores)}"
            )
        return faults, scores["cylinder"]
    if max(scores, key=scores.__getitem__) != thing.name:
        faults.append(f"the {thing.color} {thing.name} scores {_told(scores)}")
    return faults, scores[thing.name]


def _told(scores: dict[str, float]) -> str:
    best = sorted(scores, key=scores.__getitem__, reverse=True)[:3]
    return ", ".join(f"{solid} {scores[solid]:.2f}" for solid in best)


def _judge_everyday(thing: Thing, surface: Surface, rng: np.random.Generator) -> tuple[list[str], float]:
    description = Description(thing, None, "single")
    arrangement = build(description)
    truth, owner = ground_truth_points(arrangement, NUM_POINTS, rng)
    low, high = truth.min(0), truth.max(0)
    half = (high - low).max() / 2
    own_low, own_high = np.percentile(surface.points, [0.3, 99.7], axis=0)
    own_half = (own_high - own_low).max() / 2
    points = (surface.points - (own_low + own_high) / 2) / own_half
    reference = (truth - (low + high) / 2) / half
    score = f_score(points[rng.permutation(len(points))[:NUM_POINTS]], reference)
    nearest = surface.colors[cKDTree(points).query(reference)[1]]
    wanted = np.array([COLORS.index(color) for color in part_colors(description, arrangement)])[owner]
    colored = float((_nearest_color(nearest) == wanted).mean())
    faults = []
    if score < EVERYDAY_F:
        faults.append(f"the {thing.name} has F-score {score:.2f}, at least {EVERYDAY_F} is right")
    if colored < EVERYDAY_COLOR:
        faults.append(
            f"{colored:.0%} of the {thing.name} has its color, at least {EVERYDAY_COLOR:.0%} is right"
        )
    return faults, score


def _nearest_color(colors: Array) -> NDArray[np.intp]:
    """Index in `COLORS` of the palette entry nearest to each of `colors` (…, 3)."""
    return np.asarray(np.linalg.norm(colors[..., None, :] - _PALETTE, axis=-1).argmin(-1))


def _judge_relation(relation: str, a: Surface, b: Surface) -> list[str]:
    (low_a, high_a), (low_b, high_b) = (np.percentile(group.points, [1, 99], axis=0) for group in (a, b))
    center_a, center_b = (low_a + high_a) / 2, (low_b + high_b) / 2
    if relation == "on":
        faults = [] if center_a[1] > center_b[1] else ["the upper thing is not above the lower one"]
        if low_a[1] - high_b[1] > TOUCH:
            faults.append(f"the upper thing floats {low_a[1] - high_b[1]:.2f} above the lower one")
        aside = np.abs(center_a - center_b)[[0, 2]].max()
        if aside > max((high_b - low_b)[[0, 2]].max(), (high_a - low_a)[[0, 2]].max()) / 2:
            faults.append("the upper thing does not stand over the lower one")
        return faults
    gap = np.maximum(low_a - high_b, low_b - high_a)[[0, 2]].max()
    faults = [] if gap > -TOUCH else ["the things are not side by side"]
    if gap > APART:
        faults.append(f"the things stand {gap:.2f} apart")
    if abs(low_a[1] - low_b[1]) > TOUCH:
        faults.append("the things do not stand on one floor")
    return faults


def _unit_box(points: Array) -> tuple[Array, float]:
    """Scale points to [−1, 1] per axis, ignoring 0.5 % of outliers at each end; also height over width."""
    low, high = np.percentile(points, [0.5, 99.5], axis=0)
    extent = high - low
    return (points - (low + high) / 2) / (extent / 2), float(extent[1] / max(extent[0], extent[2]))


def _visible(description: Description, slot: int, solid: str, rng: np.random.Generator) -> Array:
    """Points of what is to be seen of `solid` if it stood in this slot: what its neighbor hides is no part of it."""
    things = [description.a, description.b]
    thing = things[slot]
    assert thing is not None
    things[slot] = thing._replace(name=thing.name if thing.name == "disk" and solid == "cylinder" else solid)
    a, b = things
    assert a is not None
    arrangement = build(Description(a, b, description.relation))
    points, part = ground_truth_points(arrangement, 3 * NUM_POINTS, rng)
    return points[np.array(arrangement.slots)[part] == slot][:NUM_POINTS]


def _best_yaw_f(unit: Array, reference: Array, solid: str, height: float) -> float:
    """Highest F-score over yaws, heights counting `height` times; solids of revolution look the same at each."""
    best, weights = 0.0, np.array([1, height, 1])
    for yaw in np.deg2rad(np.arange(0, 90, 15)) if solid in ("cube", "pyramid") else (0.0,):
        turn = np.array([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]])
        turned, _ = _unit_box(reference @ turn.T)
        best = max(best, f_score(unit * weights, turned * weights))
    return best
