from __future__ import annotations

import pytest
import torch

from workers.cameras import CameraRig, camera_rays, orbit_cameras


def test_azimuth_zero_looks_at_the_front_and_ninety_stands_on_x() -> None:
    cameras = orbit_cameras(torch.tensor([0.0, 90.0]), torch.tensor(0.0), 3.6, 40.0)
    torch.testing.assert_close(cameras.c2w[:, :3, 3], torch.tensor([[0, 0, 3.6], [3.6, 0, 0]]))
    above = orbit_cameras(torch.tensor(0.0), torch.tensor(30.0), 2.0, 40.0)
    torch.testing.assert_close(above.c2w[:3, 3], torch.tensor([0.0, 1.0, 3**0.5]))


def test_cameras_are_rotations_that_look_at_the_center() -> None:
    cameras = orbit_cameras(torch.tensor([[10.0, 200.0]]), torch.tensor([[-20.0], [60.0]]), 3.6, 40.0)
    rotation = cameras.c2w[..., :3, :3]
    torch.testing.assert_close(rotation @ rotation.mT, torch.eye(3).expand(2, 2, 3, 3))
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(2, 2))
    torch.testing.assert_close(rotation[..., 2] * 3.6, cameras.c2w[..., :3, 3])


def test_rays_span_the_field_of_view_with_row_zero_on_top() -> None:
    cameras = orbit_cameras(torch.tensor(0.0), torch.tensor(0.0), 3.6, 90.0)
    origins, directions = camera_rays(cameras, 2, 2)
    torch.testing.assert_close(origins, torch.tensor([0, 0, 3.6]).expand(2, 2, 3))
    expected = torch.tensor([-0.5, 0.5, -1.0]) / 1.5**0.5
    torch.testing.assert_close(directions[0, 0], expected)
    torch.testing.assert_close(directions[1, 1], expected * torch.tensor([-1, -1, 1]))


def test_a_rig_draws_rings_of_views_mostly_from_where_people_look() -> None:
    rig, generator = CameraRig(), torch.Generator().manual_seed(0)
    heights = []
    for _ in range(400):
        cameras = rig.draw(generator)
        back = cameras.c2w[0, :, :3, 2]
        torch.testing.assert_close(cameras.c2w[0, :, :3, 3].norm(dim=-1), torch.full((4,), 3.6))
        flat = torch.nn.functional.normalize(back[:, [0, 2]], dim=-1)
        assert (flat * flat.roll(1, 0)).sum(-1).abs().max() < 1e-5
        assert back[:, 1].max() - back[:, 1].min() < 1e-6
        heights.append(torch.rad2deg(back[0, 1].asin()).item())
    assert -30 <= min(heights) < -20
    assert 65 < max(heights) <= 75
    moderate = sum(0 <= height <= 35 for height in heights) / len(heights)
    assert moderate == pytest.approx(0.5 + 0.5 * 35 / 105, abs=0.08)
