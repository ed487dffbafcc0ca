"""Score distillation: the baseline, and the part that the preference methods share.

DreamFusion, arXiv 2209.14988, eq. 3 (form `classic`); MVDream, arXiv 2308.16512, its x₀-reconstruction loss (form
`reconstruction`, the default), as in `multiview_diffusion_guidance.py` of the published code.

    x_t = α z + σ ε for the latents z of B views, t drawn from a window that moves with progress, ε ~ N(0, 1)

    reconstruction   L = ½ Σ (z − sg[x̂₀])² / B,   x̂₀ = the prior's prediction at x_t, guided and rescaled
    classic          d L/d z = w(t) (ε̂ − ε) / B,   ε̂ = the prior's prediction at x_t, guided

sg[·] stops the gradient. As z − x̂₀ = (σ/α)(ε̂ − ε), the first is the second with w(t) = σ/α, when nothing is
rescaled or clamped.

Differs from the papers:
- x̂₀ is clamped to the range of the latents where the prior has one (a VAE has none).
- The coroutine returns 2/(C·H·W) times L, of the first form the mean square: Adam does not see the factor, but it
  lets the weights of regularizers and rewards mean the same at every latent size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor

from workers.cameras import Cameras
from workers.contracts import Prediction
from workers.diffusion import add_noise, alpha_sigma, clamp_latents, draw_noise, draw_time, guide, rescale_x0

if TYPE_CHECKING:
    from service.jobs.knobs import DistillationKnobs, SdsMethod
    from workers.contracts import Prior, Schedule, Views
    from workers.scene import Scene

__all__ = [
    "Sample",
    "combine_x0",
    "distillation_loss",
    "draw_sample",
    "draw_times",
    "gradient_loss",
    "guidance_scale",
    "per_element",
    "predict_both",
    "reconstruction_loss",
    "repeat_cameras",
    "sds",
    "sds_target",
    "sds_weight",
]


class Sample(NamedTuple):
    """Where a step looks at the latents of one object: P noised versions x_t of them."""

    latents: Tensor
    """z (G, V, C, H, W), differentiable to the render."""
    cameras: Cameras
    t: Tensor
    """(P,) int64."""
    noise: Tensor
    """ε (P, V, C, H, W)."""

    def noisy(self, schedule: Schedule) -> Tensor:
        """x_t (P, V, C, H, W), without gradient; with G = 1 all P versions are of the same latents."""
        return add_noise(self.latents.detach(), self.noise, self.t, schedule)


def reconstruction_loss(latents: Tensor, x0: Tensor) -> Tensor:
    """L = ½ Σ (z − sg[x̂₀])² / B for latents z and x̂₀ (G, V, C, H, W), B = G·V views; differentiable to z."""
    num_views = latents.shape[0] * latents.shape[1]
    return 0.5 * (latents - x0.detach()).square().sum() / num_views


def gradient_loss(latents: Tensor, gradient: Tensor) -> Tensor:
    """L = ½ Σ (z − sg[z − g])² / B, so that d L/d z = g/B, for latents z and g (G, V, C, H, W)."""
    return reconstruction_loss(latents, latents - gradient)


def sds_weight(
    weighting: Literal["variance", "uniform"], t: Tensor, schedule: Schedule, like: Tensor
) -> Tensor:
    """w(t) for t (P,), shaped to multiply `like` (P, …): σ² = 1 − ᾱ_t (DreamFusion's), or 1."""
    _, sigma = alpha_sigma(schedule, t, like)
    return sigma.square() if weighting == "variance" else torch.ones_like(sigma)


def per_element(loss: Tensor, latents: Tensor) -> Tensor:
    """Turn a sum over a view's latents, halved, into a mean: 2/(C·H·W) times the loss."""
    return loss * (2 / latents[0, 0].numel())


async def sds(scene: Scene, views: Views, prior: Prior, knobs: SdsMethod) -> Tensor:
    """Pull the latents of the render towards what the prior makes of their noised version."""
    latents = await prior.encode(views)
    sample = draw_sample(scene, latents, views.cameras, prior, knobs)
    return per_element(await distillation_loss(scene, sample, prior, knobs), latents)


async def distillation_loss(scene: Scene, sample: Sample, prior: Prior, knobs: SdsMethod) -> Tensor:
    """L of either form, for one noised version of each group (P = G)."""
    if knobs.form == "reconstruction":
        return reconstruction_loss(sample.latents, await sds_target(scene, sample, prior, knobs))
    conditional, negative = await predict_both(
        scene.text, prior, sample.noisy(prior.schedule), sample.t, sample.cameras
    )
    noise_pred = guide(conditional.noise, negative.noise, guidance_scale(scene, knobs))
    weight = sds_weight(knobs.weighting, sample.t, prior.schedule, noise_pred)
    return gradient_loss(sample.latents, weight * (noise_pred - sample.noise))


async def sds_target(scene: Scene, sample: Sample, prior: Prior, knobs: DistillationKnobs) -> Tensor:
    """Predict x̂₀ (P, V, C, H, W), guided, rescaled and clamped, in one call."""
    noisy = sample.noisy(prior.schedule)
    conditional, negative = await predict_both(scene.text, prior, noisy, sample.t, sample.cameras)
    return combine_x0(scene, prior, knobs, conditional.x0, negative.x0)


def draw_sample(
    scene: Scene, latents: Tensor, cameras: Cameras, prior: Prior, knobs: DistillationKnobs
) -> Sample:
    """Draw one time for all groups, and a noise for each."""
    t = draw_times(scene, prior, knobs, 1).expand(len(latents))
    return Sample(latents, cameras, t, draw_noise(latents, scene.generator))


def draw_times(scene: Scene, prior: Prior, knobs: DistillationKnobs, num: int) -> Tensor:
    """Draw `num` diffusion times from the window that the scene's progress leaves open, on the prior's device."""
    low, high = (ramp.at_step(scene.step, scene.steps_total) for ramp in (knobs.t_min, knobs.t_max))
    return draw_time(prior.schedule, low, high, scene.generator, num).to(scene.device)


async def predict_both(
    text: Tensor, prior: Prior, noisy: Tensor, t: Tensor, cameras: Cameras
) -> tuple[Prediction, Prediction]:
    """Predict under both rows of `text`, the prompt and what to avoid: one call of 2 P rows, first the prompt's."""
    cameras = repeat_cameras(cameras, 2 * len(noisy))
    text = text.repeat_interleave(len(noisy), 0)
    both = await prior.predict(noisy.repeat(2, 1, 1, 1, 1), t.repeat(2), text, cameras)
    conditional, negative = zip(*(x.chunk(2) for x in both), strict=True)
    return Prediction(*conditional), Prediction(*negative)


def combine_x0(
    scene: Scene, prior: Prior, knobs: DistillationKnobs, conditional: Tensor, negative: Tensor
) -> Tensor:
    """Combine two predictions of x̂₀ by classifier-free guidance; rescale, and clamp to the range of the latents."""
    guided = guide(conditional, negative, guidance_scale(scene, knobs))
    return clamp_latents(rescale_x0(guided, conditional, knobs.rescale), prior.latent_range)


def repeat_cameras(cameras: Cameras, rows: int) -> Cameras:
    """Repeat (G, V) cameras as a whole until there are `rows` groups."""
    return Cameras(*(x.repeat(rows // len(x), *[1] * (x.ndim - 1)) for x in cameras))


def guidance_scale(scene: Scene, knobs: DistillationKnobs) -> float:
    """Guidance scale of this step."""
    return knobs.guidance_scale.at_step(scene.step, scene.steps_total)
