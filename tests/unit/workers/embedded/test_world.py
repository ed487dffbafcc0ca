"""The procedural world: its rule of what is held out, its layout, its pictures and its truth."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from workers.cameras import orbit_cameras
from workers.embedded.captions import plain_caption, random_caption, vocabulary
from workers.embedded.dataset import Pictures, render_pictures
from workers.embedded.primitives import SOLIDS, inside, intersect, surface_mesh
from workers.embedded.raycast import NO_PART, raycast
from workers.embedded.world import (
    COLORS,
    EVERYDAY,
    NAMES,
    SHAPES,
    Description,
    Thing,
    build,
    ground_truth_mesh,
    ground_truth_points,
    is_held_out,
    random_description,
)

if TYPE_CHECKING:
    from pathlib import Path

DEMO = Description(Thing("cube", "red"), Thing("cylinder", "blue"), "on")


def test_one_combination_in_five_is_held_out_in_both_orders_and_so_is_the_demo() -> None:
    assert is_held_out(DEMO.a, DEMO.b)
    assert is_held_out(DEMO.b, DEMO.a)
    things = [Thing(shape, color) for shape in SHAPES for color in COLORS]
    held_out = [[is_held_out(a, b) for b in things] for a in things]
    assert np.array_equal(held_out, np.transpose(held_out))
    assert 0.18 < np.mean(held_out) < 0.22


def test_training_never_describes_a_held_out_pair() -> None:
    rng = np.random.default_rng(0)
    for _ in range(500):
        description = random_description(rng)
        assert description.b is None or not is_held_out(description.a, description.b)


@pytest.mark.parametrize("solid", SOLIDS)
def test_rays_meet_a_solid_exactly_where_its_inside_begins(solid: str) -> None:
    rng = np.random.default_rng(0)
    origins = rng.normal(size=(4000, 3)).astype(np.float32)
    origins *= 3 / np.linalg.norm(origins, axis=-1, keepdims=True)
    directions = rng.uniform(-1, 1, (4000, 3)).astype(np.float32) - origins
    t, normal = intersect(solid, origins, directions)
    hit = np.isfinite(t)
    assert hit.mean() > 0.2
    before, after = (origins[hit] + (t[hit] + step)[:, None] * directions[hit] for step in (-2e-3, 2e-3))
    assert not inside(solid, before).any()
    assert inside(solid, after).mean() > 0.99, "grazing rays leave within the step"
    assert ((normal[hit] * directions[hit]).sum(-1) <= 0).mean() > 0.999, "normals face the ray"
    if not hit.all():  # every ray towards a point of the cube meets it
        missed = origins[~hit][:, None] + np.linspace(0, 2, 300)[None, :, None] * directions[~hit][:, None]
        assert inside(solid, missed.reshape(-1, 3)).mean() < 1e-4


@pytest.mark.parametrize("solid", SOLIDS)
def test_surface_mesh_lies_on_the_solid_and_fills_its_box(solid: str) -> None:
    vertices, faces = surface_mesh(solid)
    middles = vertices[faces].mean(1)
    within = (
        np.array([0.98, 0.9, 0.98]) if solid == "torus" else 0.98
    )  # towards the tube's middle, or the center
    assert inside(solid, middles * within).mean() > (0.6 if solid == "torus" else 0.95)
    assert not inside(solid, middles * 1.03).all()
    assert np.allclose(vertices.min(0), -1, atol=0.01)
    assert np.allclose(vertices.max(0), 1, atol=0.01)


@pytest.mark.parametrize("name", NAMES)
def test_every_single_thing_fits_the_space(name: str) -> None:
    for size in ("normal", "small", "large", "tall", "flat"):
        arrangement = build(Description(Thing(name, "red", None, size), None, "single"))
        center, half = arrangement.boxes[0, :3], arrangement.boxes[0, 3:]
        assert np.all(np.abs(center) < 1e-5)
        assert 0.3 < half.max() <= 0.92 + 1e-5


def test_a_stack_touches_and_a_row_stands_apart_on_one_floor() -> None:
    for a in SHAPES:
        for b in SHAPES:
            upper, lower = build(Description(Thing(a, "red"), Thing(b, "blue"), "on")).boxes
            gap = (upper[1] - upper[4]) - (lower[1] + lower[4])
            assert -0.3 < gap <= 1e-5
            left, right = build(Description(Thing(a, "red"), Thing(b, "blue"), "next")).boxes
            assert (right[0] - right[3]) - (left[0] + left[3]) > 0.05
            assert left[1] - left[4] == pytest.approx(right[1] - right[4], abs=1e-4)


def test_a_picture_shows_the_upper_part_above_the_lower_one() -> None:
    cameras = orbit_cameras(torch.tensor([0.0, 90.0]), torch.tensor([10.0, 10.0]), 3.6, 40.0)
    part_ids, shades = raycast(build(DEMO), cameras, 32)
    rows = np.arange(32)[None, :, None] * np.ones((2, 1, 32))
    assert rows[part_ids == 0].mean() < rows[part_ids == 1].mean()
    assert np.all(shades[part_ids == NO_PART] == 0)
    assert np.all(shades[part_ids != NO_PART] > 100)


def test_ground_truth_points_lie_on_the_visible_surface() -> None:
    points, owner = ground_truth_points(build(DEMO), 2000, np.random.default_rng(0))
    assert len(points) > 1500
    assert points[owner == 0][:, 1].min() > points[owner == 1][:, 1].mean()


def test_captions_say_the_thing_and_the_vocabulary_knows_every_word() -> None:
    assert plain_caption(DEMO) == "a red cube on top of a blue cylinder"
    words, rng = set(vocabulary()), np.random.default_rng(0)
    for _ in range(500):
        caption = random_caption(random_description(rng), rng)
        assert {word for word in caption.split() if word.isalnum()} <= words


@pytest.mark.parametrize("alike", [0.0, 1.0])
def test_painted_pictures_are_premultiplied_and_never_held_out(tmp_path: Path, alike: float) -> None:
    render_pictures(tmp_path, 24, seed=1)
    batch = Pictures(tmp_path).sample(400, torch.Generator().manual_seed(0), alike=alike)
    opacity = (batch.latents[:, :, 3:] + 1) / 2
    rgb = (batch.latents[:, :, :3] + opacity) / 2
    assert opacity.min() >= 0
    assert opacity.max() <= 1
    assert (rgb <= opacity + 1e-5).all()
    for names, colors in zip(batch.names.tolist(), batch.colors.tolist(), strict=True):
        if names[1] >= 0:
            a, b = (Thing(NAMES[n], (*COLORS, None)[c]) for n, c in zip(names, colors, strict=True))
            assert not is_held_out(a, b)


def test_every_everyday_object_names_its_colors() -> None:
    for name, thing in EVERYDAY.items():
        assert {part.paint for part in thing.parts} - {"main", "accent"} <= set(COLORS), name
        assert (thing.accent is None) == (thing.accent_noun is None)


@pytest.mark.parametrize("name", NAMES)
def test_the_true_mesh_encloses_its_solids_and_faces_outwards(name: str) -> None:
    color = None if name in EVERYDAY else "red"
    arrangement = build(Description(Thing(name, color), None, "single"))
    vertices, faces, owner = ground_truth_mesh(arrangement)
    for index in range(len(arrangement.parts)):
        a, b, c = vertices[faces[owner == index]].astype(float).transpose(1, 0, 2)
        assert np.einsum("fi,fi->", a, np.cross(b, c)) > 0
