"""Pairs of pictures of which the better one is known: what an embedded reward must be able to tell apart.

Each pair has a prompt (held out, or one that may be trained on), its true pictures, and pictures that are wrong in
one way. The kinds from "object-swap" on are hard: the wrong pictures show the same words in another order, or the
right object with one fault.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from workers.embedded.captions import random_caption
from workers.embedded.dataset import draw_elevation_deg, group_cameras
from workers.embedded.truth import Truth
from workers.embedded.world import COLORS, SHAPES, Description, Part, Thing, is_held_out
from workers.priors.rgba import latents_to_image

if TYPE_CHECKING:
    from reward_models.contracts import RewardModel

__all__ = ["PAIR_KINDS", "PreferencePair", "draw_preference_pair", "held_out_description", "pair_accuracy"]

PAIR_KINDS = ("other", "color", "shape", "object-swap", "color-swap", "relation-swap", "two-faced", "floater")
FLOATER_HALF = (0.10, 0.16)
"""Least and largest half extent of a stray blob."""


class PreferencePair(NamedTuple):
    """One prompt, and images (V, 3, 32, 32) of which `better` shows what it says."""

    prompt: str
    better: Tensor
    worse: Tensor


def held_out_description(rng: np.random.Generator) -> Description:
    """Draw two things whose shapes and colors were never trained on together; both differ in shape and color."""
    return _two_things(rng, held_out=True)


def _two_things(rng: np.random.Generator, *, held_out: bool) -> Description:
    while True:
        shapes, colors = (rng.choice(options, 2, replace=False) for options in (SHAPES, COLORS))
        a, b = (Thing(str(shape), str(color)) for shape, color in zip(shapes, colors, strict=True))
        if is_held_out(a, b) == held_out and {a.name, b.name} != {"cylinder", "disk"}:
            return Description(a, b, "on" if rng.random() < 0.6 else "next")


def draw_preference_pair(kind: str, rng: np.random.Generator, *, held_out: bool = True) -> PreferencePair:
    """Draw a pair that differs as `kind` (of `PAIR_KINDS`) says.

    The prompt's combination of shapes and colors was kept out of training; with `held_out` False neither it nor what
    the worse pictures show was, so that one may train on the pair.
    """
    description, wrong = _draw_words(kind, rng, held_out=held_out)
    prompt = random_caption(description, rng)
    cameras = group_cameras(torch.tensor([rng.uniform(0, 360), draw_elevation_deg(rng)], dtype=torch.float32))
    truth, untruth = Truth(description, rng), Truth(wrong, rng)
    if kind == "floater":
        untruth.with_part(_floater(rng), str(rng.choice(COLORS)))
    better, worse = truth.latents(cameras), untruth.latents(cameras)
    if kind == "two-faced":
        worse = torch.cat([better[:2], worse[2:]])
    better, worse = latents_to_image(torch.stack([better, worse]))
    return PreferencePair(prompt, better, worse)


def _draw_words(kind: str, rng: np.random.Generator, *, held_out: bool) -> tuple[Description, Description]:
    """What the prompt describes, and what the worse pictures show."""
    while True:
        description = _two_things(rng, held_out=held_out)
        if kind in ("object-swap", "color-swap"):
            description = description._replace(relation="on")
        wrong = _altered(description, kind, rng)
        assert wrong.b is not None
        if held_out or not is_held_out(wrong.a, wrong.b):
            return description, wrong


def _altered(description: Description, kind: str, rng: np.random.Generator) -> Description:
    a, b = description.a, description.b
    assert b is not None
    match kind:
        case "other":
            return _two_things(rng, held_out=is_held_out(a, b))
        case "color":
            return description._replace(a=a._replace(color=_another(COLORS, (a.color, b.color), rng)))
        case "shape" | "two-faced":
            return description._replace(a=a._replace(name=_another(SHAPES, (a.name, b.name), rng)))
        case "object-swap":
            return description._replace(a=a._replace(name=b.name), b=b._replace(name=a.name))
        case "color-swap":
            return description._replace(a=a._replace(color=b.color), b=b._replace(color=a.color))
        case "relation-swap":
            if description.relation == "next" or rng.random() < 0.5:
                return description._replace(relation={"on": "next", "next": "on"}[description.relation])
            return Description(b, a, "on")
        case "floater":
            return description
    raise ValueError(f"no kind of pair is called {kind!r}; there are {', '.join(PAIR_KINDS)}")


def _another(options: tuple[str, ...], taken: tuple[str | None, ...], rng: np.random.Generator) -> str:
    return str(rng.choice([option for option in options if option not in taken]))


def _floater(rng: np.random.Generator) -> Part:
    """A stray blob beside the object, inside the box."""
    half = float(rng.uniform(*FLOATER_HALF))
    angle, height = rng.uniform(0, 2 * np.pi), float(rng.uniform(-0.6, 0.8))
    radius = 0.78
    return Part(
        "sphere", (radius * float(np.cos(angle)), height, radius * float(np.sin(angle))), (half,) * 3, "main"
    )


def pair_accuracy(reward: RewardModel, count: int, seed: int) -> dict[str, float]:
    """Share of `count` pairs of each kind in which the true pictures score higher (mean over views)."""
    shares = {}
    for number, kind in enumerate(PAIR_KINDS):
        rng = np.random.default_rng((seed, number))
        pairs = [draw_preference_pair(kind, rng) for _ in range(count)]
        no_gradient = torch.zeros(count, dtype=torch.bool)
        prompts = [pair.prompt for pair in pairs]
        better, worse = (
            reward.score_batch(torch.stack(images), prompts, no_gradient)[0].mean(1)
            for images in ([pair.better for pair in pairs], [pair.worse for pair in pairs])
        )
        shares[kind] = float((better > worse).float().mean())
    return shares
