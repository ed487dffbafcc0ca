"""Damaged and blurred views: what the embedded rewards learn to tell from sound ones, and to see through."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["VISIBLE", "damaged", "weathered"]

FOREIGN = 4
"""The kind of damage in which some views show another object."""
VISIBLE = 0.3
"""A view is hurt where a channel, in [−1, 1], changes by more."""


def weathered(latents: Tensor, generator: torch.Generator) -> Tensor:
    """Make RGBA pictures (N, V, 4, H, W) look like unfinished fields: haze, blur and noise, for half of them."""
    count = len(latents)

    def draw(low: float, high: float) -> Tensor:
        return (low + (high - low) * torch.rand(count, generator=generator))[:, None, None, None, None]

    some = torch.rand(count, generator=generator) < 0.5
    opacity = (latents[:, :, 3:] + 1) / 2
    kept = draw(0.3, 1.0)
    thinner = torch.cat([latents[:, :, :3] * kept, 2 * opacity * kept - 1], 2)
    small = F.avg_pool2d(thinner.flatten(0, 1), 3, 1, 1, count_include_pad=False).view_as(latents)
    blurred = torch.lerp(thinner, small, draw(0.0, 1.0))
    noisy = blurred + draw(0.0, 0.15) * torch.randn(latents.shape, generator=generator)
    return torch.where(some[:, None, None, None, None], noisy.clamp(-1, 1), latents)


def damaged(latents: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Damage every object (N, V, 4, 32, 32) in one way: cut-out, floater, blotch, flipped views, foreign views.

    Answers the pictures and which views are visibly hurt, (N, V) bool. Where some views are of another object, all
    are: none of them is right among the others. A single view (V = 1) knows no foreign one.
    """
    count, views = latents.shape[:2]
    kinds = torch.randint(5 if views > 1 else 4, (count,), generator=generator)
    worse = torch.stack(
        [_damage(latents, index, kind, generator) for index, kind in enumerate(kinds.tolist())]
    )
    hurt = (worse - latents).abs().amax((2, 3, 4)) > VISIBLE
    return worse, torch.where((kinds == FOREIGN)[:, None], hurt.any(1, keepdim=True), hurt)


def _damage(latents: Tensor, index: int, kind: int, generator: torch.Generator) -> Tensor:
    views = latents[index].clone()
    if kind == 1:
        return _with_blob(views, generator)
    hurt = torch.rand(len(views), generator=generator) < 0.7
    hurt[int(torch.randint(len(views), (1,), generator=generator))] = True
    size = int(torch.randint(6, 13, (1,), generator=generator))
    y, x = (int(v) for v in torch.randint(2, 30 - size, (2,), generator=generator))
    patch = views[hurt, :, y : y + size, x : x + size]
    match kind:
        case 0:
            patch = torch.cat([torch.zeros_like(patch[:, :3]), -torch.ones_like(patch[:, 3:])], 1)
        case 2:
            color = torch.rand(3, 1, 1, generator=generator) * 2 - 1
            patch = torch.cat([color * (patch[:, 3:] + 1) / 2, patch[:, 3:]], 1)
        case 3:
            views[hurt] = views[hurt].flip(-2)
            return views
        case _:
            other = int(torch.randint(len(latents), (1,), generator=generator))
            foreign = torch.arange(len(views)) >= int(torch.randint(1, len(views), (1,), generator=generator))
            views[foreign] = latents[other][foreign]
            return views
    views[hurt, :, y : y + size, x : x + size] = patch
    return views


def _with_blob(views: Tensor, generator: torch.Generator) -> Tensor:
    """Paint a stray ball over RGBA views (V, 4, 32, 32), where cameras 90° apart would see it."""
    azimuth, elevation, distance, height, size = torch.rand(5, generator=generator).tolist()
    radius_px = 1.0 + 1.8 * size
    turn = 2 * torch.pi * (azimuth + torch.arange(len(views)) / 4)
    tilt = -0.6 + 1.6 * elevation
    sideways_px, away_px = (11.5 * (0.6 + 0.4 * distance) * f(turn) for f in (torch.sin, torch.cos))
    x_px = 15.5 + sideways_px
    y_px = 15.5 + away_px * math.sin(tilt) - 11 * (2 * height - 1) * math.cos(tilt)
    axis = torch.arange(32.0)
    from_center = torch.hypot(
        axis[None, :, None] - y_px[:, None, None], axis[None, None, :] - x_px[:, None, None]
    )
    cover = (radius_px + 0.5 - from_center).clamp(0, 1)[:, None]
    color = torch.rand(3, 1, 1, generator=generator) * 2 - 1
    blob = torch.cat([color.expand(3, 32, 32), torch.ones(1, 32, 32)])
    return torch.lerp(views, blob.expand_as(views), cover)
