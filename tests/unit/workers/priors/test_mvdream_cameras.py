from __future__ import annotations

import torch

from workers.cameras import orbit_cameras
from workers.priors.mvdream_cameras import camera_condition, normalized, to_mvdream_world


def test_a_camera_before_the_front_stands_on_mvdreams_plus_x_and_azimuth_goes_to_plus_y() -> None:
    azimuths = torch.tensor([0.0, 90.0, 180.0, 270.0])
    cameras = to_mvdream_world(orbit_cameras(azimuths, torch.tensor(0.0), 2.0, 40.0))
    expected = torch.tensor([[2.0, 0, 0], [0, 2, 0], [-2, 0, 0], [0, -2, 0]])
    torch.testing.assert_close(cameras.c2w[:, :3, 3], expected, atol=1e-6, rtol=0)
    up = torch.tensor([0.0, 0, 1]).expand(4, 3)
    torch.testing.assert_close(cameras.c2w[:, :3, 1], up, atol=1e-6, rtol=0)


def test_the_change_of_world_is_a_rotation() -> None:
    ours = orbit_cameras(torch.tensor([33.0]), torch.tensor(20.0), 2.0, 40.0)
    theirs = to_mvdream_world(ours)
    torch.testing.assert_close(torch.linalg.det(theirs.c2w[:, :3, :3]), torch.ones(1))
    assert torch.equal(theirs.fov_y_deg, ours.fov_y_deg)


def test_the_network_reads_the_pose_row_by_row_with_the_position_on_the_unit_sphere() -> None:
    front = orbit_cameras(torch.tensor([0.0]), torch.tensor(0.0), 3.6, 40.0)
    # right is +Y, up +Z, back +X, position +X
    expected = torch.tensor([[0.0, 0, 1, 1, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1]])
    torch.testing.assert_close(camera_condition(front), expected, atol=1e-6, rtol=0)


def test_normalizing_leaves_its_input_alone_and_bears_a_camera_at_the_origin() -> None:
    c2w = torch.eye(4)[None].clone()
    before = c2w.clone()
    assert torch.equal(normalized(c2w), before)
    assert torch.equal(c2w, before)
