"""From which side a camera looks at the object, in words: what a prior without camera input is told.

DreamFusion, arXiv 2209.14988, §3.2; thresholds, order and wording as in threestudio's prompt processor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from workers.cameras import Cameras

__all__ = ["DIRECTIONS", "SeenPrompt", "camera_angles", "direction_index", "seen_prompts", "with_direction"]

DIRECTIONS = ("side", "front", "back", "overhead")
"""In the order of their indices; a later one overrides an earlier one."""


def direction_index(
    elevation_deg: Tensor,
    azimuth_deg: Tensor,
    front_deg: float = 30.0,
    back_deg: float = 30.0,
    overhead_deg: float = 60.0,
) -> Tensor:
    """Index into `DIRECTIONS` for angles of one shape, int64.

    Front within `front_deg` of azimuth 0°, back within `back_deg` of 180°, overhead above `overhead_deg` of
    elevation, side otherwise; the borders themselves belong to the side.
    """
    azimuth = (azimuth_deg + 180) % 360 - 180
    index = torch.zeros_like(azimuth, dtype=torch.int64)
    index[azimuth.abs() < front_deg] = DIRECTIONS.index("front")
    index[azimuth.abs() > 180 - back_deg] = DIRECTIONS.index("back")
    index[elevation_deg > overhead_deg] = DIRECTIONS.index("overhead")
    return index


def camera_angles(cameras: Cameras) -> tuple[Tensor, Tensor]:
    """Elevation and azimuth, degrees, of cameras (...) that look at the origin."""
    x, y, z = cameras.c2w[..., :3, 3].unbind(-1)
    return torch.rad2deg(torch.atan2(y, torch.hypot(x, z))), torch.rad2deg(torch.atan2(x, z))


def with_direction(prompt: str, direction: str) -> str:
    """Say in the prompt from where the object is seen; the empty prompt stays empty."""
    return f"{prompt}, {direction} view" if prompt else prompt


class SeenPrompt(str):
    """A prompt that also knows from which of `DIRECTIONS` each view of its row looks.

    It is a plain prompt to whoever reads one text for all views.
    """

    directions: tuple[str, ...]

    def __new__(cls, prompt: str, directions: Sequence[str]) -> SeenPrompt:
        self = super().__new__(cls, prompt)
        self.directions = tuple(directions)
        return self


def seen_prompts(prompt: str, cameras: Cameras) -> list[str]:
    """Say for each group of cameras (G, V) from where its views look: G prompts."""
    index_GV = direction_index(*camera_angles(cameras)).tolist()
    return [SeenPrompt(prompt, [DIRECTIONS[index] for index in row]) for row in index_GV]
