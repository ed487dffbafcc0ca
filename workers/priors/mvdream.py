"""MVDream: the multi-view diffusion prior of the published preference methods.

"MVDream: Multi-view Diffusion for 3D Generation", arXiv 2308.16512: Stable Diffusion 2.1, fine-tuned to denoise four
views of one object together, each under its camera. `mvdream_checkpoint.py` loads the published weights.

Differs from the published code: `encode` gives the mean of the encoder's Gaussian, not a sample.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from workers.contracts import Prediction, asked
from workers.diffusion import draw_noise, x0_from_noise
from workers.priors.ddim import ddim_sample
from workers.priors.latent_diffusion import LatentDiffusion
from workers.priors.mvdream_cameras import camera_condition

if TYPE_CHECKING:
    from torch import Tensor

    from workers.cameras import Cameras
    from workers.contracts import Schedule
    from workers.priors.clip_text import PromptEncoder, PromptTokens
    from workers.priors.mvdream_unet import MultiViewUNet
    from workers.priors.vae import PictureCoder

__all__ = ["MVDreamPrior", "sample_views"]

PREVIEW_SUFFIX = ", 3d asset"
"""What the published sampling script adds to a prompt. Source: MVDream, scripts/t2i.py."""


class MVDreamPrior(LatentDiffusion):
    """The multi-view prior: `contracts.Prior` with V = 4 views per call."""

    def __init__(
        self,
        unet: MultiViewUNet,
        coder: PictureCoder,
        prompts: PromptEncoder,
        tokens: PromptTokens,
        schedule: Schedule,
        latent_px: int = 32,
        num_views: int = 4,
    ) -> None:
        super().__init__(coder, prompts, tokens, schedule, latent_px)
        self.unet, self.views_per_call = unet, num_views
        self.unused_tensors: tuple[str, ...] = ()
        """Names in the checkpoint that no network of ours has."""

    @asked("predict")
    def predict(self, latents: Tensor, t: Tensor, text: Tensor, cameras: Cameras) -> Prediction:
        """Denoise (G, V, C, h, w) at t (G,) under text (G, L, D); differentiable to a text that requires it."""
        with torch.set_grad_enabled(text.requires_grad):
            groups, views = latents.shape[:2]
            noise = self.unet(
                latents.flatten(0, 1),
                t.repeat_interleave(views),
                text.repeat_interleave(views, 0),
                camera_condition(cameras).flatten(0, 1),
                views,
            ).unflatten(0, (groups, views))
            return Prediction(noise, x0_from_noise(latents, noise, t, self.schedule))


def sample_views(
    prior: MVDreamPrior,
    prompt: str,
    cameras: Cameras,
    generator: torch.Generator,
    *,
    steps: int = 50,
    guidance_scale: float = 10.0,
    suffix: str = PREVIEW_SUFFIX,
) -> Tensor:
    """Draw what the prior sees in a prompt from cameras (1, V): latents (1, V, C, h, w).

    Defaults as in the published sampling script; its elevation is 15°.
    """
    views = cameras.c2w.shape[1]
    text = prior.encode_text([prompt + suffix, ""]).repeat_interleave(views, 0)
    condition = camera_condition(cameras).flatten(0, 1).repeat(2, 1)

    def denoise(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        with_prompt, without = prior.unet(x.repeat(2, 1, 1, 1), t.repeat(2), text, condition, views).chunk(2)
        return with_prompt, without

    noise = draw_noise(torch.empty(views, *prior.latent_shape, device=prior.device), generator)
    sampled = ddim_sample(denoise, noise, prior.schedule, steps=steps, guidance_scale=guidance_scale)
    return sampled[None]
