"""Published networks at tiny random sizes, as their files would be fetched: in the published names and layouts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from reward_models import clip
from reward_models.reward3d import Reward3DScorer
from tests.unit.reward_models.small_networks import WORDS, make_blip_reward
from tests.unit.workers.priors.tiny_priors import write_stable_diffusion, write_tiny_mvdream
from workers.fields.hash_encoding import GridSizes
from workers.fields.hashgrid import HashGridSizes

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["FIELD", "MVDREAM", "SMALL_CLIP", "write_fetched"]

MVDREAM = "sd-v2.1-base-4view.pt"
SMALL_CLIP = clip.ClipConfig(12, 8, 16, 2, 2, 16, 2, 2, quick_gelu=False, image_px=16)
"""To be put in the place of `clip.VIT_H_14`: the published file of HPS does not say its sizes."""
FIELD = HashGridSizes(GridSizes(4, 2, 10, 4, 1.6), hidden_width=16, occupancy_cells=8)


def write_fetched(folder: Path) -> Path:
    """Write MVDream, Stable Diffusion, Reward3D with its vocabulary, and HPS v2.1."""
    write_tiny_mvdream(folder / MVDREAM)
    (folder / "stable-diffusion-2-1-base").mkdir()
    write_stable_diffusion(folder / "stable-diffusion-2-1-base")
    make_blip_reward(Reward3DScorer).save(folder / "Reward3D_Scorer.safetensors")
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    torch.manual_seed(0)
    state = clip.ClipTrunk(SMALL_CLIP).published_state()
    torch.save({"state_dict": state}, folder / "HPS_v2.1_compressed.pt")
    return folder
