from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from workers.cameras import VariedRig
from workers.fields.density import Blob
from workers.fields.hash_encoding import GridSizes
from workers.fields.hashgrid import HashGridField, HashGridSizes, HashGridTraining, Normals
from workers.regularizers import Penalties
from workers.render import render
from workers.shading import Look

if TYPE_CHECKING:
    from workers.contracts import TrainedField

GRID = GridSizes(num_levels=4, log2_entries=9, base_resolution=4, level_scale=1.6)
SIZES = HashGridSizes(GRID, hidden_width=8, occupancy_cells=8)
SHADED = HashGridTraining(shaded=True, penalties=Penalties(orient=(10, 1000, 0.5)))


def field_of(training: HashGridTraining | None = None, sizes: HashGridSizes = SIZES) -> HashGridField:
    """A small field whose grid has something in it."""
    field = HashGridField(sizes, training)
    with torch.no_grad():
        field.encoding.table.normal_(0, 0.3, generator=torch.Generator().manual_seed(5))
    return field


def some_points(num: int = 40, seed: int = 0) -> Tensor:
    return torch.rand(num, 3, generator=torch.Generator().manual_seed(seed)) * 1.8 - 0.9


def slow_density(field: HashGridField, point: Tensor) -> Tensor:
    """The equation for one point: matrices, a rectifier, the blob, a softplus."""
    first, last = field.density_network.parameters()
    hidden = first @ field.encoding((point[None] + 1) / 2)[0]
    raw = (last @ hidden.clamp_min(0))[0] + 10 * (1 - point.norm() / 0.5)
    return torch.log1p(raw.exp())


def test_published_sizes_on_the_meta_device() -> None:
    field = HashGridField(device="meta")
    parameters = dict(field.named_parameters())
    assert all(parameter.is_meta for parameter in parameters.values())
    assert parameters["encoding.table"].numel() == 12_599_920
    shapes = {
        name: tuple(p.shape) for name, p in parameters.items() if name.endswith("network.layers.0.weight")
    }
    assert shapes["density_network.layers.0.weight"] == shapes["feature_network.layers.0.weight"] == (64, 32)
    assert parameters["density_network.layers.2.weight"].shape == (1, 64)
    assert parameters["feature_network.layers.2.weight"].shape == (3, 64)


def test_it_starts_as_the_gray_blob() -> None:
    field = HashGridField(SIZES)
    points = torch.tensor([[0.0, 0.0, 0.0], [0.25, 0.0, 0.0], [0.0, 0.5, 0.0], [0.0, 0.0, 1.0]])
    blob = torch.tensor([10.0, 5.0, 0.0, -10.0])
    torch.testing.assert_close(field.density(points), F.softplus(blob), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(field.color(points), torch.full((4, 3), 0.5), rtol=0, atol=1e-3)


def test_density_is_that_of_the_slow_twin() -> None:
    field = field_of().double()
    points = some_points().double()
    expected = torch.stack([slow_density(field, point) for point in points])
    torch.testing.assert_close(field.density(points), expected)


@pytest.mark.parametrize(
    ("normals", "tolerance"),
    [("analytic", 1e-6), ("central_difference", 1e-6), ("forward_difference", 2e-3)],
)
def test_normals_point_outwards_in_every_form(normals: Normals, tolerance: float) -> None:
    sizes = replace(SIZES, normals=normals, normal_step=1e-4)
    field = HashGridField(sizes).double()
    with torch.no_grad():
        field.encoding.table.zero_()
    points = some_points(20).double() * 0.5
    outwards = F.normalize(points, dim=-1)
    torch.testing.assert_close(field.normals(points), outwards, rtol=0, atol=tolerance)


@pytest.mark.parametrize("normals", ["analytic", "central_difference", "forward_difference"])
def test_normals_are_differentiable_to_the_parameters(normals: Normals) -> None:
    field = field_of(sizes=replace(SIZES, normals=normals)).double()
    points, table = some_points(4).double(), field.encoding.table
    weights = torch.randn(4, 3, generator=torch.Generator().manual_seed(1)).double()

    def loss() -> Tensor:
        return (field.normals(points) * weights).sum()

    (gradient,) = torch.autograd.grad(loss(), table)
    entry = int(gradient.abs().sum(-1).argmax())
    with torch.no_grad():
        table[entry, 0] += 1e-6
        above = loss()
        table[entry, 0] -= 2e-6
        below = loss()
    assert ((above - below) / 2e-6).item() == pytest.approx(gradient[entry, 0].item(), rel=1e-3)


def test_normals_without_gradient_keep_no_graph() -> None:
    with torch.no_grad():
        assert not field_of().normals(some_points(3)).requires_grad


def test_probing_clears_thin_space_and_density_is_zero_there() -> None:
    field = HashGridField(SIZES)
    corner, center = torch.tensor([[0.9, 0.9, 0.9]]), torch.zeros(1, 3)
    assert field.density(corner).item() > 0
    assert not field.prepare(0, 100)
    assert field.density(corner).item() == 0 < field.uncleared_density(corner).item()
    assert not field.occupied(corner).item()
    assert field.density(center).item() == pytest.approx(10.0, rel=1e-3)


def test_skipping_empty_space_changes_no_picture() -> None:
    field = field_of()
    field.prepare(0, 100)
    assert 0 < field.occupancy.occupied.float().mean() < 0.5
    cameras = VariedRig().draw(torch.Generator().manual_seed(0))
    skipped, full = (render(field, cameras, 8, 32, occupied=o) for o in (field.occupied, None))
    torch.testing.assert_close(skipped.rgb, full.rgb)
    torch.testing.assert_close(skipped.depth, full.depth)


def test_the_optimizer_takes_the_published_rates_from_the_scenes_one() -> None:
    field = field_of()
    optimizer = field.new_optimizer()
    before = {name: p.detach().clone() for name, p in field.named_parameters()}
    for parameter in field.parameters():
        parameter.grad = torch.ones_like(parameter)
    for group in optimizer.param_groups:
        group["lr"] = field.learning_rate(0.3)
    for _ in range(2):
        optimizer.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.01, 0.01]
    for name, parameter in field.named_parameters():
        rate = 0.01 if name.startswith("encoding") else 0.001
        # Adam's step for a constant gradient is the rate; the decay takes .01 of the rate off the value.
        expected = (before[name] * (1 - 0.01 * rate) - rate) * (1 - 0.01 * rate) - rate
        torch.testing.assert_close(parameter.detach(), expected)


def test_half_of_the_backgrounds_are_one_random_color() -> None:
    field, generator = field_of(), torch.Generator().manual_seed(0)
    cameras = VariedRig().draw(generator)
    directions = F.normalize(some_points(6), dim=-1)
    random = 0
    for _ in range(200):
        look = field.draw_look(cameras, 0, 100, generator)
        assert look.background is not None
        color = look.background(directions)
        if look.background is not field.background:
            random += 1
            assert torch.equal(color, color[:1].expand(6, 3))
    assert 80 <= random <= 120


def test_looks_are_plain_by_default_and_shaded_in_the_second_half_where_asked() -> None:
    generator = torch.Generator().manual_seed(0)
    cameras = VariedRig().draw(generator)
    plain, shaded = field_of(), field_of(SHADED)
    look = plain.draw_look(cameras, 90, 100, generator)
    assert look.light is None
    assert look.normals is None
    early = [shaded.draw_look(cameras, 49, 100, generator).light for _ in range(20)]
    assert {light.mode for light in early if light} == {"albedo"}
    late = [shaded.draw_look(cameras, 50, 100, generator).light for _ in range(400)]
    modes = [light.mode for light in late if light]
    shares = {mode: modes.count(mode) / 400 for mode in ("albedo", "textureless", "diffuse")}
    assert shares == pytest.approx({"albedo": 0.25, "textureless": 0.375, "diffuse": 0.375}, abs=0.08)


def test_a_look_gives_what_regularization_needs_and_gradients_reach_every_parameter() -> None:
    field = field_of(replace(SHADED, penalties=Penalties((10, 1000, 0.5), 1.0, 1.0, 1.0), min_alpha=0.0))
    generator = torch.Generator().manual_seed(3)
    cameras = VariedRig().draw(generator)
    look = field.draw_look(cameras, 60, 100, generator)._replace(background=field.background)
    assert look.light is not None
    look = look._replace(light=look.light._replace(mode="diffuse"))
    views = render(field, cameras, 6, 24, generator, look=look)
    assert views.surface is not None
    assert torch.equal(views.opacity, torch.ones_like(views.opacity))
    assert views.surface.opacity.min() < 1
    (views.rgb.square().mean() + field.regularization(views, 60, 100)).backward()
    for name, parameter in field.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_without_penalties_regularization_is_zero_even_without_a_look() -> None:
    field = field_of()
    views = render(field, VariedRig().draw(torch.Generator().manual_seed(0)), 4, 8)
    assert field.regularization(views, 10, 100).item() == 0


def test_leaving_out_thin_samples_hardly_changes_the_picture() -> None:
    field = field_of()
    field.prepare(0, 100)
    cameras = VariedRig().draw(torch.Generator().manual_seed(0))
    all_of_it, most = (render(field, cameras, 8, 48, look=Look(min_alpha=a)) for a in (0.0, 0.001))
    assert not torch.equal(all_of_it.rgb, most.rgb)
    torch.testing.assert_close(most.rgb, all_of_it.rgb, rtol=0, atol=0.03)


def test_a_saved_field_is_loaded_whole() -> None:
    trained = field_of()
    trained.prepare(16, 100)
    fresh = HashGridField(SIZES, seed=9)
    fresh.load_state_dict(trained.state_dict())
    for name, tensor in trained.state_dict().items():
        assert torch.equal(tensor, fresh.state_dict()[name])
    assert torch.equal(fresh.density(some_points()), trained.density(some_points()))


def test_it_learns_a_colored_ball_from_pictures() -> None:
    """The whole of it: render, loss, optimizer, occupancy; rates are ten times the published ones, for 40 steps."""
    training = HashGridTraining(encoding_rate=0.1, network_rate=0.01, background=False)
    field: TrainedField = HashGridField(SIZES, training)
    optimizer, generator, rig = field.new_optimizer(), torch.Generator().manual_seed(0), VariedRig()
    wanted = torch.tensor([0.9, 0.2, 0.1]).view(3, 1, 1)
    losses = []
    for step in range(40):
        field.prepare(step, 40)
        optimizer.zero_grad()
        views = render(field, rig.draw(generator), 8, 24, generator, occupied=field.occupied)
        loss = (views.rgb - wanted * views.opacity).square().mean()
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = field.learning_rate(step / 40)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]
    assert all(math.isfinite(loss) for loss in losses)


def test_a_constant_blob_has_no_shape() -> None:
    field = HashGridField(replace(SIZES, blob=Blob("constant", -1.0)))
    torch.testing.assert_close(
        field.density(some_points()), torch.full((40,), math.log1p(math.exp(-1))), rtol=1e-3, atol=1e-4
    )


@pytest.mark.gpu
def test_on_a_gpu_it_answers_as_in_double_precision_on_the_cpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    field, points = HashGridField(), some_points(4096)
    oracle = HashGridField().double()
    on_gpu = HashGridField(device="cuda")
    on_gpu.load_state_dict(field.state_dict())
    oracle.load_state_dict(field.state_dict())
    for answer in ("density", "color", "normals"):
        got, want = getattr(on_gpu, answer)(points.cuda()).cpu(), getattr(oracle, answer)(points.double())
        assert (got.double() - want).abs().max() <= 1e-3 * want.abs().max()
