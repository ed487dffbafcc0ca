"""PSD: preference guidance, added to score distillation like classifier-free guidance.

Preference Score Distillation, arXiv 2603.01594. Its code is not public: this is OUR READING of the paper's text, and
no number here was compared with the authors'.

    two noised versions of the latents z (two noises at one t) → x̂₀ᵃ, x̂₀ᵇ → judge → scores r
    c = tanh((rᵃ − rᵇ)/2τ)                                    how surely a is preferred, from −1 to 1; a tie is 0
    target = ½ (x̂₀ᵃ + x̂₀ᵇ) + λ c (x̃₀ᵃ − x̃₀ᵇ),   L = ½ Σ (z − sg[target])² / B
    x̂₀ = guided by scale s from x̃₀(u), under a learned negative embedding u, towards x̃₀, under the prompt
    L_u = −λ Σ |c| log σ(β (Δʷ − Δˡ)) / V,   Δⁱ = mean (ε̂(x′ⁱ; u) − ε)² − mean (ε̂(x′ⁱ; u₀) − ε)²,   x′ⁱ = α x̂₀ⁱ + σ ε

for the winner w and the loser l of a pair, one ε for both, and u₀ the negative prompt's embedding, at which u starts.
As z − x₀ = (σ/α)(ε̂ − ε), the gradient is, when nothing is rescaled or clamped,
    d L/d z = (σ/α) [mean of both (ε̂ − ε) + λ |c| ((ε̃ʷ − εʷ) − (ε̃ˡ − εˡ))]/B :
plain SDS on both noises, plus the difference of scores that the paper's implicit reward (DPO's) gives for a preferred
pair, "as CFG" adds its difference of conditions. The judge only ranks and weighs; no gradient of it is used. As c is
the difference of both probabilities under Bradley and Terry, |c| is the paper's "reward-based scaling".

u learns what the prior shall be guided away from. L_u is Diffusion-DPO's loss (arXiv 2311.12908) with its signs
turned, on the pictures which the judge has ranked: u shall explain the loser's better than u₀ does, the winner's worse.
(With the samples of z in their place, both have the same clean picture, and to explain the winner's noise badly is to
see what the judge likes in it: on Gaussian data that turns u, exactly, the wrong way.)

Exactly: λ = 0 is SDS (on two noises at once, in mean) with u = u₀ forever; swapping a and b changes nothing; equal
scores give no preference term and teach u nothing.

Where the paper's text leaves it open, we chose: the base term on both samples (on the winner alone it would be
half a preference term already); tanh; the loss of u and its pictures; Adam for u.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn.functional import logsigmoid

from workers.diffusion import add_noise, clamp_latents, draw_noise
from workers.methods.dreamdpo import draw_two_noises, score_pair
from workers.methods.sds import (
    Sample,
    combine_x0,
    per_element,
    predict_both,
    reconstruction_loss,
    repeat_cameras,
)

if TYPE_CHECKING:
    from torch import Tensor

    from service.jobs.knobs import PsdMethod
    from workers.contracts import Prior, Reward, Views
    from workers.scene import Scene

__all__ = ["certainty", "guided_target", "negative_loss", "psd"]


def certainty(score_a: Tensor, score_b: Tensor, tau: float) -> Tensor:
    """c = tanh((rᵃ − rᵇ)/2τ) = P(a preferred) − P(b preferred) for Bradley–Terry scores r/τ, (V,) or (1,)."""
    return torch.tanh((score_a - score_b) / (2 * tau))


def guided_target(x0: Tensor, conditional: Tensor, c: Tensor, weight: float) -> Tensor:
    """½ (x̂₀ᵃ + x̂₀ᵇ) + λ c (x̃₀ᵃ − x̃₀ᵇ), (V, C, H, W), for guided and conditional pairs (2, V, C, H, W)."""
    return x0.mean(0) + weight * c[:, None, None, None] * (conditional[0] - conditional[1])


def negative_loss(learned: Tensor, start: Tensor, noise: Tensor, c: Tensor, beta: float) -> Tensor:
    """L_u/λ for the noises predicted under u and under u₀, (2, V, C, H, W); differentiable to the first."""

    def error(noise_pred: Tensor) -> Tensor:
        return (noise_pred - noise).square().mean((2, 3, 4))

    delta = error(learned) - error(start)
    return -(c.abs() * logsigmoid(beta * c.sign() * (delta[0] - delta[1]))).mean()


async def psd(scene: Scene, views: Views, prior: Prior, knobs: PsdMethod, judge: Reward) -> Tensor:
    """Pull the latents towards the prior's predictions, those of the preferred kind more, and learn what to avoid."""
    latents = await prior.encode(views)
    sample = draw_two_noises(scene, latents, views.cameras, prior, knobs)
    learns = knobs.negative_lr > 0
    u = scene.text[1]
    if learns:
        u = scene.learned("negative_embedding", u, knobs.negative_lr).to(u.dtype)

    noisy, text = sample.noisy(prior.schedule), torch.stack([scene.text[0], u.detach()])
    conditional, negative = await predict_both(text, prior, noisy, sample.t, sample.cameras)
    x0 = combine_x0(scene, prior, knobs, conditional.x0, negative.x0)
    noised_again = await _noise_again(scene, sample, prior, x0, u) if learns else None
    scores = await score_pair(scene, await prior.decode(x0), judge)
    scene.record("reward", scores.mean())
    scene.record("gap", (scores[0] - scores[1]).abs().mean())

    c = certainty(scores[0], scores[1], knobs.tau)
    target = guided_target(x0, conditional.x0, c, knobs.preference_weight)
    loss = per_element(reconstruction_loss(latents, clamp_latents(target, prior.latent_range)[None]), latents)
    if noised_again is None:
        return loss
    avoid = knobs.preference_weight * negative_loss(*noised_again, c, knobs.negative_beta)
    # It teaches u alone, and is left out of the loss that is shown: the two are not of one kind.
    return loss + (avoid - avoid.detach())


async def _noise_again(
    scene: Scene, sample: Sample, prior: Prior, x0: Tensor, u: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Noise the pair of x̂₀ by one ε, and predict it under u, differentiable to that, and under u₀; also gives ε."""
    noise = draw_noise(sample.latents, scene.generator)
    noisy = add_noise(x0, noise, sample.t, prior.schedule)
    cameras = repeat_cameras(sample.cameras, 2)
    learned = await prior.predict(noisy, sample.t, u.expand(2, *u.shape), cameras)
    start = await prior.predict(noisy, sample.t, scene.text[1].expand(2, *u.shape), cameras)
    return learned.noise, start.noise, noise
