from __future__ import annotations

import pytest
import torch

from workers.cameras import CameraRig, VariedRig, camera_rays, orbit_cameras, view_projection


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


def test_a_rig_draws_rings_of_views_more_often_from_where_people_look() -> None:
    rig, generator = CameraRig(), torch.Generator().manual_seed(0)
    heights = []
    for _ in range(800):
        cameras = rig.draw(generator)
        back = cameras.c2w[0, :, :3, 2]
        torch.testing.assert_close(cameras.c2w[0, :, :3, 3].norm(dim=-1), torch.full((4,), 3.6))
        flat = torch.nn.functional.normalize(back[:, [0, 2]], dim=-1)
        assert (flat * flat.roll(1, 0)).sum(-1).abs().max() < 1e-5
        assert back[:, 1].max() - back[:, 1].min() < 1e-6
        heights.append(torch.rad2deg(back[0, 1].asin()).item())
    assert -60 <= min(heights) < -50
    assert 70 < max(heights) <= 80
    moderate = sum(0 <= height <= 35 for height in heights) / len(heights)
    assert moderate == pytest.approx(0.25 + 0.75 * 35 / 140, abs=0.05)


def test_distance_and_field_of_view_may_differ_from_camera_to_camera() -> None:
    distance, fov_y_deg = torch.tensor([1.5, 3.0]), torch.tensor([60.0, 20.0])
    both = orbit_cameras(torch.tensor([10.0, 80.0]), torch.tensor([5.0, 40.0]), distance, fov_y_deg)
    for i, (azimuth, elevation) in enumerate([(10.0, 5.0), (80.0, 40.0)]):
        angles = torch.tensor(azimuth), torch.tensor(elevation)
        alone = orbit_cameras(*angles, distance[i].item(), fov_y_deg[i].item())
        torch.testing.assert_close(both.c2w[i], alone.c2w)
        assert both.fov_y_deg[i] == alone.fov_y_deg


def test_projection_puts_points_of_a_ray_on_its_pixel_with_rows_pointing_down() -> None:
    cameras = orbit_cameras(torch.tensor([30.0]), torch.tensor([20.0]), 3.0, 50.0)
    height, width = 4, 6
    origins, directions = camera_rays(cameras, height, width)
    points = origins + 2.5 * directions
    homogeneous = torch.cat([points, torch.ones(1, height, width, 1)], -1)
    matrix = view_projection(cameras, width / height, near=0.5, far=9.0)
    clip = torch.einsum("vij,vhwj->vhwi", matrix, homogeneous)
    columns = (torch.arange(width) + 0.5) / width * 2 - 1
    rows = (torch.arange(height) + 0.5) / height * 2 - 1
    torch.testing.assert_close(clip[..., 0] / clip[..., 3], columns.expand(1, height, width))
    torch.testing.assert_close(clip[..., 1] / clip[..., 3], rows[:, None].expand(1, height, width))
    ahead = -(directions @ cameras.c2w[0, :3, 2]) * 2.5
    torch.testing.assert_close(clip[..., 3], ahead)


@pytest.mark.parametrize(("ahead", "expected"), [(0.5, -1.0), (9.0, 1.0)])
def test_projection_maps_near_and_far_to_minus_one_and_one(ahead: float, expected: float) -> None:
    cameras = orbit_cameras(torch.tensor(0.0), torch.tensor(0.0), 3.0, 50.0)
    clip = view_projection(cameras, near=0.5, far=9.0) @ torch.tensor([0.0, 0.0, 3.0 - ahead, 1.0])
    assert (clip[2] / clip[3]).item() == pytest.approx(expected, abs=1e-5)


def test_a_varied_rig_draws_the_published_ranges() -> None:
    rig, generator = VariedRig(), torch.Generator().manual_seed(0)
    heights, fields, distances = [], [], []
    for _ in range(400):
        cameras = rig.draw(generator)
        position, fov = cameras.c2w[0, :, :3, 3], cameras.fov_y_deg[0]
        assert fov.max() == fov.min()
        flat = torch.nn.functional.normalize(position[:, [0, 2]], dim=-1)
        assert (flat * flat.roll(1, 0)).sum(-1).abs().max() < 1e-5
        heights.append(torch.rad2deg((position[0, 1] / position[0].norm()).asin()).item())
        fields.append(fov[0].item())
        distances.append((position[0].norm() * torch.tan(torch.deg2rad(fov[0]) / 2)).item())
    assert 0 <= min(heights) < 1
    assert 29 < max(heights) <= 30.001
    assert 15 <= min(fields) < 17
    assert 58 < max(fields) <= 60
    assert 0.799 <= min(distances) < 0.81
    assert 0.99 < max(distances) <= 1.001
    # Half of the draws are uniform in [0°, 30°], half in sin e in [0, 1/3]: above 19.47° come only the former's.
    high = sum(height > 19.48 for height in heights) / len(heights)
    assert high == pytest.approx(0.5 * (30 - 19.47) / 30, abs=0.05)
