"""Published rewards at sizes of a few thousand weights, random but fixed, with vocabularies to match."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from reward_models.blip import BlipConfig, BlipReward
from reward_models.clip import ClipConfig, ClipTrunk
from reward_models.tokens import BertTokens, ClipTokens

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["BLIP", "CLIP", "MERGES", "WORDS", "make_blip_reward", "make_clip", "pictures"]

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "cat", "front", "back", "view", "##s", ","]
"""BERT's special words and a few plain ones, as lines of a vocab.txt."""
MERGES = ["c a", "ca t</w>", "r e", "re d</w>"]
"""Byte pairs that know "cat" and "red"."""

BLIP = BlipConfig(
    image_px=16,
    patch_px=8,
    vision_width=16,
    vision_layers=3,
    vision_heads=2,
    vocabulary=len(WORDS) + 2,
    text_width=24,
    text_layers=3,
    text_heads=2,
    text_hidden=32,
    text_positions=100,
    projection_width=8,
)
CLIP = ClipConfig(
    embedding=12,
    patch_px=8,
    vision_width=16,
    vision_layers=2,
    vision_heads=2,
    text_width=16,
    text_layers=2,
    text_heads=2,
    quick_gelu=False,
    image_px=16,
    context=12,
    vocabulary=2 * 256 + len(MERGES) + 2,
)


def make_blip_reward(kind: type[BlipReward], **options: float) -> BlipReward:
    """Build a frozen reward whose weights are large enough for scores to differ."""
    torch.manual_seed(0)
    reward = kind(BLIP, BertTokens(WORDS, kind.text_length), **options)
    with torch.no_grad():
        for parameter in reward.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return reward.eval().requires_grad_(False)


def make_clip(config: ClipConfig = CLIP) -> ClipTrunk:
    torch.manual_seed(1)
    return ClipTrunk(config).eval().requires_grad_(False)


def make_clip_tokens() -> ClipTokens:
    return ClipTokens(MERGES, CLIP.context)


def pictures(*shape: int, seed: int = 0) -> Tensor:
    """Random images (*shape, 3, 20, 20) in [0, 1]."""
    return torch.rand(*shape, 3, 20, 20, generator=torch.Generator().manual_seed(seed))
