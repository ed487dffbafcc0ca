"""Stable Diffusion 2.1 as a prior: one view per call, told by words from which side it sees the object.

arXiv 2112.10752, on diffusers' `UNet2DConditionModel`; both published variants, 2.1-base (predicts ε, 512 px) and 2.1
(predicts v, 768 px), from their diffusers folders. A camera is no input of it: as in DreamFusion (arXiv 2209.14988,
§3.2) the prompt says from where each view looks ("…, back view").
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor

from workers.contracts import Prediction, asked
from workers.diffusion import alpha_sigma, x0_from_noise
from workers.priors.diffusers_folder import (
    read_coder,
    read_prompt_encoder,
    read_scheduler,
    weights_in,
)
from workers.priors.latent_diffusion import LatentDiffusion
from workers.priors.view_prompts import DIRECTIONS, camera_angles, direction_index, with_direction
from workers.priors.weight_files import Target, checked_tensors, digest, fill, read_json, read_tensors

if TYPE_CHECKING:
    from pathlib import Path

    from workers.cameras import Cameras
    from workers.contracts import Schedule
    from workers.priors.clip_text import PromptEncoder, PromptTokens
    from workers.priors.vae import PictureCoder

__all__ = [
    "StableDiffusionPrior",
    "load_stable_diffusion",
    "noise_from_velocity",
    "x0_from_velocity",
]


def x0_from_velocity(noisy: Tensor, velocity: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
    """x̂₀ = α x_t − σ v̂, for the velocity v = α ε − σ x₀ (arXiv 2202.00512, appendix D)."""
    alpha, sigma = alpha_sigma(schedule, t, noisy)
    return alpha * noisy - sigma * velocity


def noise_from_velocity(noisy: Tensor, velocity: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
    """ε̂ = σ x_t + α v̂."""
    alpha, sigma = alpha_sigma(schedule, t, noisy)
    return sigma * noisy + alpha * velocity


class StableDiffusionPrior(LatentDiffusion):
    """The single-view prior: `contracts.Prior` with V = 1."""

    views_per_call = 1

    def __init__(
        self,
        unet: UNet2DConditionModel,
        coder: PictureCoder,
        prompts: PromptEncoder,
        tokens: PromptTokens,
        schedule: Schedule,
        *,
        predicts_velocity: bool,
    ) -> None:
        super().__init__(coder, prompts, tokens, schedule, int(unet.config["sample_size"]))
        self.unet, self.predicts_velocity = unet, predicts_velocity

    def encode_text(self, prompts: list[str]) -> Tensor:
        """Embed prompts as seen from each of the four directions: (len(prompts), 4 · 77, D), in `DIRECTIONS`' order."""
        return self._encode_from_everywhere([[with_direction(p, d) for d in DIRECTIONS] for p in prompts])

    def encode_negative_text(self, prompts: list[str]) -> Tensor:
        """Embed negative prompts, in the same shape: from wherever it is seen, no direction is to be avoided."""
        return self._encode_from_everywhere([[prompt] * len(DIRECTIONS) for prompt in prompts])

    def _encode_from_everywhere(self, prompts: list[list[str]]) -> Tensor:
        text = super().encode_text([prompt for directions in prompts for prompt in directions])
        return text.unflatten(0, (len(prompts), len(DIRECTIONS))).flatten(1, 2)

    @asked("predict")
    def predict(self, latents: Tensor, t: Tensor, text: Tensor, cameras: Cameras) -> Prediction:
        """Denoise (G, V, C, h, w), each view alone, at t (G,) under the text of its direction, text (G, 4 · 77, D).

        Differentiable to a text that requires it.
        """
        with torch.set_grad_enabled(text.requires_grad):
            groups, views = latents.shape[:2]
            elevation_deg, azimuth_deg = camera_angles(cameras)
            index = direction_index(elevation_deg, azimuth_deg)
            by_direction = text.unflatten(1, (len(DIRECTIONS), -1))
            seen = by_direction[torch.arange(groups, device=text.device)[:, None], index]
            answer = self.unet(
                latents.flatten(0, 1).to(self.unet.dtype),
                t.repeat_interleave(views),
                seen.flatten(0, 1).to(self.unet.dtype),
                return_dict=False,
            )[0]
            answer = answer.to(latents.dtype).unflatten(0, (groups, views))
            if not self.predicts_velocity:
                return Prediction(answer, x0_from_noise(latents, answer, t, self.schedule))
            return Prediction(
                noise_from_velocity(latents, answer, t, self.schedule),
                x0_from_velocity(latents, answer, t, self.schedule),
            )


def load_stable_diffusion(
    folder: Path,
    tokens: PromptTokens,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> StableDiffusionPrior:
    """Load Stable Diffusion from its diffusers folder, frozen, whole or not at all.

    `dtype` defaults to float32 on the CPU and bfloat16 elsewhere. Raises ValueError, naming file and tensor, when
    anything is missing, unexpected, misshapen, damaged or not finite.
    """
    target = Target.of(device, dtype)
    settings = read_json(folder / "unet" / "config.json")
    if settings.get("_class_name") != "UNet2DConditionModel":
        raise ValueError(
            f"'{folder.name}/unet/config.json' describes a {settings.get('_class_name', 'network')!s}, expected "
            "Stable Diffusion's UNet2DConditionModel"
        )
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(settings)
    path = weights_in(folder / "unet")
    names = {name: name for name in unet.state_dict()}
    found = checked_tensors(unet, read_tensors(path), names, f"unet/{path.name}")
    coder, prompts = read_coder(folder, target), read_prompt_encoder(folder, target)
    scheduler = read_scheduler(folder)
    fill(unet, found, target)
    prior = StableDiffusionPrior(
        unet, coder, prompts, tokens, scheduler.schedule, predicts_velocity=scheduler.predicts_velocity
    )
    prior.sha256 = digest(*(weights_in(folder / part) for part in ("text_encoder", "unet", "vae")))
    return prior.eval()
