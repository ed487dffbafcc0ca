"""A hash grid with two small networks: the radiance field of the published methods, in plain torch.

Instant neural graphics primitives, arXiv 2201.05989, as MVDream (arXiv 2308.16512) and the preference methods built
on it use it: `implicit_volume.py` and `configs/mvdream-sd21*.yaml` of MVDream-threestudio. With the encoding h(x),

    density(x) = softplus(MLP₃₂→₆₄→₁(h(x)) + blob(x)),   color(x) = sigmoid(MLP₃₂→₆₄→₃(h(x))).

Differs from the published code: normals point outwards in every form (its forward difference lacks the minus); the
occupancy grid probes all cells (`occupancy.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, assert_never

import torch
from torch import nn
from torch.nn import functional as F

from workers.fields.background import Background
from workers.fields.density import Activation, Blob, activate, blob_bias
from workers.fields.hash_encoding import Frequencies, GridSizes, make_encoding
from workers.fields.occupancy import OccupancyGrid
from workers.fields.perceptron import Perceptron
from workers.regularizers import Penalties, surface_penalty
from workers.shading import Look, draw_light

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from workers.cameras import Cameras
    from workers.contracts import Views

__all__ = ["HashGridField", "HashGridSizes", "HashGridTraining", "Normals", "to_color"]

Normals = Literal["analytic", "forward_difference", "central_difference"]

_BETAS, _EPSILON, _WEIGHT_DECAY = (0.9, 0.99), 1e-15, 0.01
"""AdamW's. Source: `configs/mvdream-sd21.yaml`; the decay is torch's default, which it leaves."""
_RANDOM_BACKGROUND_SHARE = 0.5
"""How often a step's pictures have one random color behind them. Source: `configs/mvdream-sd21.yaml`."""


@dataclass(frozen=True, slots=True)
class HashGridSizes:
    """What a field is made of. Source of the defaults: `configs/mvdream-sd21.yaml` of MVDream-threestudio."""

    encoding: GridSizes | Frequencies = field(default_factory=GridSizes)
    hidden_width: int = 64
    hidden_layers: int = 1
    num_features: int = 3
    """Outputs of the second network, of which the first three are the color."""
    blob: Blob = field(default_factory=Blob)
    activation: Activation = "softplus"
    normals: Normals = "analytic"
    normal_step: float = 0.01
    """Length of a finite difference."""
    occupancy_cells: int = 32
    """Per axis."""
    radius: float = 1.0
    """Half an edge of the box that the encoding covers; renders march through a radius of 1."""


@dataclass(frozen=True, slots=True)
class HashGridTraining:
    """How a field is trained. Source of the defaults: `configs/mvdream-sd21.yaml` of MVDream-threestudio.

    Its shading configuration is `HashGridTraining(shaded=True, penalties=Penalties(orient=(10, 1000, 0.5)))`.
    """

    encoding_rate: float = 0.01
    network_rate: float = 0.001
    """Learning rates, constant over the steps; the background's is that of the networks."""
    shaded: bool = False
    """Whether the second half of the steps shows the field lit (`workers/shading.py`)."""
    background: bool = True
    """Whether pictures get the learned background or a random color; if not, they stay transparent."""
    min_alpha: float = 0.01
    """Samples of less alpha are left out; less where the field is thin everywhere (the mean of its occupancy)."""
    penalties: Penalties = field(default_factory=Penalties)


class HashGridField(nn.Module):
    """A radiance field on a hash grid, with the schedule by which it is trained.

    Its sizes stay what they are; `load_state_dict` refuses a field of other sizes (RuntimeError).
    """

    def __init__(
        self,
        sizes: HashGridSizes | None = None,
        training: HashGridTraining | None = None,
        *,
        device: torch.device | str = "cpu",
        seed: int = 0,
    ) -> None:
        """Start as the blob, with weights drawn from `seed`: 12 599 920 parameters in the grid by default."""
        super().__init__()
        self.sizes, self.plan = sizes or HashGridSizes(), training or HashGridTraining()
        size, generator = self.sizes, torch.Generator().manual_seed(seed)
        self.encoding = make_encoding(size.encoding, generator, device)
        shape = (size.hidden_width, size.hidden_layers, generator, device)
        self.density_network = Perceptron((self.encoding.width, 1), *shape)
        self.feature_network = Perceptron((self.encoding.width, size.num_features), *shape)
        self.background = Background(generator, device)
        self.occupancy = OccupancyGrid(size.occupancy_cells, size.radius, device)

    def density(self, points: Tensor) -> Tensor:
        """(P, 3) positions → (P,) density per unit length; 0 where the occupancy grid found space empty."""
        return self.occupied(points) * self.uncleared_density(points)

    def color(self, points: Tensor) -> Tensor:
        """(P, 3) positions → (P, 3) sRGB in [0, 1]: the albedo, without light."""
        return to_color(self.features(points))

    def occupied(self, points: Tensor) -> Tensor:
        """(P, 3) positions → (P,) bool: False where space was cleared, so that the density is zero."""
        return self.occupancy.contains(points)

    def raw_density(self, points: Tensor) -> Tensor:
        """(P, 3) positions → (P,): network plus blob, before the activation."""
        raw: Tensor = self.density_network(self._encoded(points))
        return raw.squeeze(-1) + blob_bias(points, self.sizes.blob)

    def uncleared_density(self, points: Tensor) -> Tensor:
        """(P, 3) positions → (P,) density per unit length, whatever the occupancy grid says."""
        return activate(self.raw_density(points), self.sizes.activation)

    def features(self, points: Tensor) -> Tensor:
        """(P, 3) positions → (P, num_features): the second network's output."""
        return self.feature_network(self._encoded(points))

    def normals(self, points: Tensor) -> Tensor:
        """(P, 3) positions → (P, 3) unit vectors from dense to thin, −∇density normalized (0 where it vanishes).

        Differentiable to the parameters, in every form.
        """
        match self.sizes.normals:
            case "analytic":
                slope = self._gradient(points)
            case "forward_difference":
                here = self.uncleared_density(points)
                slope = (self._density_beside(points, +1) - here[:, None]) / self.sizes.normal_step
            case "central_difference":
                rise = self._density_beside(points, +1) - self._density_beside(points, -1)
                slope = rise / (2 * self.sizes.normal_step)
            case _:
                assert_never(self.sizes.normals)
        return F.normalize(-slope, dim=-1)

    # --- training ---

    def prepare(self, step: int, steps_total: int) -> bool:
        """Probe the occupancy every 16 steps; the parameters never change: False."""
        self.occupancy.probe(step, self.uncleared_density)
        return False

    def new_optimizer(self) -> torch.optim.Optimizer:
        """Make a fresh AdamW, whose networks follow the scene's learning rate at a tenth of the encoding's."""
        plan = self.plan
        networks = (self.density_network, self.feature_network, self.background)
        slow = [parameter for network in networks for parameter in network.parameters()]
        groups = [
            {"params": list(self.encoding.parameters()), "share": 1.0},
            {"params": slow, "share": plan.network_rate / plan.encoding_rate},
        ]
        return _SharedRateAdamW([group for group in groups if group["params"]], lr=plan.encoding_rate)

    def learning_rate(self, progress: float) -> float:
        """The encoding's, .01 throughout."""
        return self.plan.encoding_rate

    def draw_look(self, cameras: Cameras, step: int, steps_total: int, generator: torch.Generator) -> Look:
        """Draw how this step shows the field to cameras (G, V): light and background, from a generator on the CPU."""
        plan, progress = self.plan, step / steps_total
        light = draw_light(cameras, progress, generator) if plan.shaded else None
        lit = light is not None and light.mode != "albedo"
        return Look(
            background=self._draw_background(generator) if plan.background else None,
            light=light,
            normals=self.normals if lit or plan.penalties.orient_at(progress) > 0 else None,
            min_alpha=min(plan.min_alpha, self.occupancy.threshold().item()),
        )

    def regularization(self, views: Views, step: int, steps_total: int) -> Tensor:
        """Weigh orientation, sparsity, opaqueness and depth variance (`regularizers.py`) of a render with a look."""
        if self.plan.penalties.none:
            return views.depth.new_zeros(())
        assert views.surface is not None, "a field with penalties is rendered with the look that it draws"
        return surface_penalty(views.surface, self.plan.penalties, step / steps_total)

    # --- inside ---

    def _encoded(self, points: Tensor) -> Tensor:
        radius = self.sizes.radius
        return self.encoding((points + radius) / (2 * radius))

    def _gradient(self, points: Tensor) -> Tensor:
        wanted = torch.is_grad_enabled()
        with torch.enable_grad():
            points = points.detach().requires_grad_(True)
            density = self.uncleared_density(points)
            (slope,) = torch.autograd.grad(density.sum(), points, create_graph=wanted)
        return slope

    def _density_beside(self, points: Tensor, sign: int) -> Tensor:
        """Densities (P, 3) one step along each axis, within the box."""
        step = sign * self.sizes.normal_step * torch.eye(3, dtype=points.dtype, device=points.device)
        beside = (points[:, None] + step).clamp(-self.sizes.radius, self.sizes.radius)
        return self.uncleared_density(beside.flatten(0, 1)).view(-1, 3)

    def _draw_background(self, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
        share, *color = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
        if share >= _RANDOM_BACKGROUND_SHARE:
            return self.background
        return lambda directions: directions.new_tensor(color).expand_as(directions)


def to_color(features: Tensor) -> Tensor:
    """(..., F ≥ 3) features → (..., 3) sRGB in [0, 1]: the sigmoid of the first three."""
    return torch.sigmoid(features[..., :3])


class _SharedRateAdamW(torch.optim.AdamW):
    """AdamW whose groups take a `share` of the one learning rate that a scene sets for all of them."""

    def __init__(self, groups: list[dict[str, Any]], lr: float) -> None:
        super().__init__(groups, lr=lr, betas=_BETAS, eps=_EPSILON, weight_decay=_WEIGHT_DECAY, fused=True)

    def step(self, closure: Any = None) -> Any:
        rates = [group["lr"] for group in self.param_groups]
        try:
            for group, rate in zip(self.param_groups, rates, strict=True):
                group["lr"] = rate * group["share"]
            return super().step(closure)
        finally:
            for group, rate in zip(self.param_groups, rates, strict=True):
                group["lr"] = rate
