"""Write trained models as the files that the project ships: fp16 safetensors, checksum and training record."""

from __future__ import annotations

import hashlib
import json
import platform
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch

from reward_models.embedded import EmbeddedReward, EmbeddedRewardConfig
from workers.embedded.captions import vocabulary
from workers.embedded.train_prior import SlotsAndUNet, new_prior
from workers.embedded.train_rewards import REWARD_NAME
from workers.embedded.world import COLORS, NAMES
from workers.weights import EMBEDDED_PRIOR, EMBEDDED_REWARD

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from workers.priors.embedded import EmbeddedPrior

__all__ = ["averaged_prior", "averaged_reward", "export_weights"]


def averaged_prior(folder: Path) -> EmbeddedPrior:
    """Assemble the prior from the work folder's checkpoints (the averaged weights of the U-Net)."""
    prior = new_prior()
    prior.text_encoder.load_state_dict(_checkpoint(folder, "text")["model"])
    SlotsAndUNet(prior).load_state_dict(_checkpoint(folder, "prior")["ema"])
    return prior.eval().requires_grad_(False)


def averaged_reward(folder: Path) -> EmbeddedReward:
    """Assemble the multi-view reward from the work folder's checkpoint (its averaged weights)."""
    reward = EmbeddedReward(EmbeddedRewardConfig(REWARD_NAME, vocabulary(), len(NAMES) + 1, len(COLORS) + 1))
    reward.load_state_dict(_checkpoint(folder, "reward")["ema"])
    return reward.eval().requires_grad_(False)


def export_weights(folder: Path, weights: Path) -> None:
    """Write every model that the work folder has trained, with its sha256 and training record beside it."""
    weights.mkdir(parents=True, exist_ok=True)
    if (folder / "prior.pt").exists():
        prior = averaged_prior(folder)
        runs = {"text": _checkpoint(folder, "text"), "prior": _checkpoint(folder, "prior")}
        _write(weights / EMBEDDED_PRIOR.name, prior, {"embedded_prior": prior.config.to_json()}, runs)
    if (folder / "reward.pt").exists():
        reward = averaged_reward(folder)
        runs = {"reward": _checkpoint(folder, "reward")}
        _write(weights / EMBEDDED_REWARD.name, reward, {"embedded_reward": reward.config.to_json()}, runs)


def _checkpoint(folder: Path, stage: str) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(folder / f"{stage}.pt", weights_only=True, map_location="cpu")
    return state


def _write(path: Path, model: nn.Module, metadata: dict[str, str], runs: dict[str, dict[str, Any]]) -> None:
    tensors = {name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}
    safetensors.torch.save_file(tensors, path, metadata)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    path.with_suffix(".sha256").write_text(f"{digest}  {path.name}\n")
    record = {
        "file": path.name,
        "sha256": digest,
        "parameters": sum(tensor.numel() for tensor in tensors.values()),
        "hardware": f"{platform.machine()} CPU, torch {torch.__version__}",
        "stages": {
            name: {
                "steps": run["step"],
                "minutes": round(run["seconds"] / 60, 1),
                "curve": run["curve"],
            }
            for name, run in runs.items()
        },
    }
    path.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
