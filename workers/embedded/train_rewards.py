"""Train the embedded rewards: stages "reward" and "referee" of `workers/embedded/train.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from reward_models.embedded import NEXT, EmbeddedReward, EmbeddedRewardConfig, SlotLogits
from workers.embedded.captions import random_caption, vocabulary
from workers.embedded.damage import damaged, weathered
from workers.embedded.dataset import NO_COLOR, VIEWS, Pictures
from workers.embedded.outputs import Outputs
from workers.embedded.train_prior import described
from workers.embedded.training import TrainingRun, has_fast_bfloat16, muon
from workers.embedded.world import COLORS, NAMES, random_description
from workers.priors.rgba import latents_to_image

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["REFEREE", "REWARD", "RewardRecipe", "new_reward", "train_reward"]


class RewardRecipe(NamedTuple):
    """What tells one embedded reward from another."""

    name: str
    stage: str
    """Name of its training stage."""
    pictures: str
    """Subfolder of the pictures that it sees."""
    views: int
    seed: int


REWARD = RewardRecipe("embedded-multiview", "reward", "pictures", VIEWS, 7)
REFEREE = RewardRecipe("embedded-alignment", "referee", "referee", 1, 8)
OUTPUTS_SHARE = 0.25
"""Share of a batch that is real outputs, where some were collected."""


def new_reward(recipe: RewardRecipe) -> EmbeddedReward:
    """Build a reward of the current world, untrained."""
    words, names, colors = vocabulary(), len(NAMES) + 1, len(COLORS) + 1
    return EmbeddedReward(EmbeddedRewardConfig(recipe.name, words, names, colors, recipe.views))


def train_reward(
    folder: Path, recipe: RewardRecipe, steps: int, batch: int = 32, device: str = "cpu"
) -> EmbeddedReward:
    """Train a reward on painted, weathered and damaged pictures and real outputs, its reader on captions."""
    torch.manual_seed(recipe.seed)
    reward = new_reward(recipe).to(device)
    hidden = [p for name, p in reward.named_parameters() if ".layers." in name and p.ndim == 2]
    rest = [p for p in reward.parameters() if all(p is not one for one in hidden)]
    optimizers = [muon(hidden), torch.optim.AdamW(rest, 1e-3, (0.9, 0.98), weight_decay=0.02)]
    run = TrainingRun(
        recipe.stage,
        folder,
        reward,
        optimizers,
        steps,
        batch,
        recipe.seed,
        torch.Generator().manual_seed(recipe.seed),
        ema_decay=0.998,
    )
    pictures, outputs = Pictures(folder / recipe.pictures), Outputs.load(folder / "outputs")
    fast = has_fast_bfloat16(device)

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        shown = _draw(pictures, outputs, batch, run.generator)
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=fast):
            viewed, viewed_numbers = _viewer_loss(reward, shown, run.generator)
            read, read_numbers = _reader_loss(reward, np.random.default_rng((recipe.seed, step)), 2 * batch)
        return viewed + read, viewed_numbers | read_numbers

    run.fit(loss)
    return reward


def _draw(pictures: Pictures, outputs: Outputs | None, batch: int, generator: torch.Generator) -> Outputs:
    """Draw exact pictures, half of them weathered, and real outputs among them."""
    painted = pictures.sample(batch, generator)
    right = torch.ones(batch, dtype=torch.bool)
    shown = Outputs(
        weathered(painted.latents, generator), painted.names, painted.colors, painted.relation, right
    )
    if outputs is None:
        return shown
    real = outputs.sample(int(batch * OUTPUTS_SHARE), generator)
    return Outputs(
        *(torch.cat([mine[len(theirs) :], theirs]) for mine, theirs in zip(shown, real, strict=True))
    )


def _viewer_loss(
    reward: EmbeddedReward, shown: Outputs, generator: torch.Generator
) -> tuple[Tensor, dict[str, float]]:
    """Choices on what is right, soundness on everything; a reward that looks at single views gets each alone."""
    device, views = reward.reader.queries.device, reward.config.views
    groups = VIEWS // views
    latents = shown.latents.reshape(-1, views, *shown.latents.shape[2:])
    names, colors, relation, right = (
        column.repeat_interleave(groups, 0).to(device)
        for column in (shown.names, shown.colors, shown.relation, shown.right)
    )
    seen, soundness = reward.viewer(
        latents_to_image(torch.cat([latents, damaged(latents, generator)])).to(device)
    )
    count = len(latents)
    names = torch.where(names < 0, len(NAMES), names)
    seen = SlotLogits(*(x[:count][right] for x in seen))
    value, wrong = _choice_loss(seen, names[right], colors[right], relation[right])
    sound = torch.cat([right, torch.zeros_like(right)])
    unsound = F.binary_cross_entropy_with_logits(soundness, sound.float())
    told = ((soundness > 0) == sound).float().mean()
    return value + unsound, {"viewed_wrong": wrong, "soundness_right": told.item()}


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
    Nor do they show which of two neighbors the words name first, so the viewer may answer in either order.
    """
    counted = (names < len(NAMES)) & (read_unnamed | (colors != NO_COLOR))
    straight, wrong = _slots_loss(logits, names, colors, counted)
    if not read_unnamed:
        crossed, crossed_wrong = _slots_loss(logits, names.flip(1), colors.flip(1), counted.flip(1))
        flipped = (relation == NEXT) & (crossed.detach() < straight.detach())
        straight, wrong = torch.where(flipped, crossed, straight), torch.where(flipped, crossed_wrong, wrong)
    return straight.mean() + F.cross_entropy(logits.relation, relation), wrong.float().mean().item()


def _slots_loss(logits: SlotLogits, names: Tensor, colors: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy (N,) of both slots, and whether any of their choices is wrong (N,)."""
    named = F.cross_entropy(logits.name.flatten(0, 1), names.flatten(), reduction="none").view(names.shape)
    colored = F.cross_entropy(logits.color.flatten(0, 1), colors.flatten(), reduction="none").view(
        names.shape
    )
    wrong = (logits.name.argmax(-1) != names) | counted & (logits.color.argmax(-1) != colors)
    return ((named + counted * colored) / 2).sum(1), wrong.any(1)
