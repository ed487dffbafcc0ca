from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from workers.cameras import VariedRig
from workers.shading import PointLight, ShadingMode, draw_light, shade

ALBEDO = torch.tensor([[0.2, 0.5, 1.0]])
NORMAL = torch.tensor([[0.0, 0.0, 1.0]])


def shaded(mode: ShadingMode, light: tuple[float, float, float]) -> list[float]:
    where = torch.tensor([light])
    return shade(ALBEDO, torch.zeros(1, 3), NORMAL, PointLight(where, 0.3, 0.7, mode)).flatten().tolist()


def test_light_falls_off_with_the_angle_and_not_with_the_distance() -> None:
    for distance in (1.0, 3.0):
        slanted = (math.sqrt(3) * distance, 0.0, distance)  # 60° off the normal
        assert shaded("textureless", slanted) == pytest.approx([0.3 + 0.7 * 0.5] * 3)
        assert shaded("diffuse", slanted) == pytest.approx([0.65 * 0.2, 0.65 * 0.5, 0.65])


def test_what_faces_away_has_the_ambient_light_only() -> None:
    assert shaded("textureless", (0.0, 0.0, -2.0)) == pytest.approx([0.3] * 3)


def test_albedo_is_no_light_at_all() -> None:
    assert shaded("albedo", (0.0, 0.0, -2.0)) == ALBEDO.flatten().tolist()


def test_drawn_lights_are_near_the_camera_and_their_shares_sum_to_one() -> None:
    generator, rig = torch.Generator().manual_seed(0), VariedRig()
    toward = []
    for _ in range(300):
        cameras = rig.draw(generator)
        light = draw_light(cameras, 0.7, generator)
        assert light.positions.shape == (1, 4, 3)
        distance = light.positions.norm(dim=-1)
        torch.testing.assert_close(distance, distance[:, :1].expand(1, 4))
        assert 0.8 <= distance[0, 0] <= 1.5
        assert light.ambient + light.diffuse == pytest.approx(1)
        toward.append(
            (F.normalize(light.positions, dim=-1) * F.normalize(cameras.c2w[..., :3, 3], dim=-1)).sum(-1)
        )
    assert torch.cat(toward).mean() > 0.7


def test_the_same_generator_draws_the_same_light() -> None:
    cameras = VariedRig().draw(torch.Generator().manual_seed(0))
    one, same = (draw_light(cameras, 0.9, torch.Generator().manual_seed(4)) for _ in range(2))
    assert torch.equal(one.positions, same.positions)
    assert one[1:] == same[1:]
