"""DreamDPO: score distillation towards the better of two predictions and away from the worse one.

DreamDPO, arXiv 2502.04370: pairwise examples, pairwise comparison, preference-guided optimization.

    two noised versions of the latents z (two noises at one t) → x̂₀ᵃ, x̂₀ᵇ → judge → winner w, loser l, gap
    target = x̂₀ʷ + β (x̂₀ʷ − x̂₀ˡ) if gap ≥ τ, else x̂₀ʷ;   L = ½ Σ (z − sg[target])² / B

The paper's gradient is, with the prior's Jacobian left out and τ the same threshold,
    w(t) [(ε̂ʷ − εʷ) − (ε̂ˡ − εˡ)] if gap ≥ τ, else w(t) (ε̂ʷ − εʷ).
As z − x̂₀ = (σ/α)(ε̂ − ε), ours is, for a pair at one t and when nothing is rescaled or clamped,
    d L/d z = (σ/α) [(ε̂ʷ − εʷ) + β ((ε̂ʷ − εʷ) − (ε̂ˡ − εˡ))]/B :
β times the paper's preference gradient, anchored by plain SDS on the winner. Below τ both are SDS on the winner.

Differs from the paper:
- The anchor: the paper's first branch is a difference of two predictions, which by itself holds nothing near the
  data; ours adds SDS on the winner. β → ∞ is the paper's direction, β = 0 best-of-two SDS.
- The loser's prediction is guided like the winner's (the published code guides the winner only).
- The target is clamped to the range of the latents where the prior has one.
- The returned loss is a mean over elements, as in `sds`.
A judge that answers once per object ranks all its views alike, one that answers per view ranks each view by
itself. τ is in the judge's own unit: a value that suits one judge does not suit another.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from workers.diffusion import add_noise, clamp_latents, draw_noise
from workers.methods.sds import draw_times, guided_x0, per_element, reconstruction_loss

if TYPE_CHECKING:
    from torch import Tensor

    from service.jobs.spec import DreamDpoMethod
    from workers.contracts import Prior, Reward, Views
    from workers.scene import Scene

__all__ = ["Preference", "dreamdpo", "prefer", "preferred_target"]


class Preference(NamedTuple):
    """What a judge's scores say about a pair."""

    a_wins: Tensor
    """(V,) per view or (1,) per object, bool; a tie prefers a."""
    gap: Tensor
    """score of the winner − score of the loser, same shape, never negative."""


def prefer(score_a: Tensor, score_b: Tensor) -> Preference:
    """Rank a pair by its scores, (V,) or (1,) each."""
    return Preference(score_a >= score_b, (score_a - score_b).abs())


def preferred_target(x0_a: Tensor, x0_b: Tensor, preference: Preference, tau: float, push: float) -> Tensor:
    """x̂₀ʷ + β (x̂₀ʷ − x̂₀ˡ) where gap ≥ τ, exactly x̂₀ʷ elsewhere, for x̂₀ (V, C, H, W)."""
    a_wins, gap = (x[:, None, None, None] for x in preference)
    winner, loser = torch.where(a_wins, x0_a, x0_b), torch.where(a_wins, x0_b, x0_a)
    return torch.where(gap < tau, winner, winner + push * (winner - loser))


async def dreamdpo(scene: Scene, views: Views, prior: Prior, knobs: DreamDpoMethod, judge: Reward) -> Tensor:
    """Pull the latents towards the candidate that the judge prefers, pushed away from the other."""
    latents = await prior.encode(views)
    t, noise = _draw_pair(scene, latents, prior, knobs)
    noisy = add_noise(latents.detach(), noise, t, prior.schedule)
    x0 = await guided_x0(scene, prior, knobs, noisy, t, views.cameras)
    images = await prior.decode(x0)
    scores = await judge.score(images, [scene.prompt] * 2, torch.zeros(2, dtype=torch.bool))
    preference = prefer(scores.values[0], scores.values[1])
    scene.record("reward", scores.values.mean())
    scene.record("gap", preference.gap.mean())
    target = preferred_target(x0[0], x0[1], preference, knobs.tau, knobs.push)
    return per_element(reconstruction_loss(latents, clamp_latents(target, prior.latent_range)[None]), latents)


def _draw_pair(scene: Scene, latents: Tensor, prior: Prior, knobs: DreamDpoMethod) -> tuple[Tensor, Tensor]:
    """Draw times (2,) and noises (2, V, C, H, W) of a pair that differs in one of them only."""
    if knobs.pair == "timestep":
        t = draw_times(scene, prior, knobs, 2)
        return t, draw_noise(latents, scene.generator).expand(2, *latents.shape[1:])
    t = draw_times(scene, prior, knobs, 1).expand(2)
    return t, torch.cat([draw_noise(latents, scene.generator) for _ in range(2)])
