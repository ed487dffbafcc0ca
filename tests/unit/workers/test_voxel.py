from __future__ import annotations

import math

import pytest
import torch

from workers.cameras import CameraRig
from workers.contracts import Views
from workers.fields.voxel import VoxelField


def views_with(opacity: float) -> Views:
    cameras = CameraRig().draw(torch.Generator())
    picture = torch.full((1, 4, 1, 2, 2), opacity)
    return Views(picture.expand(1, 4, 3, 2, 2), picture, picture, cameras)


def test_it_starts_with_a_gray_blob() -> None:
    field = VoxelField(9, 9)
    points = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.75, 0.0], [1.0, 0.0, 0.0]])
    raw = torch.tensor([1.0, -3 + 4 * (1 - 0.75 / 0.7), -3 + 4 * (1 - 1 / 0.7)])
    torch.testing.assert_close(field.density(points), 25 * torch.log1p(raw.exp()))
    torch.testing.assert_close(field.color(points), torch.full((3, 3), 0.5))


def test_axes_are_x_last_y_up_z_front() -> None:
    field = VoxelField(5, 5)
    with torch.no_grad():
        field.raw_color[0, 0, 4, 2, 2] = 3.0
        field.raw_color[0, 1, 2, 4, 2] = 3.0
        field.raw_color[0, 2, 2, 2, 4] = 3.0
    one = torch.sigmoid(torch.tensor(3.0))
    color = field.color(torch.tensor([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]))
    torch.testing.assert_close(color, torch.full((3, 3), 0.5) + torch.eye(3) * (one - 0.5))


def test_between_nodes_it_is_trilinear_and_outside_it_is_the_nearest_face() -> None:
    field = VoxelField(5, 5)
    axis = torch.linspace(-1, 1, 5)
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    with torch.no_grad():
        field.raw_density[0, 0] = 1 + 2 * x - 3 * y + 0.5 * z + x * y * z
    points = torch.tensor([[0.3, -0.6, 0.9], [2.0, 0.0, 0.0]])
    raw = torch.tensor([1 + 0.6 + 1.8 + 0.45, 3.0])
    # The product x·y·z is trilinear within the cell only around its corner values: (.3, −.6, .9) lies in
    # [0, .5] × [−1, −.5] × [.5, 1], where trilinear interpolation reproduces it exactly.
    raw[0] += 0.3 * -0.6 * 0.9
    torch.testing.assert_close(field.density(points), 25 * torch.log1p(raw.exp()))


def test_it_is_refined_at_half_of_the_steps_and_looks_the_same() -> None:
    field = VoxelField(11, 21)
    points = torch.rand(200, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
    before = field.density(points)
    assert not field.prepare(49, 100)
    assert field.prepare(50, 100)
    assert field.resolution == 21
    assert field.occupancy.shape == (21, 21, 21)
    seen = before > 0.15
    assert seen.sum() > 100
    torch.testing.assert_close(field.density(points)[seen], before[seen])


def test_preparing_twice_changes_nothing() -> None:
    field = VoxelField(8, 12)
    assert field.prepare(5, 10)
    parameter, occupancy = field.raw_density, field.occupancy.clone()
    assert not field.prepare(5, 10)
    assert field.raw_density is parameter
    assert torch.equal(field.occupancy, occupancy)


def field_with_a_dense_middle() -> VoxelField:
    """Thin fog, and one dense node in the middle."""
    field = VoxelField(9, 9)
    with torch.no_grad():
        field.raw_density.fill_(-6.0)
        field.raw_density[0, 0, 4, 4, 4] = 2.0
    return field


def test_thin_fog_is_cleared_every_twenty_steps_but_for_two_nodes_around_what_is_dense() -> None:
    field = field_with_a_dense_middle()
    field.prepare(19, 1000)
    assert field.occupancy.all()
    field.prepare(20, 1000)
    assert field.occupancy.sum() == 5**3
    points = torch.tensor([[0.0, 0.0, 0.5], [0.0, 0.0, 0.8], [-0.6, 0.5, 0.5], [-0.65, 0.5, 0.5]])
    assert field.occupied(points).tolist() == [True, False, True, False]
    fog = 25 * math.log1p(math.exp(-6.0))
    assert fog < 0.1
    assert field.density(points).tolist() == pytest.approx([fog, 0.0, fog, 0.0])


def test_fog_of_more_than_a_tenth_stays() -> None:
    field = VoxelField(5, 5)
    for density, stays in ((0.101, True), (0.099, False)):
        with torch.no_grad():
            field.raw_density.fill_(math.log(math.expm1(density / 25)))
        field.prepare(0, 10)
        assert field.occupancy.all() == field.occupancy.any() == stays


def test_cleared_space_gets_no_gradient_and_comes_back_when_something_grows_nearby() -> None:
    field = field_with_a_dense_middle()
    field.prepare(20, 1000)
    far, near = torch.tensor([[0.0, 0.0, 0.75]]), torch.tensor([[0.0, 0.0, 0.5]])
    field.density(far).sum().backward()
    assert field.raw_density.grad is not None
    assert field.raw_density.grad.abs().max() == 0
    field.density(near).sum().backward()
    assert field.raw_density.grad[0, 0, 6, 4, 4] > 0
    with torch.no_grad():
        field.raw_density[0, 0, 6, 4, 4] = 0.0
    field.prepare(40, 1000)
    assert field.density(far).item() > 0


def test_regularization_empties_smooths_every_second_step_and_decides_pixels_in_the_second_half() -> None:
    field = VoxelField(3, 3)
    with torch.no_grad():
        field.raw_density.zero_()
        field.raw_density[0, 0, 1, 1, 1] = 9.0
        field.raw_color.zero_()
        field.raw_color[0, 0, 0, 0, 0] = 5.4
    # Along an axis there are 18 differences; the middle makes two of 9, so a mean of 1. Of 54 in color, one of 5.4.
    smooth = 0.03 * 3 * 1.0 + 0.05 * 3 * 0.1
    outer, middle = (25 * math.log1p(math.exp(raw)) for raw in (0.0, 9.0))
    sparse = 0.01 * (26 * outer / (outer + 1) + middle / (middle + 1)) / 27
    for step, expected in [(0, 0.0), (1, smooth), (50, 0.02 * 0.1875), (51, 0.3 * smooth + 0.02 * 0.1875)]:
        assert field.regularization(views_with(0.25), step, 100).item() == pytest.approx(sparse + expected)


def test_the_learning_rate_falls() -> None:
    field = VoxelField(4, 4)
    assert [field.learning_rate(p) for p in (0.0, 0.5, 1.0)] == pytest.approx([0.1, 0.08, 0.06])


def test_a_saved_field_is_loaded_at_its_own_resolution() -> None:
    fine = VoxelField(6, 8)
    fine.prepare(9, 10)
    fresh = VoxelField(6, 8)
    fresh.load_state_dict(fine.state_dict())
    assert fresh.resolution == 8
    for name, tensor in fine.state_dict().items():
        assert torch.equal(tensor, fresh.state_dict()[name])
