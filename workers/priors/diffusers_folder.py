"""Reading the parts of a model that is published as a folder in diffusers' layout, strictly and offline."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from transformers import CLIPTextConfig

from workers.diffusion import linear_schedule
from workers.priors.clip_text import PromptEncoder
from workers.priors.vae import PictureCoder
from workers.priors.weight_files import checked_tensors, fill, read_json, read_tensors

if TYPE_CHECKING:
    from pathlib import Path

    from workers.contracts import Schedule
    from workers.priors.weight_files import Target

__all__ = ["SchedulerSettings", "read_coder", "read_prompt_encoder", "read_scheduler", "weights_in"]

_WEIGHTS = (
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.fp16.safetensors",
    "diffusion_pytorch_model.bin",
    "model.safetensors",
    "model.fp16.safetensors",
    "pytorch_model.bin",
)
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""What diffusers called the layers of an autoencoder's attention before version 0.15."""


class SchedulerSettings(NamedTuple):
    """What `scheduler/scheduler_config.json` says about the diffusion."""

    schedule: Schedule
    predicts_velocity: bool
    """Whether the U-Net predicts v = α ε − σ x₀ instead of ε."""


def weights_in(folder: Path) -> Path:
    """Find the file of weights in a model's folder; raises ValueError, naming the candidates, if there is none."""
    for name in _WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    raise ValueError(f"there are no weights in '{folder.name}'; expected one of {', '.join(_WEIGHTS)}")


def read_coder(folder: Path, target: Target) -> PictureCoder:
    """Read the autoencoder of a model: `vae/config.json` and its weights."""
    settings = read_json(folder / "vae" / "config.json")
    with torch.device("meta"):
        coder = PictureCoder(AutoencoderKL.from_config(settings))
    path = weights_in(folder / "vae")
    tensors = {}
    for name, tensor in read_tensors(path).items():
        layer, _, kind = name.rpartition(".")
        block, _, last = layer.rpartition(".")
        old = ".attentions." in name and last in _OLD_ATTENTION
        tensors[f"{block}.{_OLD_ATTENTION[last]}.{kind}" if old else name] = tensor
    names = {name.removeprefix("vae."): name for name in coder.state_dict()}
    fill(coder, checked_tensors(coder, tensors, names, f"vae/{path.name}"), target)
    return coder


def read_prompt_encoder(folder: Path, target: Target) -> PromptEncoder:
    """Read the text encoder of a model: `text_encoder/config.json` and its weights."""
    settings = CLIPTextConfig.from_dict(read_json(folder / "text_encoder" / "config.json"))
    with torch.device("meta"):
        encoder = PromptEncoder(settings)
    path = weights_in(folder / "text_encoder")
    tensors = {
        name.removeprefix("text_model."): tensor
        for name, tensor in read_tensors(path).items()
        if not name.endswith("position_ids")
    }
    names = {name.removeprefix("clip."): name for name in encoder.state_dict()}
    found = checked_tensors(encoder, tensors, names, f"text_encoder/{path.name}")
    fill(encoder, found, target)
    return encoder


def read_scheduler(folder: Path) -> SchedulerSettings:
    """Read the diffusion's schedule; raises ValueError unless β is linear in its root and ε or v is predicted."""
    settings = read_json(folder / "scheduler" / "scheduler_config.json")
    kind, prediction = settings.get("beta_schedule"), settings.get("prediction_type", "epsilon")
    if kind != "scaled_linear":
        raise ValueError(f"the scheduler's beta_schedule is {kind!r}; only 'scaled_linear' is supported")
    if prediction not in ("epsilon", "v_prediction"):
        raise ValueError(
            f"the scheduler's prediction_type is {prediction!r}, expected 'epsilon' or 'v_prediction'"
        )
    schedule = linear_schedule(settings["num_train_timesteps"], settings["beta_start"], settings["beta_end"])
    return SchedulerSettings(schedule, prediction == "v_prediction")
