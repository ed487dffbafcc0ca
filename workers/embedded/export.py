"""Write trained models as the files that the project ships: fp16 safetensors, checksum and training record."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch

from workers.embedded.train_prior import WEAK_STEP
from workers.embedded.train_rewards import REFEREE, REWARD, RewardRecipe, new_reward
from workers.embedded.trained import averaged_prior, stage_checkpoint, weak_prior
from workers.weights import EMBEDDED_PRIOR, EMBEDDED_REWARDS, EMBEDDED_WEAK_PRIOR

if TYPE_CHECKING:
    from torch import nn

    from reward_models.embedded import EmbeddedReward

__all__ = ["averaged_reward", "export_weights"]


def averaged_reward(folder: Path, recipe: RewardRecipe) -> EmbeddedReward:
    """Assemble a reward from the work folder's checkpoint (its averaged weights)."""
    reward = new_reward(recipe)
    reward.load_state_dict(stage_checkpoint(folder, recipe.stage)["ema"])
    return reward.eval().requires_grad_(False)


def export_weights(folder: Path, weights: Path) -> None:
    """Write every model that the work folder has trained, with its sha256 and training record beside it."""
    weights.mkdir(parents=True, exist_ok=True)
    commit = _commit()  # before the first file makes the checkout a dirty one
    if (folder / "prior.pt").exists():
        prior = averaged_prior(folder)
        runs = {"text": stage_checkpoint(folder, "text"), "prior": stage_checkpoint(folder, "prior")}
        _write(weights / EMBEDDED_PRIOR.name, prior, {"embedded_prior": prior.config.to_json()}, runs, commit)
        if (folder / f"prior-step{WEAK_STEP}.pt").exists():
            prior, runs["prior"] = weak_prior(folder), _until(runs["prior"], WEAK_STEP)
            path = weights / EMBEDDED_WEAK_PRIOR.name
            _write(path, prior, {"embedded_prior": prior.config.to_json()}, runs, commit)
    for recipe in (REWARD, REFEREE):
        if (folder / f"{recipe.stage}.pt").exists():
            reward = averaged_reward(folder, recipe)
            runs = {recipe.stage: stage_checkpoint(folder, recipe.stage)}
            name = EMBEDDED_REWARDS[recipe.name].name
            _write(weights / name, reward, {"embedded_reward": reward.config.to_json()}, runs, commit)


def _until(run: dict[str, Any], step: int) -> dict[str, Any]:
    """Tell what a stage's run was when it had taken `step` steps."""
    curve = [point for point in run["curve"] if point["step"] <= step]
    return run | {"step": step, "seconds": 60 * curve[-1]["minutes"], "curve": curve}


def _write(
    path: Path, model: nn.Module, metadata: dict[str, str], runs: dict[str, dict[str, Any]], commit: str
) -> None:
    tensors = {name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}
    safetensors.torch.save_file(tensors, path, metadata)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    path.with_suffix(".sha256").write_text(f"{digest}  {path.name}\n")
    record = {
        "file": path.name,
        "sha256": digest,
        "parameters": sum(tensor.numel() for tensor in tensors.values()),
        "commit": commit,
        "stages": {
            name: {
                "steps": run["step"],
                "samples": run["step"] * run["batch"],
                "seeds": run["seeds"],
                "minutes": round(run["seconds"] / 60, 1),
                "hardware": run.get("hardware", "not recorded"),
                "curve": run["curve"],
            }
            for name, run in runs.items()
        },
    }
    path.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")


def _commit() -> str:
    """Name the commit of this checkout; "-dirty" when files differ from it."""
    git = shutil.which("git")
    if git is None:
        return "unknown (no git)"
    answer = subprocess.run(  # noqa: S603 - a fixed command, and no shell
        [git, "describe", "--always", "--dirty", "--abbrev=12"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return answer.stdout.strip() or "unknown (no git checkout)"
