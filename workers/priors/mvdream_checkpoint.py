"""MVDream's networks on disk: the published checkpoint, its conversion to a diffusers folder, and writing the former.

`sd-v2.1-base-4view.pt` holds tensors under the names of the original latent diffusion code. A checkpoint is loaded
whole or not at all.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch

from workers.diffusion import linear_betas, linear_schedule
from workers.priors.clip_text import (
    PromptEncoder,
    TextConfig,
    from_open_clip,
    text_names,
    to_open_clip,
)
from workers.priors.diffusers_folder import read_coder, read_prompt_encoder, read_scheduler, weights_in
from workers.priors.mvdream import MVDreamPrior
from workers.priors.mvdream_unet import MultiViewUNet, UNetConfig, unet_names
from workers.priors.vae import PictureCoder, VAEConfig, vae_names
from workers.priors.weight_files import Target, checked_tensors, digest, fill, read_json, read_tensors, taken

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from workers.contracts import Schedule
    from workers.priors.clip_text import PromptTokens

__all__ = ["MVDreamConfig", "load_mvdream", "save_mvdream"]

_UNET, _VAE, _TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.model."
"""Under which names the published checkpoint holds the networks."""


@dataclass(frozen=True)
class MVDreamConfig:
    """Sizes of all networks; by default those of `sd-v2.1-base-4view`."""

    unet: UNetConfig = field(default_factory=UNetConfig)
    vae: VAEConfig = field(default_factory=VAEConfig)
    text: TextConfig = field(default_factory=TextConfig)
    latent_px: int = 32
    num_views: int = 4
    num_timesteps: int = 1000

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> MVDreamConfig:
        """Read what `save_mvdream` wrote beside a checkpoint; raises ValueError on what it cannot read."""
        try:
            parts = {"unet": UNetConfig, "vae": VAEConfig, "text": TextConfig}
            read = {name: part(**_with_tuples(found[name])) for name, part in parts.items()}
            return cls(**{**found, **read})
        except (KeyError, TypeError) as error:
            raise ValueError(f"this is no configuration of MVDream's networks ({error})") from error


def load_mvdream(
    path: Path, tokens: PromptTokens, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> MVDreamPrior:
    """Load the prior from a published checkpoint or from a diffusers folder, frozen, whole or not at all.

    A JSON file of the checkpoint's name beside it says its sizes if they are not the published ones; `tokens` is
    CLIP's tokenizer; `dtype` defaults to float32 on the CPU and bfloat16 elsewhere. Raises ValueError, naming file
    and tensor, when anything is missing, unexpected, misshapen, damaged or not finite.
    """
    target = Target.of(device, dtype)
    prior = _from_folder(path, tokens, target) if path.is_dir() else _from_checkpoint(path, tokens, target)
    return prior.eval()


def _from_checkpoint(path: Path, tokens: PromptTokens, target: Target) -> MVDreamPrior:
    sidecar = path.with_suffix(".json")
    config = MVDreamConfig.from_json(read_json(sidecar)) if sidecar.is_file() else MVDreamConfig()
    tensors = read_tensors(path)
    with torch.device("meta"):
        unet = MultiViewUNet(config.unet)
        coder = PictureCoder.of_published(config.vae)
        prompts = PromptEncoder.of_published(config.text)
    schedule = linear_schedule(config.num_timesteps)
    _check_schedule(tensors, schedule, path.name)
    text = from_open_clip(taken(tensors, _TEXT), config.text)
    names = text_names(prompts)
    needed = {name: tensor for name, tensor in text.items() if name in names}
    pairs = [
        (unet, checked_tensors(unet, taken(tensors, _UNET), unet_names(unet), path.name)),
        (coder, checked_tensors(coder, taken(tensors, _VAE), vae_names(coder), path.name)),
        (prompts, checked_tensors(prompts, needed, names, path.name)),
    ]
    for network, found in pairs:
        fill(network, found, target)
    prior = MVDreamPrior(unet, coder, prompts, tokens, schedule, config.latent_px, config.num_views)
    used = (_UNET, _VAE, _TEXT, *_schedule_tables(config.num_timesteps))
    prior.unused_tensors = (
        *sorted(name for name in tensors if not name.startswith(used)),
        *(_TEXT + name for name in sorted(set(text) - set(needed))),
    )
    prior.sha256 = digest(path)
    return prior


def _from_folder(folder: Path, tokens: PromptTokens, target: Target) -> MVDreamPrior:
    settings = read_json(folder / "unet" / "config.json")
    if "model_channels" not in settings:
        raise ValueError(
            f"'{folder.name}/unet/config.json' describes a {settings.get('_class_name', 'network')!s}, expected "
            "MVDream's MultiViewUNetModel (with model_channels and camera_dim)"
        )
    with torch.device("meta"):
        unet = MultiViewUNet(UNetConfig.from_published({"use_linear_in_transformer": True, **settings}))
    path = weights_in(folder / "unet")
    found = checked_tensors(unet, read_tensors(path), unet_names(unet), f"unet/{path.name}")
    coder, prompts = read_coder(folder, target), read_prompt_encoder(folder, target)
    scheduler = read_scheduler(folder)
    if scheduler.predicts_velocity:
        raise ValueError(f"'{folder.name}' predicts v, but MVDream's U-Net predicts the noise")
    fill(unet, found, target)
    prior = MVDreamPrior(unet, coder, prompts, tokens, scheduler.schedule, settings.get("image_size", 32))
    prior.sha256 = digest(*(weights_in(folder / part) for part in ("text_encoder", "unet", "vae")))
    return prior


def save_mvdream(prior: MVDreamPrior, config: MVDreamConfig, path: Path) -> None:
    """Write the networks in the published layout (.pt or .safetensors), and `config` in a JSON file beside it.

    The text tower's last block, which is never used, is left out.
    """
    tensors = dict(_schedule_tables(config.num_timesteps))
    text = {name: prior.prompts.state_dict()[ours] for name, ours in text_names(prior.prompts).items()}
    parts = [
        (_UNET, {name: prior.unet.state_dict()[ours] for name, ours in unet_names(prior.unet).items()}),
        (_VAE, _as_convolutions(prior.coder)),
        (_TEXT, to_open_clip(text)),
    ]
    for prefix, part in parts:
        tensors |= {prefix + name: tensor.contiguous() for name, tensor in part.items()}
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(tensors, path)
    else:
        torch.save(tensors, path)
    path.with_suffix(".json").write_text(json.dumps(asdict(config), indent=1))


def _as_convolutions(coder: PictureCoder) -> dict[str, Tensor]:
    """The autoencoder's tensors under published names; its attention layers are 1 × 1 convolutions there."""
    state = coder.state_dict()
    tensors = {name: state[ours] for name, ours in vae_names(coder).items()}
    return {
        name: tensor[..., None, None] if ".attn_1." in name and tensor.ndim == 2 else tensor
        for name, tensor in tensors.items()
    }


def _schedule_tables(num_timesteps: int) -> dict[str, Tensor]:
    """The schedule as the published checkpoint holds it."""
    alphas_cumprod = linear_schedule(num_timesteps).alphas_cumprod
    return {"betas": linear_betas(num_timesteps).float(), "alphas_cumprod": alphas_cumprod}


def _check_schedule(tensors: dict[str, Tensor], schedule: Schedule, source: str) -> None:
    found = tensors.get("alphas_cumprod")
    if found is not None and not (
        found.shape == schedule.alphas_cumprod.shape
        and torch.allclose(found.float(), schedule.alphas_cumprod, atol=1e-5)
    ):
        raise ValueError(
            f"{source}: tensor 'alphas_cumprod' is not MVDream's schedule; the file belongs to another model"
        )


def _with_tuples(found: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}
