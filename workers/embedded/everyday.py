"""Everyday objects of the procedural world: each a fixed set of solid parts with paints."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["EVERYDAY", "Everyday", "Part"]


class Part(NamedTuple):
    """One solid of a thing."""

    solid: str
    """Its shape, of `primitives.SOLIDS`."""
    center: tuple[float, float, float]
    half: tuple[float, float, float]
    """Half extents along the solid's own axes; its height is the second."""
    paint: str
    """"main" or "accent" (the caption decides) or the name of a fixed color."""
    axis: int = 1
    """The world axis (0 x, 1 y, 2 z) along which the solid's own height lies."""


class Everyday(NamedTuple):
    """One everyday object: its parts, its proportions and its colors."""

    parts: tuple[Part, ...]
    """In a unit frame; `build` fits them into the box of `half`."""
    half: tuple[float, float, float]
    main: str | None
    """Color of the "main" parts where the caption names none; None: the caption always names one."""
    accent: str | None = None
    """Color of the "accent" parts where the caption names none."""
    accent_noun: str | None = None
    """What the caption calls the accent: a house "with a blue roof"."""


def _legs(x: float, z: float, y: float, half: tuple[float, float, float]) -> tuple[Part, ...]:
    return tuple(Part("cube", (sx * x, y, sz * z), half, "main") for sx in (-1, 1) for sz in (-1, 1))


EVERYDAY: dict[str, Everyday] = {
    "snowman": Everyday(
        (
            Part("sphere", (0, -0.58, 0), (0.42, 0.42, 0.42), "main"),
            Part("sphere", (0, 0.06, 0), (0.31, 0.31, 0.31), "main"),
            Part("sphere", (0, 0.5, 0), (0.22, 0.22, 0.22), "main"),
            Part("cone", (0, 0.5, 0.3), (0.07, 0.14, 0.07), "orange", 2),
            Part("cylinder", (0, 0.68, 0), (0.27, 0.04, 0.27), "accent"),
            Part("cylinder", (0, 0.84, 0), (0.17, 0.16, 0.17), "accent"),
        ),
        (0.4, 0.92, 0.4),
        "white",
        "black",
        "hat",
    ),
    "table": Everyday(
        (Part("cube", (0, 0.5, 0), (0.85, 0.1, 0.6), "main"), *_legs(0.72, 0.47, -0.1, (0.1, 0.5, 0.1))),
        (0.75, 0.52, 0.53),
        "brown",
    ),
    "chair": Everyday(
        (
            Part("cube", (0, -0.05, 0), (0.42, 0.08, 0.42), "main"),
            Part("cube", (0, 0.45, -0.34), (0.42, 0.47, 0.08), "main"),
            *_legs(0.32, 0.32, -0.53, (0.09, 0.4, 0.09)),
        ),
        (0.43, 0.92, 0.43),
        "brown",
    ),
    "mushroom": Everyday(
        (
            Part("cylinder", (0, -0.45, 0), (0.24, 0.5, 0.24), "white"),
            Part("sphere", (0, 0.3, 0), (0.72, 0.42, 0.72), "main"),
        ),
        (0.66, 0.76, 0.66),
        "red",
    ),
    "tree": Everyday(
        (
            Part("cylinder", (0, -0.6, 0), (0.15, 0.4, 0.15), "brown"),
            Part("sphere", (0, 0.28, 0), (0.6, 0.66, 0.6), "main"),
        ),
        (0.56, 0.9, 0.56),
        "green",
    ),
    "house": Everyday(
        (
            Part("cube", (0, -0.38, 0), (0.58, 0.46, 0.58), "main"),
            Part("pyramid", (0, 0.42, 0), (0.76, 0.4, 0.76), "accent"),
        ),
        (0.74, 0.8, 0.74),
        "white",
        "red",
        "roof",
    ),
    "rocket": Everyday(
        (
            Part("cylinder", (0, -0.1, 0), (0.26, 0.52, 0.26), "main"),
            Part("cone", (0, 0.68, 0), (0.28, 0.28, 0.28), "accent"),
            Part("cube", (0, -0.66, 0), (0.5, 0.2, 0.12), "accent"),
            Part("cube", (0, -0.66, 0), (0.12, 0.2, 0.5), "accent"),
        ),
        (0.48, 0.92, 0.48),
        "white",
        "red",
        "tip",
    ),
    "lamp": Everyday(
        (
            Part("cylinder", (0, -0.86, 0), (0.4, 0.09, 0.4), "gray"),
            Part("cylinder", (0, -0.35, 0), (0.09, 0.5, 0.09), "gray"),
            Part("cone", (0, 0.38, 0), (0.58, 0.5, 0.58), "main"),
        ),
        (0.54, 0.88, 0.54),
        "yellow",
    ),
    "mug": Everyday(
        (
            Part("cylinder", (-0.14, 0, 0), (0.56, 0.68, 0.56), "main"),
            Part("torus", (0.42, 0, 0), (0.42, 0.12, 0.42), "main", 2),
        ),
        (0.68, 0.64, 0.52),
        "white",
    ),
    "car": Everyday(
        (
            Part("cube", (0, -0.1, 0), (0.92, 0.22, 0.45), "main"),
            Part("cube", (-0.05, 0.27, 0), (0.5, 0.2, 0.39), "cyan"),
            *(
                Part("cylinder", (sx * 0.55, -0.32, sz * 0.42), (0.21, 0.1, 0.21), "black", 2)
                for sx in (-1, 1)
                for sz in (-1, 1)
            ),
        ),
        (0.86, 0.48, 0.48),
        "red",
    ),
    "icecream": Everyday(
        (
            Part("cone", (0, -0.35, 0), (0.42, -0.6, 0.42), "brown"),
            Part("sphere", (0, 0.38, 0), (0.52, 0.5, 0.52), "main"),
        ),
        (0.5, 0.9, 0.5),
        "pink",
    ),
    "dumbbell": Everyday(
        (
            Part("cylinder", (0, 0, 0), (0.13, 0.6, 0.13), "gray", 0),
            Part("cylinder", (-0.7, 0, 0), (0.5, 0.2, 0.5), "main", 0),
            Part("cylinder", (0.7, 0, 0), (0.5, 0.2, 0.5), "main", 0),
        ),
        (0.82, 0.44, 0.44),
        "black",
    ),
    "boat": Everyday(
        (
            Part("cube", (0, -0.2, 0), (0.62, 0.2, 0.36), "main"),
            Part("cone", (0.72, -0.2, 0), (0.2, 0.3, 0.36), "main", 0),
            Part("cube", (-0.15, 0.16, 0), (0.34, 0.18, 0.26), "white"),
            Part("cylinder", (-0.15, 0.5, 0), (0.13, 0.2, 0.13), "accent"),
        ),
        (0.86, 0.5, 0.36),
        "blue",
        "red",
        "funnel",
    ),
    "bed": Everyday(
        (
            Part("cube", (0, -0.25, 0.05), (0.55, 0.25, 0.8), "main"),
            Part("cube", (0, 0.06, -0.5), (0.42, 0.1, 0.2), "white"),
            Part("cube", (0, 0.05, -0.86), (0.58, 0.55, 0.1), "brown"),
        ),
        (0.52, 0.5, 0.86),
        "blue",
    ),
    "sofa": Everyday(
        (
            Part("cube", (0, -0.25, 0), (0.62, 0.25, 0.4), "main"),
            Part("cube", (0, 0.1, -0.38), (0.85, 0.6, 0.16), "main"),
            Part("cube", (-0.74, -0.08, 0.02), (0.15, 0.42, 0.44), "main"),
            Part("cube", (0.74, -0.08, 0.02), (0.15, 0.42, 0.44), "main"),
        ),
        (0.86, 0.56, 0.46),
        "red",
    ),
    "bottle": Everyday(
        (
            Part("cylinder", (0, -0.4, 0), (0.36, 0.5, 0.36), "main"),
            Part("sphere", (0, 0.1, 0), (0.36, 0.34, 0.36), "main"),
            Part("cylinder", (0, 0.5, 0), (0.14, 0.26, 0.14), "main"),
            Part("cylinder", (0, 0.82, 0), (0.18, 0.12, 0.18), "accent"),
        ),
        (0.36, 0.92, 0.36),
        "green",
        "white",
        "cap",
    ),
    "hat": Everyday(
        (
            Part("cylinder", (0, -0.5, 0), (0.82, 0.09, 0.82), "main"),
            Part("cylinder", (0, -0.28, 0), (0.51, 0.14, 0.51), "accent"),
            Part("cylinder", (0, 0.2, 0), (0.48, 0.4, 0.48), "main"),
        ),
        (0.78, 0.58, 0.78),
        "black",
        "red",
        "band",
    ),
    "pine": Everyday(
        (
            Part("cylinder", (0, -0.75, 0), (0.15, 0.2, 0.15), "brown"),
            Part("cone", (0, -0.25, 0), (0.62, 0.38, 0.62), "main"),
            Part("cone", (0, 0.2, 0), (0.5, 0.36, 0.5), "main"),
            Part("cone", (0, 0.6, 0), (0.36, 0.34, 0.36), "main"),
        ),
        (0.58, 0.92, 0.58),
        "green",
    ),
    "cactus": Everyday(
        (
            Part("capsule", (0, 0, 0), (0.25, 0.92, 0.25), "main"),
            Part("cylinder", (-0.36, -0.1, 0), (0.15, 0.26, 0.15), "main", 0),
            Part("capsule", (-0.58, 0.12, 0), (0.16, 0.36, 0.16), "main"),
            Part("cylinder", (0.36, 0.15, 0), (0.15, 0.26, 0.15), "main", 0),
            Part("capsule", (0.58, 0.37, 0), (0.16, 0.36, 0.16), "main"),
        ),
        (0.68, 0.9, 0.26),
        "green",
    ),
    "train": Everyday(
        (
            Part("cylinder", (0.25, 0, 0), (0.34, 0.6, 0.34), "main", 0),
            Part("cube", (-0.55, 0.14, 0), (0.3, 0.5, 0.42), "main"),
            Part("cube", (-0.55, 0.7, 0), (0.38, 0.07, 0.48), "accent"),
            Part("cylinder", (0.6, 0.48, 0), (0.14, 0.28, 0.14), "black"),
            *(
                Part("cylinder", (x, -0.42, sz * 0.36), (0.24, 0.1, 0.24), "black", 2)
                for x in (-0.55, 0.05, 0.6)
                for sz in (-1, 1)
            ),
        ),
        (0.86, 0.68, 0.46),
        "green",
        "red",
        "roof",
    ),
    "robot": Everyday(
        (
            Part("cube", (0, 0, 0), (0.4, 0.36, 0.26), "main"),
            Part("cube", (0, 0.58, 0), (0.26, 0.22, 0.24), "accent"),
            Part("cube", (-0.54, 0, 0), (0.13, 0.34, 0.16), "main"),
            Part("cube", (0.54, 0, 0), (0.13, 0.34, 0.16), "main"),
            Part("cube", (-0.2, -0.6, 0), (0.15, 0.26, 0.18), "main"),
            Part("cube", (0.2, -0.6, 0), (0.15, 0.26, 0.18), "main"),
        ),
        (0.66, 0.9, 0.32),
        "gray",
        "cyan",
        "head",
    ),
    "cake": Everyday(
        (
            Part("cylinder", (0, -0.35, 0), (0.72, 0.27, 0.72), "main"),
            Part("cylinder", (0, 0.12, 0), (0.46, 0.22, 0.46), "accent"),
            Part("cylinder", (0, 0.5, 0), (0.11, 0.2, 0.11), "red"),
        ),
        (0.72, 0.66, 0.72),
        "brown",
        "white",
        "top",
    ),
    "airplane": Everyday(
        (
            Part("capsule", (0, 0, 0), (0.2, 0.92, 0.2), "main", 2),
            Part("cube", (0, 0, 0.12), (0.95, 0.1, 0.26), "accent"),
            Part("cube", (0, 0.06, -0.74), (0.42, 0.09, 0.18), "accent"),
            Part("cube", (0, 0.24, -0.74), (0.1, 0.26, 0.18), "accent"),
        ),
        (0.9, 0.34, 0.88),
        "white",
        "blue",
        "wing",
    ),
    "lighthouse": Everyday(
        (
            Part("cylinder", (0, -0.72, 0), (0.42, 0.2, 0.42), "accent"),
            Part("cylinder", (0, -0.28, 0), (0.36, 0.26, 0.36), "main"),
            Part("cylinder", (0, 0.14, 0), (0.31, 0.2, 0.31), "accent"),
            Part("cylinder", (0, 0.44, 0), (0.24, 0.14, 0.24), "yellow"),
            Part("cone", (0, 0.74, 0), (0.34, 0.18, 0.34), "accent"),
        ),
        (0.42, 0.92, 0.42),
        "white",
        "red",
        "roof",
    ),
}
"""Everyday objects; a half extent along the part's axis may be negative: the solid stands on its head."""
