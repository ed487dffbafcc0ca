"""The arithmetic of diffusion models that every score distillation shares: pure functions of tensors.

Legend: x₀ clean latents, x_t = α x₀ + σ ε noisy ones with α = √ᾱ_t and σ = √(1 − ᾱ_t), ε̂ and x̂₀ predictions.
Latents are (G, V, C, H, W), times t (G,) int64, one for all views of a group.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from workers.contracts import Schedule

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "add_noise",
    "alpha_sigma",
    "clamp_latents",
    "cosine_schedule",
    "draw_noise",
    "draw_time",
    "guide",
    "linear_betas",
    "linear_schedule",
    "noise_from_x0",
    "rescale_x0",
    "time_window",
    "x0_from_noise",
]


def cosine_schedule(num_timesteps: int = 1000) -> Schedule:
    """ᾱ_t = cos²(π/2 · (t + ½)/T): the schedule of the embedded prior."""
    t = (torch.arange(num_timesteps, dtype=torch.float64) + 0.5) / num_timesteps
    return Schedule(torch.cos(t * (math.pi / 2)).square().float())


def linear_betas(num_timesteps: int = 1000, start: float = 0.00085, end: float = 0.012) -> Tensor:
    """β_t from `start` to `end`, linear in √β: (T,) float64."""
    return torch.linspace(start**0.5, end**0.5, num_timesteps, dtype=torch.float64).square()


def linear_schedule(num_timesteps: int = 1000, start: float = 0.00085, end: float = 0.012) -> Schedule:
    """ᾱ_t = Π (1 − β) of `linear_betas`: by default the schedule of Stable Diffusion and MVDream."""
    return Schedule((1 - linear_betas(num_timesteps, start, end)).cumprod(0).float())


def alpha_sigma(schedule: Schedule, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """Look up α = √ᾱ_t and σ = √(1 − ᾱ_t) for t (G,), shaped and typed to multiply `like` (G, …)."""
    alphas_cumprod = schedule.alphas_cumprod.to(like.device)[t].to(like.dtype)
    alphas_cumprod = alphas_cumprod.view(-1, *[1] * (like.ndim - 1))
    return alphas_cumprod.sqrt(), (1 - alphas_cumprod).sqrt()


def add_noise(latents: Tensor, noise: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
    """x_t = α x₀ + σ ε; differentiable to latents and noise."""
    alpha, sigma = alpha_sigma(schedule, t, noise)
    return alpha * latents + sigma * noise


def x0_from_noise(noisy: Tensor, noise: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
    """x̂₀ = (x_t − σ ε̂)/α: loses digits as t → T, where α vanishes."""
    alpha, sigma = alpha_sigma(schedule, t, noisy)
    return (noisy - sigma * noise) / alpha


def noise_from_x0(noisy: Tensor, x0: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
    """ε̂ = (x_t − α x̂₀)/σ: loses digits as t → 0, where σ vanishes."""
    alpha, sigma = alpha_sigma(schedule, t, noisy)
    return (noisy - alpha * x0) / sigma


def guide(conditional: Tensor, unconditional: Tensor, guidance_scale: float) -> Tensor:
    """Classifier-free guidance, u + s (c − u), of ε̂ or of x̂₀ (which is affine in ε̂, so both give the same).

    Scale 1 is the conditional prediction, 0 the unconditional one.
    """
    return torch.lerp(unconditional, conditional, guidance_scale)


def rescale_x0(x0: Tensor, x0_conditional: Tensor, rescale: float) -> Tensor:
    """Undo part of guidance's over-saturation: x̂₀ ← rescale · f x̂₀ + (1 − rescale) x̂₀.

    f = (std(x̂₀ conditional) + 1e-8)/(std(x̂₀) + 1e-8), unbiased, over all that belongs to one group
    (MVDream's x0-reconstruction; "Common diffusion noise schedules…", arXiv 2305.08891, §3.4).
    """
    per_group = tuple(range(1, x0.ndim))
    conditional_std = x0_conditional.std(per_group, keepdim=True)
    factor = (conditional_std + 1e-8) / (x0.std(per_group, keepdim=True) + 1e-8)
    return rescale * (factor * x0) + (1 - rescale) * x0


def clamp_latents(latents: Tensor, latent_range: tuple[float, float] | None) -> Tensor:
    """Clamp to the bounds that clean latents have, if they have any."""
    return latents if latent_range is None else latents.clamp(*latent_range)


def time_window(schedule: Schedule, t_min: float, t_max: float) -> tuple[int, int]:
    """Turn shares of the schedule into the first and last time drawn: ⌊t_min T⌋ … ⌊t_max T⌋, within the schedule."""
    last = schedule.num_timesteps - 1
    low, high = (min(int(fraction * schedule.num_timesteps), last) for fraction in (t_min, t_max))
    assert 0 <= low <= high, f"diffusion times must satisfy 0 <= t_min <= t_max, got {t_min} and {t_max}"
    return low, high


def draw_time(
    schedule: Schedule, t_min: float, t_max: float, generator: torch.Generator, num: int = 1
) -> Tensor:
    """Draw `num` times uniformly from the window between t_min and t_max, both ends included: (num,) int64."""
    low, high = time_window(schedule, t_min, t_max)
    return torch.randint(low, high + 1, (num,), generator=generator)


def draw_noise(like: Tensor, generator: torch.Generator) -> Tensor:
    """Draw ε ~ N(0, 1) of the shape, type and device of `like`, from a generator on the CPU."""
    return torch.randn(like.shape, generator=generator, dtype=like.dtype).to(like.device)
