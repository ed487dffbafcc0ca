"""What all priors in the latent space of an autoencoder share: text, pictures and latents, everything but the U-Net.

Shapes: G groups, V views, H × W pixels of a render, C × h × w latents, L text tokens of D numbers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from workers.contracts import Schedule, asked

if TYPE_CHECKING:
    from torch import Tensor

    from workers.contracts import Views
    from workers.priors.clip_text import PromptEncoder, PromptTokens
    from workers.priors.vae import PictureCoder

__all__ = ["BACKGROUND_GRAY", "LatentDiffusion"]

BACKGROUND_GRAY = 0.5
"""sRGB behind a render which does not fill the picture: the middle of what the autoencoder takes, −1 … 1."""


class LatentDiffusion(nn.Module):
    """A frozen latent diffusion model without its denoiser; subclasses add `predict` and so become a `Prior`."""

    latent_range = None

    def __init__(
        self,
        coder: PictureCoder,
        prompts: PromptEncoder,
        tokens: PromptTokens,
        schedule: Schedule,
        latent_px: int,
    ) -> None:
        """Hold the networks; latents are square, `latent_px` on each side.

        Raises ValueError when text encoder and tokenizer do not belong together.
        """
        super().__init__()
        prompts.check(tokens)
        self.coder, self.prompts, self.tokens = coder, prompts, tokens
        self.schedule, self.latent_px = Schedule(schedule.alphas_cumprod.to(self.device)), latent_px
        self.sha256 = ""

    @property
    def device(self) -> torch.device:
        """Where the networks' weights are."""
        return next(self.coder.parameters()).device

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of one view's latents."""
        return self.coder.num_channels, self.latent_px, self.latent_px

    @property
    def image_px(self) -> int:
        """H = W that the encoder was trained with; renders of another size are resized to it."""
        return self.latent_px * self.coder.px_per_latent

    def unknown_words(self, prompt: str) -> list[str]:
        """None: byte pairs spell every word, known or not."""
        return []

    def is_truncated(self, prompt: str) -> bool:
        """Tell whether a part of `prompt` lies beyond the tokens that the text encoder reads."""
        words = prompt.split()
        # No token spans two words, so theirs add up; a word that alone fills all the room was probably cut.
        per_word = self.tokens(words)[1].sum(1) - 2
        room = self.tokens.length - 2
        return int(per_word.sum()) > room or bool((per_word == room).any())

    @torch.no_grad()
    def encode_text(self, prompts: list[str]) -> Tensor:
        """Embed prompts: (len(prompts), L, D) in float32; what does not fit is cut off."""
        token_ids, _ = self.tokens(prompts)
        text: Tensor = self.prompts(token_ids.to(self.device))
        return text

    def composite(self, views: Views) -> Tensor:
        """Put the renders in front of gray: (G, V, 3, H, W) in [0, 1], differentiable to the views."""
        return views.rgb + (1 - views.opacity) * BACKGROUND_GRAY

    @asked("encode")
    def encode(self, views: Views) -> Tensor:
        """Encode renders of any size to latents (G, V, C, h, w); differentiable to the views.

        The published code draws from the encoder's Gaussian, whose spread is tiny; a prior draws nothing: this is
        its mean. Renders are resized bilinearly, as in the published code.
        """
        pictures = self.composite(views)
        resized = F.interpolate(pictures.flatten(0, 1), size=(self.image_px,) * 2, mode="bilinear")
        return self.coder.encode(2 * resized - 1).unflatten(0, pictures.shape[:2])

    @asked("decode")
    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents to pictures (G, V, 3, image_px, image_px) in [0, 1]; differentiable to the latents.

        What lies outside is clamped, without gradient there.
        """
        pictures = self.coder.decode(latents.flatten(0, 1)).unflatten(0, latents.shape[:2])
        return (pictures / 2 + 0.5).clamp(0, 1)
