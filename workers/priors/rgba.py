"""Latents that are pictures: premultiplied RGBA in [−1, 1], shared by the embedded and the analytic prior.

rgb' = 2·rgb − a and a' = 2a − 1, with rgb premultiplied by the opacity a. Where a = 0 the color is 0; a color in
[0, 1] becomes rgb'/a in [−1, 1].
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from workers.contracts import Views

__all__ = ["BACKGROUND_RGB", "composite", "encode_rgba", "latents_to_image"]

BACKGROUND_RGB = (0.62, 0.70, 0.78)
"""sRGB behind every picture that a reward or a person sees: a pale blue which is in no object's palette."""


def encode_rgba(views: Views) -> Tensor:
    """Encode renders as latents (G, V, 4, H, W) in [−1, 1]; differentiable to the views."""
    return torch.cat([2 * views.rgb - views.opacity, 2 * views.opacity - 1], -3)


def composite(rgb: Tensor, opacity: Tensor) -> Tensor:
    """Put premultiplied rgb (…, 3, H, W) with opacity (…, 1, H, W) in front of the background: (…, 3, H, W)."""
    background = torch.tensor(BACKGROUND_RGB, dtype=rgb.dtype, device=rgb.device).view(3, 1, 1)
    return rgb + (1 - opacity) * background


def latents_to_image(latents: Tensor) -> Tensor:
    """Decode latents (…, 4, H, W) to pictures (…, 3, H, W) in [0, 1] before the background.

    Differentiable to the latents; what lies outside the range of colors is clamped, without gradient there.
    """
    opacity = ((latents[..., 3:, :, :] + 1) / 2).clamp(0, 1)
    rgb = (latents[..., :3, :, :] + opacity) / 2
    return composite(rgb, opacity).clamp(0, 1)
