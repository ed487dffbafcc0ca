"""Draw a prior's own pictures: DDIM (arXiv 2010.02502, eq. 12) with classifier-free guidance, as MVDream does it.

    x̂₀ = (x_t − √(1 − ᾱ_t) ε̂)/√ᾱ_t
    x_s = √ᾱ_s x̂₀ + √(1 − ᾱ_s − σ²) ε̂ + σ ε,   σ = η √((1 − ᾱ_s)/(1 − ᾱ_t)) √(1 − ᾱ_t/ᾱ_s)

from each time t to the one before it, s. Times are 1, 1 + k, 1 + 2k … < T with k = ⌊T / steps⌋, so there can be more
of them than asked for; ᾱ_s of the first is ᾱ₀, not 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch

from workers.diffusion import draw_noise, guide

if TYPE_CHECKING:
    from torch import Tensor

    from workers.contracts import Schedule

__all__ = ["DDIMTables", "Denoiser", "ddim_sample", "ddim_tables"]

Denoiser = Callable[["Tensor", "Tensor"], tuple["Tensor", "Tensor"]]
"""From noisy latents (N, …) and times (N,) to the noise predicted with the prompt and without it."""


class DDIMTables(NamedTuple):
    """What each step needs, from the least noise to the most: S numbers each."""

    times: Tensor
    """int64."""
    alphas: Tensor
    """ᾱ_t, float64."""
    alphas_before: Tensor
    """ᾱ_s, float64."""
    sigmas: Tensor
    """σ, float64."""


def ddim_tables(schedule: Schedule, steps: int, eta: float = 0.0) -> DDIMTables:
    """Look up the times and coefficients of a sampling of about `steps` steps; η = 0 draws no further noise."""
    num_timesteps = schedule.num_timesteps
    if not 1 <= steps <= num_timesteps:
        raise ValueError(f"DDIM takes 1 to {num_timesteps} steps on this schedule, not {steps}")
    times = torch.arange(1, num_timesteps, num_timesteps // steps)
    all_alphas = schedule.alphas_cumprod.double().cpu()
    alphas = all_alphas[times]
    before = torch.cat([all_alphas[:1], alphas[:-1]])
    sigmas = eta * ((1 - before) / (1 - alphas) * (1 - alphas / before)).sqrt()
    return DDIMTables(times, alphas, before, sigmas)


@torch.no_grad()
def ddim_sample(
    denoise: Denoiser,
    noise: Tensor,
    schedule: Schedule,
    *,
    steps: int,
    guidance_scale: float,
    eta: float = 0.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Turn noise (N, …) into latents; `generator` draws the further noise that η > 0 needs."""
    assert eta == 0 or generator is not None, "eta > 0 draws noise: a generator is needed"
    x = noise
    for t, alpha, before, sigma in reversed(list(zip(*ddim_tables(schedule, steps, eta), strict=True))):
        with_prompt, without = denoise(x, t.to(x.device).expand(len(x)))
        predicted = guide(with_prompt, without, guidance_scale)
        x0 = (x - float((1 - alpha).sqrt()) * predicted) / float(alpha.sqrt())
        x = float(before.sqrt()) * x0 + float((1 - before - sigma**2).sqrt()) * predicted
        if generator is not None and eta > 0:
            x = x + float(sigma) * draw_noise(x, generator)
    return x
