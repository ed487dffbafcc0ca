from __future__ import annotations

import math

import torch
from torch import Tensor

from workers.fields.occupancy import OccupancyGrid

STEP = 2 * math.sqrt(3) / 512


def right_half(density: float) -> object:
    def field(points: Tensor) -> Tensor:
        return density * (points[:, 0] > 0)

    return field


def probed(density: object, steps: list[int]) -> OccupancyGrid:
    grid = OccupancyGrid(4, 1.0)
    for step in steps:
        grid.probe(step, density)  # type: ignore[arg-type]
    return grid


def test_all_is_occupied_before_the_first_probe_and_probes_come_every_16_steps() -> None:
    grid = probed(right_half(50.0), [1, 15])
    assert grid.occupied.all()
    grid = probed(right_half(50.0), [16])
    assert grid.occupied.sum() == 32
    points = torch.tensor([[0.1, -0.9, 0.9], [-0.1, 0.9, 0.9], [7.0, 0.0, 0.0], [-7.0, 0.0, 0.0]])
    assert grid.contains(points).tolist() == [True, False, True, False]


def test_axes_are_x_last_y_up_z_front() -> None:
    grid = probed(lambda points: 90.0 * ((points > torch.tensor([0.5, 0.0, -0.5])).all(-1)), [0])
    points = torch.tensor(
        [[0.75, 0.25, -0.25], [0.25, 0.25, -0.25], [0.75, -0.25, -0.25], [0.75, 0.25, -0.75]]
    )
    assert grid.contains(points).tolist() == [True, False, False, False]


def test_a_cell_adds_its_density_times_the_published_step_and_forgets_slowly() -> None:
    grid = probed(right_half(2.0), [0])
    torch.testing.assert_close(grid.optical[..., 3], torch.full((4, 4), 2 * STEP))
    grid.probe(16, right_half(0.0))  # type: ignore[arg-type]
    torch.testing.assert_close(grid.optical[..., 3], torch.full((4, 4), 0.95 * 2 * STEP))


def test_the_threshold_is_the_mean_and_at_most_a_hundredth() -> None:
    thin, dense = probed(right_half(1.0), [0]), probed(right_half(100.0), [0])
    torch.testing.assert_close(thin.threshold(), torch.tensor(STEP / 2))
    assert dense.threshold().item() == torch.tensor(0.01).item()


def test_probing_twice_for_one_step_changes_nothing_and_a_loaded_grid_goes_on_alike() -> None:
    def waves(points: Tensor) -> Tensor:
        return 9 * (points.sum(-1) * 20).sin().relu()

    grid, again = probed(waves, [0, 16, 32]), probed(waves, [0, 16])
    resumed = OccupancyGrid(4, 1.0)
    resumed.load_state_dict(again.state_dict())
    for step in (16, 32, 32):
        resumed.probe(step, waves)
    for name, tensor in grid.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name])
