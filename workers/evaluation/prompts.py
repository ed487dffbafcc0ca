"""The prompts whose truth is known: single things, everyday objects, and pairs that were never trained on."""

from __future__ import annotations

import numpy as np

from workers.embedded.world import COLORS, EVERYDAY, SHAPES, Description, Thing, is_held_out

__all__ = ["everyday_objects", "held_out_pairs", "kind_of", "single_shapes"]


def single_shapes(seed: int = 11) -> list[Description]:
    """Every basic shape in two colors."""
    rng = np.random.default_rng(seed)
    things = [Thing(shape, str(color)) for shape in SHAPES for color in rng.choice(COLORS, 2, replace=False)]
    return [Description(thing, None, "single") for thing in things]


def everyday_objects() -> list[Description]:
    """Every everyday object in its own colors."""
    return [Description(Thing(name, None), None, "single") for name in EVERYDAY]


def held_out_pairs(count: int, seed: int = 12) -> list[Description]:
    """The demo's pair, then random pairs, each another, whose shapes and colors were never trained on together."""
    rng = np.random.default_rng(seed)
    pairs = [Description(Thing("cube", "red"), Thing("cylinder", "blue"), "on")]
    while len(pairs) < count:
        a, b = (Thing(str(rng.choice(SHAPES)), str(rng.choice(COLORS))) for _ in range(2))
        pair = Description(a, b, "on" if rng.random() < 0.6 else "next")
        if is_held_out(a, b) and pair not in pairs:
            pairs.append(pair)
    return pairs


def kind_of(description: Description) -> str:
    """Tell which row of a table a description belongs to."""
    if description.b is not None:
        return "pair"
    return "everyday" if description.a.name in EVERYDAY else "shape"
