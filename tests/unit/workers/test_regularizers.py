from __future__ import annotations

import pytest
import torch

from workers.regularizers import opacity_ambiguity, total_variation


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
