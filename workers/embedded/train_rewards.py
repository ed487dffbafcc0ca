"""Train the embedded rewards: stages "reward" and "referee" of `workers/embedded/train.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from reward_models.embedded import EmbeddedReward, EmbeddedRewardConfig, SlotLogits
from workers.embedded.captions import random_caption, vocabulary
from workers.embedded.damage import damaged, weathered
from workers.embedded.dataset import NO_COLOR, Batch, Pictures
from workers.embedded.train_prior import described
from workers.embedded.training import TrainingRun, has_fast_bfloat16, moved_to
from workers.embedded.world import COLORS, NAMES, random_description
from workers.priors.rgba import latents_to_image

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["REWARD_NAME", "train_reward"]


REWARD_NAME = "embedded-multiview"


def train_reward(folder: Path, steps: int, batch: int = 32, device: str = "cpu") -> EmbeddedReward:
    """Train a reward on painted, weathered and damaged pictures, and its reader on captions made on the fly."""
    seed = 7
    torch.manual_seed(seed)
    config = EmbeddedRewardConfig(REWARD_NAME, vocabulary(), len(NAMES) + 1, len(COLORS) + 1)
    reward = EmbeddedReward(config).to(device)
    optimizer = torch.optim.AdamW(reward.parameters(), 1e-3, (0.9, 0.98), weight_decay=0.02)
    run = TrainingRun(
        "reward", folder, reward, [optimizer], steps, torch.Generator().manual_seed(seed), ema_decay=0.998
    )
    pictures = Pictures(folder)
    fast = has_fast_bfloat16(device)

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        painted = pictures.sample(batch, run.generator)
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=fast):
            viewed, viewed_numbers = _viewer_loss(reward, painted, run.generator)
            read, read_numbers = _reader_loss(reward, np.random.default_rng((seed, step)), 2 * batch)
        return viewed + read, viewed_numbers | read_numbers

    run.fit(loss)
    return reward


def _viewer_loss(
    reward: EmbeddedReward, painted: Batch, generator: torch.Generator
) -> tuple[Tensor, dict[str, float]]:
    latents = weathered(painted.latents, generator)
    device = reward.reader.queries.device
    pictures = latents_to_image(torch.cat([latents, damaged(latents, generator)])).to(device)
    painted = moved_to(painted, device)
    seen, soundness = reward.viewer(pictures)
    sound = torch.arange(len(pictures), device=device) < len(latents)
    names = torch.where(painted.names < 0, len(NAMES), painted.names)
    seen = SlotLogits(*(x[sound] for x in seen))
    value, wrong = _choice_loss(seen, names, painted.colors, painted.relation)
    unsound = F.binary_cross_entropy_with_logits(soundness, sound.float())
    right = ((soundness > 0) == sound).float().mean()
    return value + unsound, {"viewed_wrong": wrong, "soundness_right": right.item()}


def _reader_loss(
    reward: EmbeddedReward, rng: np.random.Generator, batch: int
) -> tuple[Tensor, dict[str, float]]:
    descriptions = [random_description(rng) for _ in range(batch)]
    ids = reward.word_ids([random_caption(description, rng) for description in descriptions])
    forgotten = torch.from_numpy(rng.random(ids.shape) < 0.02).to(ids.device) & (ids > 0)
    read = reward.reader(torch.where(forgotten, 1, ids))
    truth = {key: value.to(ids.device) for key, value in described(descriptions)[0].items()}
    value, wrong = _choice_loss(read, truth["name"], truth["color"], truth["relation"], read_unnamed=True)
    return value, {"read_wrong": wrong}


def _choice_loss(
    logits: SlotLogits, names: Tensor, colors: Tensor, relation: Tensor, *, read_unnamed: bool = False
) -> tuple[Tensor, float]:
    """Cross-entropies of both slots and the relation.

    Pictures never show that a color was not named, so the viewer skips such slots; the reader learns to say it.
    """
    counted = (names < len(NAMES)) & (read_unnamed | (colors != NO_COLOR))
    value = F.cross_entropy(logits.name.flatten(0, 1), names.flatten())
    value = value + F.cross_entropy(logits.color[counted], colors[counted])
    value = value + F.cross_entropy(logits.relation, relation)
    wrong = (logits.name.argmax(-1) != names) | counted & (logits.color.argmax(-1) != colors)
    return value, wrong.any(1).float().mean().item()
