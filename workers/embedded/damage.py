"""Damaged and blurred views: what the embedded rewards learn to tell from sound ones, and to see through."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["damaged", "weathered"]


def weathered(latents: Tensor, generator: torch.Generator) -> Tensor:
    """Make RGBA pictures (N, V, 4, H, W) look like unfinished fields: haze, blur and noise, for half of them."""
    count = len(latents)

    def draw(low: float, high: float) -> Tensor:
        return (low + (high - low) * torch.rand(count, generator=generator))[:, None, None, None, None]

    some = torch.rand(count, generator=generator) < 0.5
    opacity = (latents[:, :, 3:] + 1) / 2
    kept = draw(0.3, 1.0)
    thinner = torch.cat([(latents[:, :, :3] + opacity) * kept - opacity * kept, 2 * opacity * kept - 1], 2)
    small = F.avg_pool2d(thinner.flatten(0, 1), 3, 1, 1, count_include_pad=False).view_as(latents)
    blurred = torch.lerp(thinner, small, draw(0.0, 1.0))
    noisy = blurred + draw(0.0, 0.15) * torch.randn(latents.shape, generator=generator)
    return torch.where(some[:, None, None, None, None], noisy.clamp(-1, 1), latents)


def damaged(latents: Tensor, generator: torch.Generator) -> Tensor:
    """Damage every object in one of five ways: cut-out, floater, blotch, foreign view, swapped view halves."""
    result = latents.clone()
    kinds = torch.randint(5, (len(latents),), generator=generator)
    for index, kind in enumerate(kinds.tolist()):
        views = result[index]
        size = int(torch.randint(6, 13, (1,), generator=generator))
        y, x = (int(v) for v in torch.randint(4, 28 - size, (2,), generator=generator))
        some_views = torch.rand(4, generator=generator) < 0.7
        color = torch.rand(3, 1, 1, generator=generator) * 2 - 1
        patch = views[some_views, :, y : y + size, x : x + size]
        match kind:
            case 0:
                patch = torch.full_like(patch, -1.0)
                patch[:, :3] = 0
            case 1:
                patch = torch.cat([color.expand_as(patch[:, :3]), torch.ones_like(patch[:, 3:])], 1)[
                    :, :, :5, :5
                ]
                views[some_views, :, y : y + 5, x : x + 5] = patch
                continue
            case 2:
                opacity = (patch[:, 3:] + 1) / 2
                patch = torch.cat([color * opacity, patch[:, 3:]], 1)
            case 3:
                other = int(torch.randint(len(latents), (1,), generator=generator))
                views[int(torch.randint(4, (1,), generator=generator))] = latents[other, 0]
                continue
            case _:
                views[some_views] = views[some_views].flip(-2)
                continue
        views[some_views, :, y : y + size, x : x + size] = patch
    return result
