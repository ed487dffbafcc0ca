"""The consistency score tells sound objects from faulty ones; the world knows which are which."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from reward_models.consistency import Consistency3D
from reward_models.contracts import PosedViews, ViewsReward
from tests.unit.reward_models.posed_world import (
    Painted,
    auc,
    behind_mist,
    colored_by_view,
    draw_description,
    draw_floater,
    paint,
    show,
    two_faced,
    two_rings,
)
from workers.cameras import Cameras
from workers.embedded.primitives import inside
from workers.embedded.world import PALETTE, Description, Thing, to_unit
from workers.render import render

NUM_OBJECTS = 50
CUBE_ON_CYLINDER = Description(Thing("cube", "red"), Thing("cylinder", "blue"), "on")


def score(views: PosedViews) -> float:
    return float(Consistency3D().score_views(views))


def cube_on_cylinder(azimuth_deg: float = 10.0) -> tuple[PosedViews, Painted, Cameras]:
    cameras = two_rings(azimuth_deg)
    painted = paint(CUBE_ON_CYLINDER, np.random.default_rng(0))
    return show(painted, cameras), painted, cameras


@pytest.mark.slow
def test_sound_objects_score_above_two_faced_floating_misty_and_view_dependent_ones() -> None:
    scores: dict[str, list[float]] = {}
    for number in range(NUM_OBJECTS):
        rng = np.random.default_rng((7, number))
        description, cameras = draw_description(rng), two_rings(rng.uniform(0, 360))
        painted = paint(description, rng)
        sound, (blob, color) = show(painted, cameras), draw_floater(painted, rng)
        for kind, views in {
            "sound": sound,
            "two-faced": two_faced(sound, description, cameras, rng),
            "floater": show(painted.plus(blob, color), cameras),
            "mist": behind_mist(sound, blob, color, cameras),
            "view-dependent color": colored_by_view(sound, rng),
        }.items():
            scores.setdefault(kind, []).append(score(views))
    measured = {kind: auc(scores["sound"], values) for kind, values in scores.items() if kind != "sound"}
    assert min(measured.values()) >= 0.9, measured
    assert np.median(scores["sound"]) > 0.9


class Solid:
    """A real field: the density of an arrangement's parts and their colors."""

    def __init__(self, painted: Painted) -> None:
        self._painted = painted

    def density(self, points: torch.Tensor) -> torch.Tensor:
        return 100.0 * (self._owner(points) >= 0).float()

    def color(self, points: torch.Tensor) -> torch.Tensor:
        palette = torch.tensor([PALETTE[color] for color in self._painted.colors]) / 255
        return palette[self._owner(points).clamp(min=0)]

    def _owner(self, points: torch.Tensor) -> torch.Tensor:
        owner = torch.full((len(points),), -1)
        for index, part in enumerate(self._painted.arrangement.parts):
            owner[torch.from_numpy(inside(part.solid, to_unit(part, points.numpy())))] = index
        return owner


def test_renders_of_a_field_are_scored_like_exact_pictures() -> None:
    _, painted, cameras = cube_on_cylinder()
    blob, color = draw_floater(painted, np.random.default_rng(1))
    grouped = Cameras(cameras.c2w[None], cameras.fov_y_deg[None])

    def rendered(what: Painted) -> float:
        views = render(Solid(what), grouped, 48, 64)
        return score(PosedViews(views.rgb, views.opacity, views.depth, *views.cameras))

    assert rendered(painted) > 0.85
    assert rendered(painted.plus(blob, color)) < 0.6


def test_each_object_is_scored_by_itself() -> None:
    sound, painted, cameras = cube_on_cylinder()
    floating = show(painted.plus(*draw_floater(painted, np.random.default_rng(1))), cameras)
    both = PosedViews(*(torch.cat(pair) for pair in zip(sound, floating, strict=True)))
    reward: ViewsReward = Consistency3D()
    values = reward.score_views(both)
    assert values.shape == (2, 1)
    torch.testing.assert_close(values[:, 0], torch.tensor([score(sound), score(floating)]))


def test_identical_colors_and_exact_depth_score_almost_one_from_wherever_one_looks() -> None:
    for azimuth_deg in (0.0, 10.0, 77.0):
        assert 0.9 < score(cube_on_cylinder(azimuth_deg)[0]) <= 1


def test_given_features_replace_the_colors() -> None:
    sound, _, _ = cube_on_cylinder()
    tinted = colored_by_view(sound, np.random.default_rng(0))
    blind = Consistency3D(features=torch.zeros_like)
    torch.testing.assert_close(blind.score_views(tinted), blind.score_views(sound))
    assert float(blind.score_views(sound)) == pytest.approx(1.0, abs=1e-3)


def test_a_depth_that_is_wrong_in_one_view_is_contradicted() -> None:
    sound, _, _ = cube_on_cylinder()
    nearer = sound.depth.clone()
    nearer[:, 0] *= 0.9
    assert score(sound._replace(depth=nearer)) < 0.7 * score(sound)


def test_nothing_to_see_scores_zero() -> None:
    sound, _, _ = cube_on_cylinder()
    nothing = sound._replace(rgb=0 * sound.rgb, opacity=0 * sound.opacity, depth=0 * sound.depth)
    assert score(nothing) == 0


def test_views_that_cannot_be_compared_are_refused_in_words() -> None:
    sound, _, _ = cube_on_cylinder()
    with pytest.raises(ValueError, match="with 2 others, but got 2 views"):
        score(PosedViews(*(x[:, :2] for x in sound)))
    with pytest.raises(ValueError, match=r"wants depth of shape \(1, 8, 1, 48, 48\) with this rgb, but got"):
        score(sound._replace(depth=sound.depth[..., :10]))
    with pytest.raises(ValueError, match="depth is not: was the scene diverging"):
        score(sound._replace(depth=sound.depth * torch.nan))
    with pytest.raises(ValueError, match="wants rgb from 0 to 1, but got values from 0 to"):
        score(sound._replace(rgb=2 * sound.rgb))
    away = sound._replace(c2w=sound.c2w * torch.tensor([-1.0, 1.0, -1.0, 1.0])[:, None])
    assert 0 <= score(away) <= 1
    looking_past = sound.c2w.clone()
    looking_past[:, :, :3, 3] += 100 * torch.arange(8)[None, :, None]
    with pytest.raises(ValueError, match="of object 0 have no surface in common"):
        score(sound._replace(c2w=looking_past))
