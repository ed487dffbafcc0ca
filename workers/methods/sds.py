"""Score distillation by x₀-reconstruction: the baseline, and the part that the preference methods share.

MVDream, arXiv 2308.16512: its x₀-reconstruction form of score distillation (DreamFusion, arXiv 2209.14988), as in
`multiview_diffusion_guidance.py` of the published code.

    x_t = α z + σ ε,   x̂₀ = guided and rescaled prediction of the prior at x_t,   L = ½ Σ (z − sg[x̂₀])² / B

for the latents z of B views; sg[·] stops the gradient, so that d L/d z = (z − x̂₀)/B, which is the score
distillation gradient w(t)(ε̂ − ε)/B with w(t) = σ/α (when nothing is rescaled or clamped).

Differs from the paper:
- x̂₀ is clamped to the range of the latents where the prior has one (a VAE has none).
- The coroutine returns 2/(C·H·W) times L, the mean square: Adam does not see the factor, but it lets the weights
  of regularizers and rewards mean the same at every latent size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from workers.cameras import Cameras
from workers.diffusion import add_noise, clamp_latents, draw_noise, draw_time, guide, rescale_x0

if TYPE_CHECKING:
    from torch import Tensor

    from service.jobs.spec import DistillationKnobs
    from workers.contracts import Prior, Views
    from workers.scene import Scene

__all__ = ["draw_times", "guided_x0", "per_element", "reconstruction_loss", "sds", "sds_target"]


def reconstruction_loss(latents: Tensor, x0: Tensor) -> Tensor:
    """L = ½ Σ (z − sg[x̂₀])² / B for latents z and x̂₀ (G, V, C, H, W), B = G·V views; differentiable to z."""
    num_views = latents.shape[0] * latents.shape[1]
    return 0.5 * (latents - x0.detach()).square().sum() / num_views


def per_element(loss: Tensor, latents: Tensor) -> Tensor:
    """Turn a sum over a view's latents, halved, into a mean: 2/(C·H·W) times the loss."""
    return loss * (2 / latents[0, 0].numel())


async def sds(scene: Scene, views: Views, prior: Prior, knobs: DistillationKnobs) -> Tensor:
    """Pull the latents of the render towards what the prior makes of their noised version."""
    latents = await prior.encode(views)
    x0, _ = await sds_target(scene, latents, views.cameras, prior, knobs)
    return per_element(reconstruction_loss(latents, x0), latents)


async def sds_target(
    scene: Scene, latents: Tensor, cameras: Cameras, prior: Prior, knobs: DistillationKnobs
) -> tuple[Tensor, Tensor]:
    """Draw a time and a noise, and predict x̂₀ (1, V, C, H, W) from them; also returns t (1,)."""
    t = draw_times(scene, prior, knobs, 1)
    noise = draw_noise(latents, scene.generator)
    noisy = add_noise(latents.detach(), noise, t, prior.schedule)
    return await guided_x0(scene, prior, knobs, noisy, t, cameras), t


def draw_times(scene: Scene, prior: Prior, knobs: DistillationKnobs, num: int) -> Tensor:
    """Draw `num` diffusion times from the window that the scene's progress leaves open, on the prior's device."""
    low, high = knobs.t_min.at(scene.progress), knobs.t_max.at(scene.progress)
    return draw_time(prior.schedule, low, high, scene.generator, num).to(scene.device)


async def guided_x0(
    scene: Scene, prior: Prior, knobs: DistillationKnobs, noisy: Tensor, t: Tensor, cameras: Cameras
) -> Tensor:
    """Predict x̂₀ for noised versions (P, V, C, H, W) of one object's latents at times t (P,), in one call.

    The call has 2 P rows, first all under the prompt, then all under the negative prompt; the two are combined
    by classifier-free guidance, rescaled, and clamped to the range of the latents.
    """
    rows = 2 * len(noisy)
    text = scene.text.repeat_interleave(len(noisy), 0)
    cameras = Cameras(*(x.expand(rows, *x.shape[1:]) for x in cameras))
    both = await prior.predict(noisy.repeat(2, 1, 1, 1, 1), t.repeat(2), text, cameras)
    conditional, negative = both.x0.chunk(2)
    guided = guide(conditional, negative, knobs.guidance_scale.at(scene.progress))
    return clamp_latents(rescale_x0(guided, conditional, knobs.rescale), prior.latent_range)
