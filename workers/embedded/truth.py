"""What a described object truly looks like, from any camera: the oracle that evaluations compare with.

Evaluations, tests and the training of rewards look here. Nothing at run time knows the truth.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from workers.embedded.dataset import MAX_PARTS, STORED_PX, compose
from workers.embedded.raycast import NO_PART, raycast
from workers.embedded.world import PALETTE, build, part_colors

if TYPE_CHECKING:
    from workers.cameras import Cameras
    from workers.embedded.everyday import Part
    from workers.embedded.world import Description

__all__ = ["Truth"]


class Truth:
    """The exact pictures of one description, as the prior's RGBA latents."""

    def __init__(self, description: Description, rng: np.random.Generator | None = None) -> None:
        """Build the description's solids; with `rng` their dimensions are jittered as in training."""
        self.arrangement = build(description, rng)
        self.colors = part_colors(description, self.arrangement)

    def with_part(self, part: Part, color: str) -> Truth:
        """Add a solid that no word speaks of."""
        self.arrangement = self.arrangement._replace(
            parts=(*self.arrangement.parts, part), slots=(*self.arrangement.slots, 0)
        )
        self.colors.append(color)
        return self

    def latents(self, cameras: Cameras) -> Tensor:
        """Ray-cast for cameras (V,): (V, 4, 32, 32) premultiplied RGBA in [−1, 1]."""
        rgb = torch.zeros(1, MAX_PARTS, 3)
        palette = np.array([PALETTE[color] for color in self.colors], np.float32) / 255
        rgb[0, : len(palette)] = torch.from_numpy(palette)
        part_ids, shades = raycast(self.arrangement, cameras, STORED_PX)
        return compose(torch.from_numpy(part_ids)[None].long(), torch.from_numpy(shades)[None], rgb)[0]

    def mask(self, cameras: Cameras, image_px: int) -> Tensor:
        """Ray-cast the silhouette for cameras (V,): (V, image_px, image_px) bool."""
        part_ids, _ = raycast(self.arrangement, cameras, image_px)
        return torch.from_numpy(part_ids != NO_PART)
