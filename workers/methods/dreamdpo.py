"""DreamDPO: score distillation towards the better of two predictions and away from the worse one.

DreamDPO, arXiv 2502.04370: pairwise examples, pairwise comparison, preference-guided optimization.

    two noised versions of the latents z (two noises at one t) → ε̂ᵃ, ε̂ᵇ and x̂₀ᵃ, x̂₀ᵇ → judge → winner w, loser l, gap

    paper      d L/d z = w(t) [(ε̂ʷ − εʷ) − (ε̂ˡ − εˡ)]/B  if gap ≥ τ,  else w(t) (ε̂ʷ − εʷ)/B
    released   d L/d z = w(t) [(ε̂ʷ − εʷ) − (ε̃ˡ − εˡ)]/B  if gap ≥ τ,  else w(t) ε̂ʷ/B
    anchored   L = ½ Σ (z − sg[target])² / B,  target = x̂₀ʷ + β (x̂₀ʷ − x̂₀ˡ)  if gap ≥ τ,  else x̂₀ʷ

with w(t) = 1 − ᾱ_t, ε̂ guided and ε̃ conditional only. The paper's form is its formula with the prior's Jacobian left
out and β in the step size. `released` is the published code, quirks included: its loser is not guided, and below τ
the noise is not subtracted. `anchored` is the default; as z − x̂₀ = (σ/α)(ε̂ − ε), its gradient is, for a pair at one t
and when nothing is rescaled or clamped,
    d L/d z = (σ/α) [(ε̂ʷ − εʷ) + β ((ε̂ʷ − εʷ) − (ε̂ˡ − εˡ))]/B :
β times the paper's preference gradient, anchored by plain SDS on the winner. Below τ, `paper` and `anchored` are SDS
on the winner (in its classic and its x₀ form).

Differs from the paper:
- The default form's anchor: the paper's first branch is a difference of two predictions, which by itself holds
  nothing near the data; ours adds SDS on the winner. β → ∞ is the paper's direction, β = 0 best-of-two SDS.
- In form `anchored` the target is clamped to the range of the latents where the prior has one.
- The returned loss is a mean over elements, as in `sds`.
- A second judge (the paper's multimodal model) overrides where it prefers one of the pair; where it is undecided,
  the judge's ranking stands. In form `released` it can, as in the published code, only turn "b wins" into "a wins",
  and leaves the judge's gap as it was, which is then negative.
A judge that answers once per object ranks all its views alike, one that answers per view ranks each view by itself,
unless `per` is "object". τ is in the judge's own unit: a value that suits one judge does not suit another.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from workers.diffusion import clamp_latents, draw_noise, guide
from workers.methods.sds import (
    Sample,
    combine_x0,
    draw_times,
    gradient_loss,
    guidance_scale,
    per_element,
    predict_both,
    reconstruction_loss,
    sds_weight,
)

if TYPE_CHECKING:
    from torch import Tensor

    from service.jobs.knobs import DistillationKnobs, DreamDpoMethod
    from workers.cameras import Cameras
    from workers.contracts import Prior, Reward, Views
    from workers.scene import Scene

__all__ = [
    "Preference",
    "draw_pair",
    "draw_two_noises",
    "dreamdpo",
    "dreamdpo_loss",
    "override_preference",
    "override_released",
    "paper_gradient",
    "prefer",
    "preferred_target",
    "released_gradient",
    "score_pair",
]


class Preference(NamedTuple):
    """What a judge's scores say about a pair."""

    a_wins: Tensor
    """(V,) per view or (1,) per object, bool; a tie prefers a."""
    gap: Tensor
    """score of the winner − score of the loser, same shape; negative only in form `released`."""


def prefer(score_a: Tensor, score_b: Tensor) -> Preference:
    """Rank a pair by its scores, (V,) or (1,) each."""
    return Preference(score_a >= score_b, (score_a - score_b).abs())


def override_preference(preference: Preference, score_a: Tensor, score_b: Tensor, tau: float) -> Preference:
    """Let a second judge's scores, (V,) or (1,), decide where they differ: such a preference counts as clear (≥ τ).

    A NaN, the score of an answer that could not be read, differs from nothing.
    """
    decided = (score_a > score_b) | (score_a < score_b)
    a_wins = torch.where(decided, score_a > score_b, preference.a_wins)
    return Preference(a_wins, torch.where(decided, preference.gap.clamp(min=tau), preference.gap))


def override_released(preference: Preference, score_a: Tensor, score_b: Tensor) -> Preference:
    """The published override: a wins if either judge says so; the gap is the first judge's, negative if overruled."""
    a_wins = preference.a_wins | (score_a > score_b)
    return Preference(a_wins, torch.where(a_wins == preference.a_wins, preference.gap, -preference.gap))


def preferred_target(x0_a: Tensor, x0_b: Tensor, preference: Preference, tau: float, push: float) -> Tensor:
    """x̂₀ʷ + β (x̂₀ʷ − x̂₀ˡ) where gap ≥ τ, exactly x̂₀ʷ elsewhere, for x̂₀ (V, C, H, W)."""
    winner, loser = _rank(x0_a, x0_b, preference)
    return torch.where(_column(preference.gap) < tau, winner, winner + push * (winner - loser))


def paper_gradient(residual: Tensor, preference: Preference, tau: float) -> Tensor:
    """rʷ − rˡ where gap ≥ τ, rʷ elsewhere, for the residuals r = w(t)(ε̂ − ε) of a pair, (2, V, C, H, W)."""
    winner, loser = _rank(residual[0], residual[1], preference)
    return torch.where(_column(preference.gap) < tau, winner, winner - loser)


def released_gradient(
    guided: Tensor, conditional: Tensor, noise: Tensor, preference: Preference, tau: float
) -> Tensor:
    """(ε̂ʷ − εʷ) − (ε̃ˡ − εˡ) where gap ≥ τ, ε̂ʷ elsewhere, for pairs (2, V, C, H, W), each weighted by w(t)."""
    guided_w, _ = _rank(guided[0], guided[1], preference)
    _, conditional_l = _rank(conditional[0], conditional[1], preference)
    noise_w, noise_l = _rank(noise[0], noise[1], preference)
    both = (guided_w - noise_w) - (conditional_l - noise_l)
    return torch.where(_column(preference.gap) < tau, guided_w, both)


def _rank(a: Tensor, b: Tensor, preference: Preference) -> tuple[Tensor, Tensor]:
    """Of two (V, C, H, W), what belongs to each view's winner, and what to its loser."""
    a_wins = _column(preference.a_wins)
    return torch.where(a_wins, a, b), torch.where(a_wins, b, a)


def _column(per_view: Tensor) -> Tensor:
    return per_view[:, None, None, None]


async def dreamdpo(
    scene: Scene,
    views: Views,
    prior: Prior,
    knobs: DreamDpoMethod,
    judge: Reward,
    override: Reward | None = None,
) -> Tensor:
    """Pull the latents towards the candidate that the judge prefers, away from the other."""
    latents = await prior.encode(views)
    sample = draw_pair(scene, latents, views.cameras, prior, knobs)
    if override is not None and not _asks_override(scene, knobs):
        override = None
    return per_element(await dreamdpo_loss(scene, sample, prior, knobs, (judge, override)), latents)


async def dreamdpo_loss(
    scene: Scene,
    sample: Sample,
    prior: Prior,
    knobs: DreamDpoMethod,
    judges: tuple[Reward, Reward | None],
) -> Tensor:
    """L of any form for a pair of noised versions (P = 2) of one object (G = 1); the second judge may be absent."""
    conditional, negative = await predict_both(
        scene.text, prior, sample.noisy(prior.schedule), sample.t, sample.cameras
    )
    x0 = combine_x0(scene, prior, knobs, conditional.x0, negative.x0)
    preference = await _compare(scene, await prior.decode(x0), knobs, judges)
    if knobs.form == "anchored":
        target = preferred_target(x0[0], x0[1], preference, knobs.tau, knobs.push)
        return reconstruction_loss(sample.latents, clamp_latents(target, prior.latent_range)[None])

    guided = guide(conditional.noise, negative.noise, guidance_scale(scene, knobs))
    weight = sds_weight("variance", sample.t, prior.schedule, guided)
    if knobs.form == "paper":
        gradient = paper_gradient(weight * (guided - sample.noise), preference, knobs.tau)
    else:
        gradient = released_gradient(
            weight * guided, weight * conditional.noise, weight * sample.noise, preference, knobs.tau
        )
    return gradient_loss(sample.latents, gradient[None])


async def _compare(
    scene: Scene, images: Tensor, knobs: DreamDpoMethod, judges: tuple[Reward, Reward | None]
) -> Preference:
    """Rank a pair of pictures (2, V, 3, H, W) by the judge, and let the second one override."""
    judge, override = judges
    values = await score_pair(scene, images, judge)
    scene.record("reward", values.mean())
    scores = values.mean(1, keepdim=True) if knobs.per == "object" else values
    preference = prefer(scores[0], scores[1])
    scene.record("gap", preference.gap.mean())
    if override is None:
        return preference
    second = await score_pair(scene, images, override)
    second = second.mean(1, keepdim=True) if knobs.per == "object" else second
    if knobs.form == "released":
        return override_released(preference, second[0], second[1])
    return override_preference(preference, second[0], second[1], knobs.tau)


async def score_pair(scene: Scene, images: Tensor, judge: Reward) -> Tensor:
    """Score a pair of pictures (2, V, 3, H, W) of one object: (2, V) or (2, 1)."""
    scores = await judge.score(images, scene.prompts(2), torch.zeros(2, dtype=torch.bool))
    return scores.values


def draw_pair(scene: Scene, latents: Tensor, cameras: Cameras, prior: Prior, knobs: DreamDpoMethod) -> Sample:
    """Draw times (2,) and noises (2, V, C, H, W) of a pair that differs in one of them only."""
    _check_one_group(latents)
    if knobs.pair == "timestep":
        t = draw_times(scene, prior, knobs, 2)
        return Sample(latents, cameras, t, draw_noise(latents, scene.generator).expand(2, *latents.shape[1:]))
    return draw_two_noises(scene, latents, cameras, prior, knobs)


def draw_two_noises(
    scene: Scene, latents: Tensor, cameras: Cameras, prior: Prior, knobs: DistillationKnobs
) -> Sample:
    """Draw one time and two noises (2, V, C, H, W)."""
    _check_one_group(latents)
    t = draw_times(scene, prior, knobs, 1).expand(2)
    return Sample(latents, cameras, t, torch.cat([draw_noise(latents, scene.generator) for _ in range(2)]))


def _check_one_group(latents: Tensor) -> None:
    if len(latents) != 1:
        raise ValueError(
            f"found {len(latents)} groups of views, but a judge compares two samples of one group; "
            "render one group per step"
        )


def _asks_override(scene: Scene, knobs: DreamDpoMethod) -> bool:
    """Draw whether the second judge takes part in this step."""
    drawn = torch.rand(1, generator=scene.generator).item()
    return scene.progress >= knobs.override_from and drawn < knobs.override_share
