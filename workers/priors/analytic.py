"""A prior whose best answer is known: Gaussian data, so that convergence is a theorem in our tests.

For data x₀ ~ N(μ, s²I) and x_t = α x₀ + σ ε the expected noise is
    ε̂ = E[ε | x_t] = σ (x_t − α μ)/(α² s² + σ²),
and x̂₀ = E[x₀ | x_t] = μ + α s² (x_t − α μ)/(α² s² + σ²). The prompt chooses μ from a table.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from workers.contracts import Prediction, Schedule, Views, asked
from workers.diffusion import alpha_sigma, cosine_schedule
from workers.priors import rgba

if TYPE_CHECKING:
    from torch import Tensor

    from workers.cameras import Cameras

__all__ = ["AnalyticPrior", "GaussianDenoiser", "disk_latents"]


class GaussianDenoiser(nn.Module):
    """The exact denoiser of N(μ, s²I), as a module: forward hooks can count its calls."""

    def __init__(self, spread: float) -> None:
        super().__init__()
        self.spread = spread

    def forward(self, noisy: Tensor, alpha: Tensor, sigma: Tensor, mean: Tensor) -> Prediction:
        """ε̂ and x̂₀ for noisy latents (G, V, C, H, W), α and σ broadcastable to them, means μ (G, V, C, H, W)."""
        residual = (noisy - alpha * mean) / (alpha**2 * self.spread**2 + sigma**2)
        return Prediction(sigma * residual, mean + alpha * self.spread**2 * residual)


class AnalyticPrior:
    """A diffusion prior over premultiplied RGBA pictures, Gaussian around one mean per prompt."""

    latent_range = None

    def __init__(
        self,
        means: dict[str, Tensor],
        spread: float = 0.1,
        views_per_call: int = 4,
        num_timesteps: int = 1000,
    ) -> None:
        """Take latents μ (4, H, W) or (V, 4, H, W) per prompt; "" defaults to the mean of all.

        `spread` is s, the standard deviation of the data around μ.
        """
        self.prompts = ["", *(prompt for prompt in means if prompt)]
        table = torch.stack([means[prompt] for prompt in self.prompts if prompt])
        unconditional = means.get("", table.mean(0))
        self._means = torch.cat([unconditional[None], table])
        self.denoiser = GaussianDenoiser(spread)
        self.views_per_call = views_per_call
        self.schedule: Schedule = cosine_schedule(num_timesteps)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(4, H, W)."""
        channels, height, width = self._means.shape[-3:]
        return channels, height, width

    @property
    def image_px(self) -> int:
        """H = W of the means."""
        return self._means.shape[-1]

    def encode_text(self, prompts: list[str]) -> Tensor:
        """Embed prompts one-hot, (len(prompts), 1, number of means); one it does not know counts as ""."""
        rows = [self.prompts.index(prompt) if prompt in self.prompts else 0 for prompt in prompts]
        one_hot = torch.eye(len(self.prompts), dtype=self._means.dtype)
        return one_hot[rows][:, None]

    def unknown_words(self, prompt: str) -> list[str]:
        """Name the words which no known prompt has."""
        known = {word for known_prompt in self.prompts for word in known_prompt.split()}
        return list(dict.fromkeys(word for word in prompt.split() if word not in known))

    def composite(self, views: Views) -> Tensor:
        """Put the renders in front of the background: (G, V, 3, H, W), differentiable to the views."""
        return rgba.composite(views.rgb, views.opacity)

    @asked("encode")
    def encode(self, views: Views) -> Tensor:
        """Encode renders to latents (G, V, 4, H, W); differentiable to the views."""
        return rgba.encode_rgba(views)

    @asked("predict")
    def predict(self, latents: Tensor, t: Tensor, text: Tensor, cameras: Cameras) -> Prediction:
        """Denoise exactly; the cameras play no part: view v has its own mean or that of all."""
        with torch.set_grad_enabled(text.requires_grad):
            mean = torch.tensordot(text[:, 0].to(latents.dtype), self._means.to(latents.dtype), 1)
            mean = mean if mean.ndim == latents.ndim else mean[:, None]
            alpha, sigma = alpha_sigma(self.schedule, t, latents)
            prediction: Prediction = self.denoiser(latents, alpha, sigma, mean)
            return prediction

    @asked("decode")
    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents to pictures (G, V, 3, H, W) in [0, 1]; differentiable to the latents."""
        return rgba.latents_to_image(latents)


def disk_latents(color: tuple[float, float, float], radius: float, image_px: int) -> Tensor:
    """Make a mean: what an evenly colored, unshaded ball looks like from everywhere, latents (4, H, W).

    `radius` is a fraction of half the picture; the edge is a pixel wide.
    """
    axis = (torch.arange(image_px) + 0.5) / image_px * 2 - 1
    distance = torch.stack(torch.meshgrid(axis, axis, indexing="ij")).norm(dim=0)
    opacity = ((radius - distance) * (image_px / 2) + 0.5).clamp(0, 1)[None]
    rgb = opacity * torch.tensor(color).view(3, 1, 1)
    return torch.cat([2 * rgb - opacity, 2 * opacity - 1])
