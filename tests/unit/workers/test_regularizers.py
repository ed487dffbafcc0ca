from __future__ import annotations

import math

import pytest
import torch

from workers.contracts import Surface
from workers.regularizers import (
    Penalties,
    backfacing,
    depth_spread,
    filled_share,
    opacity_ambiguity,
    opaqueness,
    orientation,
    sparsity,
    surface_penalty,
    total_variation,
)


def test_total_variation_adds_the_mean_steps_along_each_axis() -> None:
    grid = torch.zeros(1, 1, 2, 2, 2)
    grid[0, 0, :, :, 1] = 3.0
    grid[0, 0, 1, :, :] -= 1.0
    assert total_variation(grid).item() == 3.0 + 1.0


def test_a_constant_grid_does_not_vary() -> None:
    assert total_variation(torch.full((1, 3, 4, 5, 6), 2.0)).item() == 0


def test_ambiguity_is_greatest_for_half_covered_pixels() -> None:
    assert opacity_ambiguity(torch.tensor([0.0, 1.0])).item() == 0
    assert opacity_ambiguity(torch.tensor([0.5, 0.5])).item() == 0.25
    assert opacity_ambiguity(torch.tensor([0.1, 1.0])).item() == pytest.approx(0.045)


def test_the_filled_share_counts_what_is_dense_and_pulls_at_haze() -> None:
    density = torch.tensor([0.0, 1.0, 1e6], requires_grad=True)
    share = filled_share(density)
    assert share.item() == pytest.approx((0 + 0.5 + 1) / 3)
    share.backward()
    assert density.grad is not None
    assert density.grad.tolist() == pytest.approx([1 / 3, 1 / 12, 0.0])


def test_what_is_seen_from_behind_is_punished_by_the_square_of_its_slant() -> None:
    normals = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, -1.0], [0.0, 0.6, 0.8]], requires_grad=True)
    directions, weights = torch.tensor([[0.0, 0.0, 1.0]]).expand(3, 3), torch.tensor([0.5, 0.5, 0.25])
    weights.requires_grad_()
    away = backfacing(weights, normals, directions)
    assert away.tolist() == pytest.approx([0.5, 0.0, 0.25 * 0.64])
    loss = orientation(away, torch.tensor([0.0, 0.3, 1.0]))
    assert loss.item() == pytest.approx((0.5 + 0.16) / 2)
    loss.backward()
    assert normals.grad is not None
    assert weights.grad is None


def test_sparsity_and_opaqueness_by_hand() -> None:
    assert sparsity(torch.tensor([0.0, 1.0])).item() == pytest.approx((0.1 + math.sqrt(1.01)) / 2)
    assert opaqueness(torch.tensor([0.5, 0.5])).item() == pytest.approx(math.log(2))
    decided = -(0.001 * math.log(0.001) + 0.999 * math.log(0.999))
    assert opaqueness(torch.tensor([0.0, 1.0])).item() == pytest.approx(decided, rel=1e-4)


def test_depth_spreads_where_something_is_seen_only() -> None:
    variance, opacity = torch.tensor([3.0, 1.0, 2.0]), torch.tensor([0.5, 0.6, 1.0])
    assert depth_spread(variance, opacity).item() == 1.5
    assert depth_spread(variance, torch.zeros(3)).item() == 0


def test_penalties_are_weighed_and_orientation_is_ramped() -> None:
    weights = Penalties(orient=(10, 1000, 0.5), sparsity=2.0, opaque=3.0, depth_variance=4.0, unit=0.1)
    assert [weights.orient_at(p) for p in (0, 0.25, 0.5, 1)] == [10, 505, 1000, 1000]
    opacity, variance, away = torch.tensor([0.2, 0.9]), torch.tensor([7.0, 0.5]), torch.tensor([0.1])
    expected = 505 * 0.05 + 2 * sparsity(opacity).item() + 3 * opaqueness(opacity).item() + 4 * 0.5
    total = surface_penalty(Surface(opacity, variance, away), weights, 0.25)
    assert total.item() == pytest.approx(0.1 * expected)
    assert Penalties().none
    assert not weights.none
    assert surface_penalty(Surface(opacity, variance, away), Penalties(), 0.25).item() == 0
