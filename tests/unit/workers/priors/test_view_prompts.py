from __future__ import annotations

import torch

from workers.cameras import orbit_cameras
from workers.priors.view_prompts import DIRECTIONS, camera_angles, direction_index, with_direction


def test_borders_belong_to_the_side_and_later_directions_override_earlier_ones() -> None:
    angles = [(0, 0, "front"), (0, 30, "side"), (0, 29.9, "front"), (0, 150, "side"), (0, 151, "back")]
    angles += [
        (0, -151, "back"),
        (0, 330.5, "front"),
        (0, 540, "back"),
        (60, 0, "front"),
        (61, 0, "overhead"),
    ]
    elevation_deg, azimuth_deg = (torch.tensor([row[i] for row in angles], dtype=torch.float) for i in (0, 1))
    index = direction_index(elevation_deg, azimuth_deg)
    assert [DIRECTIONS[i] for i in index] == [row[2] for row in angles]


def test_a_cameras_angles_are_those_it_was_placed_by() -> None:
    azimuth_deg, elevation_deg = torch.tensor([0.0, 90, 179, -120]), torch.tensor([0.0, 15, -30, 80])
    got = camera_angles(orbit_cameras(azimuth_deg, elevation_deg, 2.5, 40.0))
    torch.testing.assert_close(got[0], elevation_deg, atol=1e-3, rtol=0)
    torch.testing.assert_close(got[1], azimuth_deg, atol=1e-3, rtol=0)


def test_the_empty_prompt_is_seen_from_nowhere() -> None:
    assert with_direction("a cat", "back") == "a cat, back view"
    assert with_direction("", "back") == ""
