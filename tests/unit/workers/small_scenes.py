"""Real small things for the tests of the core: an analytic prior, a tiny differentiable reward, quick scenes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from service.jobs.spec import DreamDpoMethod, DreamFlMethod, Ramp, SdsMethod
from workers.cameras import CameraRig
from workers.contracts import Ask, Scores, Views, asked
from workers.diffusion import draw_noise
from workers.engine import Engine
from workers.fields.voxel import VoxelField
from workers.methods import make_method
from workers.methods.sds import Sample, draw_times, per_element, reconstruction_loss, sds_target
from workers.priors.analytic import AnalyticPrior, disk_latents
from workers.scene import Scene

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from service.jobs.spec import AnyMethod
    from workers.contracts import Method, Prior, Reward

__all__ = [
    "PX",
    "RED",
    "Fixed",
    "TinyReward",
    "answer_at_once",
    "ball_prior",
    "constant",
    "flat_views",
    "gradients_of_sds",
    "make_scene",
    "methods_of_three",
    "pictures",
    "run",
]

torch.set_num_threads(1)
"""Scenes this small lose time to threads, and bit equality is promised for a fixed number of them."""

PX = 16
RED, BLUE = (0.9, 0.1, 0.1), (0.1, 0.2, 0.9)


class TinyReward:
    """A differentiable reward: a convolution's mean answer, per view or per object."""

    name = "tiny"

    def __init__(self, per_view: bool = False) -> None:
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 1, 3)).double()
        self.per_view = per_view

    def values(self, images: Tensor) -> Tensor:
        """(G, V, 3, H, W) → (G, V) or (G, 1)."""
        per_view = self.network(images.flatten(0, 1).double()).mean((1, 2, 3)).view(images.shape[:2])
        return (per_view if self.per_view else per_view.mean(1, keepdim=True)).to(images.dtype)

    @asked("score")
    def score(self, images: Tensor, prompts: list[str], wants_gradient: Tensor) -> Scores:
        """Score, and differentiate the rows that want it."""
        assert len(images) == len(prompts) == len(wants_gradient)
        with torch.enable_grad():
            images = images.detach().requires_grad_()
            values = self.values(images)
            (gradient,) = torch.autograd.grad(values.sum(), images)
        return Scores(values.detach(), gradient * wants_gradient[:, None, None, None, None])


class Fixed:
    """A judge with a fixed opinion of the first and of the second of a pair; keeps what it was shown."""

    name = "fixed"

    def __init__(self, *opinion: list[float]) -> None:
        self.opinion = torch.tensor(opinion)
        self.images: Tensor | None = None

    @asked("score")
    def score(self, images: Tensor, prompts: list[str], wants_gradient: Tensor) -> Scores:
        """Answer the opinion, whatever is shown."""
        self.images = images
        return Scores(self.opinion, torch.zeros_like(images))


def ball_prior(spread: float = 0.1) -> AnalyticPrior:
    """A prior that knows a red and a blue ball."""
    means = {name: disk_latents(color, 0.5, PX) for name, color in (("red", RED), ("blue", BLUE))}
    return AnalyticPrior(means, spread)


def methods_of_three(reward: Reward, **knobs: Any) -> dict[str, Method]:
    """One method of each kind, bound to `reward`."""
    kinds: list[AnyMethod] = [SdsMethod(**knobs), DreamFlMethod(**knobs), DreamDpoMethod(tau=0.0, **knobs)]
    return {kind.name: make_method(kind, reward) for kind in kinds}


def make_scene(
    prior: Prior, method: Method, *, prompt: str = "red", seed: int = 0, steps_total: int = 50
) -> Scene:
    """A scene that steps in a few milliseconds."""
    return Scene(
        prompt=prompt,
        prior=prior,
        method=method,
        field=VoxelField(coarse=10, fine=14),
        rig=CameraRig(),
        seed=seed,
        steps_total=steps_total,
        spec_hash="small",
        num_samples=12,
    )


def flat_views(latents: Tensor, prior: AnalyticPrior) -> Views:
    """Views whose encoding is exactly `latents` (1, V, 4, H, W): a field that is nothing but its pictures."""
    opacity = (latents[:, :, 3:] + 1) / 2
    rgb = (latents[:, :, :3] + opacity) / 2
    cameras = CameraRig(num_views=latents.shape[1]).draw(torch.Generator())
    return Views(rgb, opacity, torch.zeros_like(opacity), cameras)


def pictures(prior: AnalyticPrior) -> Tensor:
    """Latents (1, 4, 4, H, W) of no object, always the same, that want a gradient."""
    noise = torch.randn(1, 4, *prior.latent_shape, generator=torch.Generator().manual_seed(5))
    return (0.3 * noise).clamp(-1, 1).requires_grad_()


def gradients_of_sds(prior: AnalyticPrior) -> list[Tensor]:
    """SDS on `pictures` with the first and with the second noise that methods of pairs draw in their place."""
    knobs = SdsMethod()
    scene = make_scene(prior, make_method(knobs, None))
    t = draw_times(scene, prior, knobs, 1)

    async def with_noise(latents: Tensor, noise: Tensor) -> Tensor:
        sample = Sample(latents, flat_views(latents, prior).cameras, t, noise)
        return per_element(
            reconstruction_loss(latents, await sds_target(scene, sample, prior, knobs)), latents
        )

    gradients = []
    for _ in range(2):
        latents = pictures(prior)
        loss = answer_at_once(with_noise(latents, draw_noise(latents, scene.generator)))
        gradients += torch.autograd.grad(loss, latents)
    return gradients


def run(scene: Scene, until: int) -> list[float]:
    """Step a scene alone until step `until`, and answer the losses."""
    engine = Engine()
    engine.admit(scene)
    losses = []
    while scene.step < until:
        (outcome,) = engine.step()
        assert outcome.error is None
        assert outcome.loss is not None
        losses.append(outcome.loss)
    return losses


def answer_at_once(coroutine: Coroutine[Ask[Any], Any, Tensor]) -> Tensor:
    """Drive one method alone: the simplest driver there is."""
    answer = None
    while True:
        try:
            answer = coroutine.send(answer).now()
        except StopIteration as stop:
            loss: Tensor = stop.value
            return loss


def constant(value: float) -> Ramp:
    """A knob that stays where it is."""
    return Ramp(start=value, end=value)
