from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor

from workers.cameras import Cameras, camera_rays, orbit_cameras
from workers.fields.voxel import VoxelField
from workers.render import (
    depth_variance,
    opacity_and_depth,
    render,
    sample_alphas,
    sample_transmittance,
    sample_weights,
    shrink,
)
from workers.shading import Look, PointLight

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass
class Fog:
    """The same density and color everywhere."""

    sigma: float

    def density(self, points: Tensor) -> Tensor:
        return torch.full((len(points),), self.sigma)

    def color(self, points: Tensor) -> Tensor:
        return torch.tensor([0.2, 0.4, 0.8]).expand(len(points), 3)


@dataclass
class Ball:
    """A soft ball off the center, colored by position; differentiable to `where` and `radius`."""

    where: Tensor
    radius: Tensor

    def density(self, points: Tensor) -> Tensor:
        return 8 * torch.sigmoid((self.radius - (points - self.where).norm(dim=-1)) * 12)

    def color(self, points: Tensor) -> Tensor:
        return torch.sigmoid(3 * (points - self.where))


def front(distance: float = 3.6, azimuth_deg: float = 0.0, elevation_deg: float = 0.0) -> Cameras:
    return orbit_cameras(torch.tensor([[azimuth_deg]]), torch.tensor([[elevation_deg]]), distance, 40.0)


def test_fog_darkens_by_the_length_of_the_ray_in_the_box() -> None:
    views = render(Fog(0.5), front(), image_px=1, num_samples=8)
    covered = 1 - math.exp(-0.5 * 2)
    assert views.opacity.item() == pytest.approx(covered)
    torch.testing.assert_close(views.rgb.flatten(), covered * torch.tensor([0.2, 0.4, 0.8]))


def test_depth_is_the_weighted_distance_of_the_samples() -> None:
    views = render(Fog(0.5), front(), image_px=1, num_samples=2)
    # Two intervals of length 1 with their middles at 3.1 and 4.1: α = 1 − e^−½, weights α and (1 − α) α.
    alpha = 1 - math.exp(-0.5)
    assert views.depth.item() == pytest.approx(alpha * 3.1 + (1 - alpha) * alpha * 4.1)


def test_rays_that_miss_the_box_see_nothing() -> None:
    views = render(Fog(0.5), front(distance=8.0), image_px=8, num_samples=4)
    assert views.opacity[0, 0, 0, 0, 0] == 0
    assert views.depth[0, 0, 0, 0, 0] == 0
    assert views.opacity[0, 0, 0, 4, 4] > 0.5


def test_shapes_have_groups_and_views() -> None:
    cameras = orbit_cameras(torch.arange(6.0).view(2, 3) * 60, torch.tensor(10.0), 3.6, 40.0)
    views = render(Fog(0.5), cameras, image_px=5, num_samples=3)
    assert views.rgb.shape == (2, 3, 3, 5, 5)
    assert views.opacity.shape == views.depth.shape == (2, 3, 1, 5, 5)


def center_of(views_channel: Tensor) -> tuple[float, float]:
    """Center of mass of a picture (H, W): (row, column) from −1 to 1."""
    axis = torch.linspace(-1, 1, len(views_channel))
    weight = views_channel / views_channel.sum()
    return (weight.sum(1) @ axis).item(), (weight.sum(0) @ axis).item()


@pytest.mark.parametrize(
    ("where", "azimuth_deg", "row_sign", "column_sign"),
    [
        ((0.0, 0.5, 0.0), 0.0, -1, 0),
        ((0.5, 0.0, 0.0), 0.0, 0, 1),
        ((0.0, 0.0, 0.5), 90.0, 0, -1),
        ((0.0, 0.0, 0.5), 270.0, 0, 1),
    ],
    ids=["+Y is up", "+X is right of the front", "front is left from +X", "front is right from −X"],
)
def test_pictures_are_oriented_as_in_gltf(
    where: tuple[float, float, float], azimuth_deg: float, row_sign: int, column_sign: int
) -> None:
    ball = Ball(torch.tensor(where), torch.tensor(0.2))
    views = render(ball, front(azimuth_deg=azimuth_deg), image_px=24, num_samples=48)
    row, column = center_of(views.opacity[0, 0, 0])
    assert row == pytest.approx(0.4 * row_sign, abs=0.1)
    assert column == pytest.approx(0.4 * column_sign, abs=0.1)


def slow_render(field: Ball, cameras: Cameras, image_px: int, num_samples: int) -> Tensor:
    """The readable twin: ray by ray, sample by sample, premultiplied RGB (H, W, 3)."""
    origins, directions = camera_rays(cameras, image_px, image_px)
    picture = torch.zeros(image_px, image_px, 3)
    for row in range(image_px):
        for column in range(image_px):
            origin, direction = origins[0, 0, row, column], directions[0, 0, row, column]
            hits = sorted([((-1 - origin) / direction).tolist(), ((1 - origin) / direction).tolist()])
            entry = max(min(a, b) for a, b in zip(*hits, strict=True))
            leave = min(max(a, b) for a, b in zip(*hits, strict=True))
            through = 1.0
            for i in range(num_samples if leave > entry else 0):
                length = (leave - entry) / num_samples
                point = (origin + (entry + (i + 0.5) * length) * direction)[None]
                alpha = 1 - math.exp(-field.density(point).item() * length)
                picture[row, column] += through * alpha * field.color(point)[0]
                through *= 1 - alpha
    return picture


def test_the_render_equals_its_slow_readable_twin() -> None:
    ball = Ball(torch.tensor([0.2, -0.1, 0.3]), torch.tensor(0.5))
    cameras = front(azimuth_deg=33.0, elevation_deg=20.0)
    views = render(ball, cameras, image_px=8, num_samples=16)
    twin = slow_render(ball, cameras, 8, 16)
    torch.testing.assert_close(views.rgb[0, 0].movedim(0, -1), twin, atol=2e-4, rtol=0)


def test_gradients_agree_with_finite_differences() -> None:
    cameras = Cameras(*(x.double() for x in front(azimuth_deg=33.0, elevation_deg=20.0)))
    where = torch.tensor([0.2, -0.1, 0.3], dtype=torch.float64, requires_grad=True)
    radius = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)

    def pictures(where: Tensor, radius: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        views = render(Ball(where, radius), cameras, image_px=3, num_samples=12)
        return views.rgb, views.opacity, views.depth

    # The color of samples too faint to be seen is left out: up to 1e-5 a sample.
    assert torch.autograd.gradcheck(pictures, (where, radius), atol=2e-3)


def test_shifted_samples_estimate_the_density_along_a_ray_without_bias() -> None:
    ball = Ball(torch.zeros(3), torch.tensor(0.5))
    generator = torch.Generator().manual_seed(0)

    def optical_depth(num_samples: int, generator: torch.Generator | None) -> Tensor:
        return -torch.log1p(-render(ball, front(), 4, num_samples, generator).opacity)

    few = torch.stack([optical_depth(3, generator) for _ in range(800)])
    exact = optical_depth(400, None)
    standard_error = few.std(0) / 800**0.5
    assert (few.std(0) > 0.02 * exact).any()
    assert ((few.mean(0) - exact).abs() < 4 * standard_error + 1e-4).all()


def test_the_generator_decides_the_picture() -> None:
    ball = Ball(torch.zeros(3), torch.tensor(0.5))
    one, same, other = (
        render(ball, front(), 6, 6, torch.Generator().manual_seed(seed)).rgb for seed in (1, 1, 2)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def carved_field(resolution: int = 24) -> VoxelField:
    """A hard ball in thin air, off the center."""
    field = VoxelField(resolution, resolution)
    axis = torch.linspace(-1, 1, resolution)
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    distance = torch.stack([x - 0.2, y + 0.1, z]).norm(dim=0)
    with torch.no_grad():
        field.raw_density[0, 0] = ((0.45 - distance) * 40).clamp(-14, 6)
        field.raw_color.copy_(torch.randn(field.raw_color.shape, generator=torch.Generator().manual_seed(0)))
    field.prepare(0, 10)
    return field


def test_skipping_empty_space_changes_neither_picture_nor_gradient() -> None:
    field = carved_field()
    cameras = orbit_cameras(torch.arange(4.0)[None] * 90 + 20, torch.tensor(15.0), 3.6, 40.0)
    assert field.occupancy.float().mean() < 0.4
    pictures, gradients = [], []
    for occupied in (None, field.occupied):
        field.zero_grad()
        views = render(field, cameras, 24, 48, occupied=occupied)
        (views.rgb.sum() + views.opacity.square().sum()).backward()
        pictures.append(torch.cat([views.rgb, views.opacity], 2).detach())
        assert field.raw_density.grad is not None
        gradients.append(field.raw_density.grad.clone())
    torch.testing.assert_close(pictures[0], pictures[1], atol=1 / 255 / 4, rtol=0)
    torch.testing.assert_close(
        gradients[0], gradients[1], atol=2e-3 * gradients[0].abs().max().item(), rtol=0
    )


def test_shrinking_averages_pixels_and_keeps_colors_premultiplied() -> None:
    cameras = orbit_cameras(torch.zeros(1, 1), torch.tensor(15.0), 3.6, 40.0)
    views = render(carved_field(), cameras, 16, 48)
    small = shrink(views, 2)
    assert small.rgb.shape == (1, 1, 3, 8, 8)
    torch.testing.assert_close(small.opacity[0, 0, 0, 3, 4], views.opacity[0, 0, 0, 6:8, 8:10].mean())
    assert (small.rgb <= small.opacity + 1e-6).all()


def ball_normals(ball: Ball) -> Callable[[Tensor], Tensor]:
    return lambda points: torch.nn.functional.normalize(points - ball.where, dim=-1)


def test_weights_are_transmittance_times_alpha() -> None:
    density, lengths = torch.tensor([[1.0, 0.0, 3.0]]), torch.tensor([[0.5, 0.1, 0.2]])
    alphas, before = sample_alphas(density, lengths), sample_transmittance(density, lengths)
    assert alphas.tolist() == [pytest.approx([1 - math.exp(-0.5), 0.0, 1 - math.exp(-0.6)])]
    assert before.tolist() == [pytest.approx([1.0, math.exp(-0.5), math.exp(-0.5)])]
    torch.testing.assert_close(sample_weights(density, lengths), before * alphas)


def test_depth_and_its_variance_are_not_divided_by_the_opacity() -> None:
    weights, t = torch.tensor([[0.5, 0.25]]), torch.tensor([[2.0, 4.0]])
    opacity, depth = opacity_and_depth(weights, t)
    assert (opacity.item(), depth.item()) == (0.75, 2.0)
    assert depth_variance(weights, t, depth).item() == 0.25 * 4


def test_a_plain_look_changes_no_picture_and_tells_the_surface() -> None:
    ball = Ball(torch.tensor([0.1, 0.0, 0.2]), torch.tensor(0.5))
    plain, looked = (render(ball, front(), 8, 24, look=look) for look in (None, Look()))
    assert plain.surface is None
    assert looked.surface is not None
    for one, other in zip(plain[:3], looked[:3], strict=True):
        assert torch.equal(one, other)
    assert torch.equal(looked.surface.opacity, plain.opacity)
    assert looked.surface.backfacing.abs().max() == 0


def test_a_background_fills_what_the_object_leaves_and_makes_the_picture_opaque() -> None:
    look = Look(background=lambda directions: directions.abs())
    plain = render(Fog(0.5), front(), 5, 16)
    views = render(Fog(0.5), front(), 5, 16, look=look)
    _, directions = camera_rays(front(), 5, 5)
    expected = plain.rgb + (1 - plain.opacity) * directions.abs().movedim(-1, -3)
    torch.testing.assert_close(views.rgb, expected)
    assert torch.equal(views.opacity, torch.ones_like(plain.opacity))
    assert views.surface is not None
    assert torch.equal(views.surface.opacity, plain.opacity)


def test_each_view_has_its_own_light() -> None:
    ball = Ball(torch.zeros(3), torch.tensor(0.5))
    cameras = orbit_cameras(torch.tensor([[0.0, 180.0]]), torch.tensor(0.0), 3.6, 40.0)
    light = PointLight(torch.tensor([[[0.0, 0, 9], [0, 0, 9]]]), 0.2, 0.8, "textureless")
    views = render(ball, cameras, 9, 48, look=Look(light=light, normals=ball_normals(ball)))
    brightness = (views.rgb / views.opacity.clamp_min(1e-6))[0, :, 0, 4, 4]
    assert brightness[0] > 0.9
    assert brightness[1].item() == pytest.approx(0.2, abs=0.02)


def test_backfacing_tells_normals_that_point_away_from_the_camera() -> None:
    ball = Ball(torch.zeros(3), torch.tensor(0.6))
    outwards = ball_normals(ball)
    inwards = render(ball, front(), 9, 48, look=Look(normals=lambda points: -outwards(points))).surface
    right = render(ball, front(), 9, 48, look=Look(normals=outwards)).surface
    assert inwards is not None
    assert right is not None
    assert inwards.backfacing.sum() > 10 * right.backfacing.sum() > 0


def test_a_least_alpha_leaves_out_thin_and_hidden_samples() -> None:
    asked: list[int] = []

    class Counted(Fog):
        def density(self, points: Tensor) -> Tensor:
            if torch.is_grad_enabled():
                asked.append(len(points))
            return super().density(points)

    # A thin fog's samples of length ⅛ have alpha .061; behind a dense one, 1e-4 is left after 9.2/σ.
    for sigma, min_alpha, kept in ((0.5, 0.06, 16), (0.5, 0.07, 0), (40.0, 0.01, 2)):
        views = render(Counted(sigma), front(), 1, 16, look=Look(min_alpha=min_alpha))
        assert asked.pop() == kept
    assert views.opacity.item() == pytest.approx(1, abs=1e-4)


def test_shrinking_averages_the_surface_too() -> None:
    views = render(Fog(0.5), front(), 4, 8, look=Look())
    small = shrink(views, 2).surface
    assert views.surface is not None
    assert small is not None
    average = views.surface.opacity.unflatten(-1, (2, 2)).unflatten(-3, (2, 2)).mean((-1, -3))
    torch.testing.assert_close(small.opacity, average)
