"""Damage hurts nearly every object, tells which views it hurt, and touches nothing else."""

from __future__ import annotations

import pytest
import torch

from workers.embedded.damage import VISIBLE, damaged, weathered


def balls(count: int, views: int) -> torch.Tensor:
    """Differently colored disks in the middle of every view: (N, V, 4, 32, 32)."""
    axis = torch.arange(32) - 15.5
    inside = (axis[:, None] ** 2 + axis**2 < 144).float()
    colors = torch.rand(count, 1, 3, 1, 1, generator=torch.Generator().manual_seed(1))
    rgba = torch.cat([2 * colors * inside - inside, (2 * inside - 1).expand(count, 1, 1, 32, 32)], 2)
    return rgba.expand(count, views, 4, 32, 32).clone()


@pytest.mark.parametrize("views", [1, 4])
def test_objects_are_hurt_where_it_says_and_the_originals_are_left_alone(views: int) -> None:
    latents = balls(64, views)
    latents[:, :, :, :10] *= 0.5  # up and down differ
    before = latents.clone()
    worse, hurt = damaged(latents, torch.Generator().manual_seed(0))
    assert torch.equal(latents, before)
    change = (worse - latents).abs().amax((2, 3, 4))
    assert (change[~hurt] <= VISIBLE).all(), "what is called sound looks as it did"
    assert hurt.any(1).float().mean() > 0.9, "few patches miss the object"
    assert worse.abs().max() <= 1


def test_weathered_pictures_stay_pictures() -> None:
    latents = balls(32, 4)
    worn = weathered(latents, torch.Generator().manual_seed(0))
    same = (worn == latents).flatten(1).all(1)
    assert 0.2 < same.float().mean() < 0.8
    assert worn.abs().max() <= 1
