"""The judge believes the truth, and nothing that differs from the words."""

from __future__ import annotations

import numpy as np
import pytest

from workers.embedded.captions import plain_caption
from workers.embedded.judge import Surface, f_score, judge
from workers.embedded.world import (
    EVERYDAY,
    PALETTE,
    SHAPES,
    Description,
    Thing,
    build,
    ground_truth_points,
    part_colors,
)

STACK = Description(Thing("cube", "red"), Thing("cylinder", "blue"), "on")
ROW = Description(Thing("torus", "green"), Thing("cone", "pink"), "next")


def true_surface(description: Description) -> Surface:
    """The world's own surface of a description, with a little roughness."""
    rng = np.random.default_rng(0)
    arrangement = build(description)
    points, owner = ground_truth_points(arrangement, 6000, rng)
    colors = np.array([PALETTE[color] for color in part_colors(description, arrangement)], float)[owner]
    return Surface(points + rng.normal(0, 0.005, points.shape), colors + rng.normal(0, 4, colors.shape))


SINGLES = [Description(Thing(name, "red"), None, "single") for name in SHAPES]
SINGLES += [Description(Thing(name, None), None, "single") for name in EVERYDAY]


@pytest.mark.parametrize("description", [*SINGLES, STACK, ROW], ids=plain_caption)
def test_the_truth_is_right(description: Description) -> None:
    verdict = judge(true_surface(description), description)
    assert verdict.right, verdict.faults


@pytest.mark.parametrize(
    "shown",
    [
        Description(Thing("cube", "blue"), Thing("cylinder", "red"), "on"),
        Description(Thing("cylinder", "red"), Thing("cube", "blue"), "on"),
        Description(Thing("cylinder", "blue"), Thing("cube", "red"), "on"),
        Description(Thing("cube", "red"), Thing("cylinder", "blue"), "next"),
        Description(Thing("cube", "red"), Thing("cone", "blue"), "on"),
        Description(Thing("cube", "red"), Thing("cylinder", "cyan"), "on"),
        Description(Thing("cube", "red"), None, "single"),
    ],
    ids=plain_caption,
)
def test_anything_else_is_not(shown: Description) -> None:
    assert not judge(true_surface(shown), STACK).right


def test_a_floating_stack_is_not_right() -> None:
    surface = true_surface(STACK)
    lifted = surface.points + np.where(surface.colors[:, :1] > 128, [[0, 0.3, 0]], 0)
    assert any("floats" in fault for fault in judge(Surface(lifted, surface.colors), STACK).faults)


def test_f_score_is_one_for_itself_and_zero_far_away() -> None:
    points = np.random.default_rng(0).normal(size=(500, 3))
    assert f_score(points, points) == 1.0
    assert f_score(points, points + 50) == 0.0
