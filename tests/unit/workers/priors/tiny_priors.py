"""MVDream and Stable Diffusion at tiny random sizes, on disk in the layouts in which they are published."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors.torch import save_file

from reward_models.tokens import ClipTokens
from workers.cameras import orbit_cameras
from workers.contracts import Views
from workers.diffusion import linear_schedule
from workers.priors.clip_text import PromptEncoder, TextConfig
from workers.priors.mvdream import MVDreamPrior
from workers.priors.mvdream_checkpoint import MVDreamConfig, save_mvdream
from workers.priors.mvdream_unet import MultiViewUNet, UNetConfig, unet_names
from workers.priors.vae import PictureCoder, VAEConfig

if TYPE_CHECKING:
    from pathlib import Path

TINY = MVDreamConfig(
    unet=UNetConfig(
        model_channels=32, channel_mult=(1, 2), num_res_blocks=1, num_head_channels=16, context_dim=32
    ),
    vae=VAEConfig(ch=32, ch_mult=(1, 2), num_res_blocks=1),
    text=TextConfig(width=32, layers=3, heads=2, mlp_width=64, vocab_size=514),
    latent_px=8,
)


TOKENS = ClipTokens(merges=[])
"""CLIP's tokenizer before any merge: every byte is a token, at the end of a word another one."""


def tiny_mvdream(config: MVDreamConfig = TINY, seed: int = 0) -> MVDreamPrior:
    """Build MVDream with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        networks = (
            MultiViewUNet(config.unet),
            PictureCoder.of_published(config.vae),
            PromptEncoder.of_published(config.text),
        )
    prior = MVDreamPrior(*networks, TOKENS, linear_schedule(), config.latent_px, config.num_views)
    prior.eval().requires_grad_(False)
    return prior


def write_tiny_mvdream(path: Path, seed: int = 0) -> MVDreamPrior:
    """Write a tiny checkpoint in the published layout."""
    prior = tiny_mvdream(seed=seed)
    save_mvdream(prior, TINY, path)
    return prior


def write_diffusers_parts(folder: Path, prior: MVDreamPrior, prediction_type: str = "epsilon") -> None:
    """Write all parts of a diffusers folder but the U-Net."""
    for name, part in (("vae", prior.coder.vae), ("text_encoder", prior.prompts.clip)):
        part.save_pretrained(folder / name)
    settings = {
        "num_train_timesteps": 1000,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "prediction_type": prediction_type,
    }
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(settings))


def write_mvdream_folder(folder: Path) -> MVDreamPrior:
    """Write a tiny MVDream as the published conversion does: the U-Net's tensors keep their first names."""
    prior = tiny_mvdream()
    write_diffusers_parts(folder, prior)
    (folder / "unet").mkdir()
    settings = {
        "_class_name": "MultiViewUNetModel",
        "image_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "model_channels": 32,
        "channel_mult": [1, 2],
        "num_res_blocks": 1,
        "attention_resolutions": [4, 2, 1],
        "num_head_channels": 16,
        "context_dim": 32,
        "camera_dim": 16,
        "transformer_depth": 1,
    }
    (folder / "unet" / "config.json").write_text(json.dumps(settings))
    state = prior.unet.state_dict()
    tensors = {name: state[ours] for name, ours in unet_names(prior.unet).items()}
    save_file(tensors, folder / "unet" / "diffusion_pytorch_model.safetensors")
    return prior


def write_stable_diffusion(folder: Path, prediction_type: str = "epsilon") -> UNet2DConditionModel:
    """Write a tiny Stable Diffusion as a diffusers folder."""
    write_diffusers_parts(folder, tiny_mvdream(), prediction_type)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(32, 64),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            attention_head_dim=(2, 4),
            cross_attention_dim=32,
            use_linear_projection=True,
        )
    unet.save_pretrained(folder / "unet")
    return unet


def random_views(groups: int, num_views: int, px: int = 16, azimuth_deg: float = 0.0) -> Views:
    """Random pictures of half transparent things."""
    generator = torch.Generator().manual_seed(3)
    opacity = torch.rand(groups, num_views, 1, px, px, generator=generator)
    rgb = torch.rand(groups, num_views, 3, px, px, generator=generator) * opacity
    azimuths = azimuth_deg + torch.arange(num_views) * 360 / num_views
    cameras = orbit_cameras(azimuths.expand(groups, -1), torch.tensor(15.0), 3.0, 40.0)
    return Views(rgb, opacity, torch.zeros_like(opacity), cameras)
