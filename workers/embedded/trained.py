"""Read back what training has written in its work folder: checkpoints by stage, and priors made of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from workers.embedded.train_prior import WEAK_STEP, SlotsAndUNet, new_prior

if TYPE_CHECKING:
    from pathlib import Path

    from workers.priors.embedded import EmbeddedPrior

__all__ = ["averaged_prior", "stage_checkpoint", "weak_prior"]


def averaged_prior(folder: Path) -> EmbeddedPrior:
    """Assemble the prior from the work folder's checkpoints (the averaged weights of the U-Net)."""
    return _assembled(folder, "prior")


def weak_prior(folder: Path) -> EmbeddedPrior:
    """Assemble the deliberately weak prior, of an early checkpoint; its text encoder is the finished one."""
    return _assembled(folder, f"prior-step{WEAK_STEP}")


def stage_checkpoint(folder: Path, stage: str) -> dict[str, Any]:
    """Load a stage's checkpoint; FileNotFoundError says how to get it."""
    path = folder / f"{stage}.pt"
    if not path.exists():
        raise FileNotFoundError(f"there is no {path}; run `make train-embedded`, which writes it")
    state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
    return state


def _assembled(folder: Path, stage: str) -> EmbeddedPrior:
    prior = new_prior()
    prior.text_encoder.load_state_dict(stage_checkpoint(folder, "text")["model"])
    SlotsAndUNet(prior).load_state_dict(stage_checkpoint(folder, stage)["ema"])
    return prior.eval().requires_grad_(False)
