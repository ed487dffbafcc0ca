"""Train the embedded rewards: stages "reward" and "referee" of `workers/embedded/train.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from reward_models.embedded import (
    NEXT,
    EmbeddedReward,
    EmbeddedRewardConfig,
    SlotLogits,
    load_embedded_reward,
    match_score,
)
from workers.cameras import Cameras
from workers.diffusion import alpha_sigma, clamp_latents, guide
from workers.embedded.captions import random_caption, vocabulary
from workers.embedded.damage import damaged, weathered
from workers.embedded.dataset import NO_COLOR, VIEWS, Batch, Pictures
from workers.embedded.outputs import Outputs
from workers.embedded.preference_pairs import PAIR_KINDS, PreferencePair, draw_preference_pair
from workers.embedded.train_prior import choices_of, described, noun_classes
from workers.embedded.trained import averaged_prior, weak_prior
from workers.embedded.training import TrainingRun, has_fast_bfloat16, moved_to, muon
from workers.embedded.world import COLORS, NAMES, RELATIONS, random_description
from workers.priors.rgba import latents_to_image
from workers.weights import EMBEDDED_REWARDS

if TYPE_CHECKING:
    from pathlib import Path

    from workers.priors.embedded import EmbeddedPrior

__all__ = ["REFEREE", "REWARD", "RewardRecipe", "new_reward", "take_up_shipped_reward", "train_reward"]


class RewardRecipe(NamedTuple):
    """What tells one embedded reward from another."""

    name: str
    stage: str
    """Name of its training stage."""
    pictures: str
    """Subfolder of the pictures that it sees."""
    views: int
    seed: int
    compares: bool
    """Also learn from comparisons of outputs and of a prior's predictions, as a reward that steers must."""


REWARD = RewardRecipe("embedded-multiview", "reward", "pictures", VIEWS, 7, compares=True)
REFEREE = RewardRecipe("embedded-alignment", "referee", "referee", 1, 8, compares=False)
NUM_COMPARED = 8
"""Pairs of predictions in a step, and as many pairs of an output and the truth."""
GUIDANCE = 5.0
CERTAIN = 12.0
"""Logit of what a caption says, where its words are known without reading them."""


def new_reward(recipe: RewardRecipe) -> EmbeddedReward:
    """Build a reward of the current world, untrained."""
    words, names, colors = vocabulary(), len(NAMES) + 1, len(COLORS) + 1
    return EmbeddedReward(EmbeddedRewardConfig(recipe.name, words, names, colors, recipe.views))


def train_reward(
    folder: Path, recipe: RewardRecipe, steps: int, batch: int = 32, device: str = "cpu"
) -> EmbeddedReward:
    """Train a reward on painted, weathered and damaged pictures, pairs and real outputs, its reader on captions."""
    torch.manual_seed(recipe.seed)
    reward = new_reward(recipe).to(device)
    run = _reward_run(folder, recipe, reward, steps, batch)
    pictures = Pictures(folder / recipe.pictures)
    comparisons = _Comparisons.load(folder, device) if recipe.compares else None
    fast = has_fast_bfloat16(device)

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        painted = pictures.sample(batch, run.generator)
        rng = np.random.default_rng((recipe.seed, step))
        pairs = [
            draw_preference_pair(str(kind), rng, held_out=False)
            for kind in rng.choice(PAIR_KINDS, batch // 2)
        ]
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=fast):
            viewed, numbers = _viewer_loss(reward, painted, run.generator)
            read, read_numbers = _reader_loss(reward, rng, 2 * batch)
            preferred, pair_numbers = _pairs_loss(reward, pairs)
            value, numbers = viewed + read + preferred, numbers | read_numbers | pair_numbers
            if comparisons is not None:
                compared, compared_numbers = comparisons.loss(reward, painted, run.generator)
                value, numbers = value + compared, numbers | compared_numbers
        return value, numbers

    run.fit(loss)
    return reward


def take_up_shipped_reward(folder: Path, recipe: RewardRecipe) -> None:
    """Write a shipped reward as its stage's checkpoint, as if it had been trained here, but with new optimizers."""
    weights = EMBEDDED_REWARDS[recipe.name]
    reward = load_embedded_reward(weights).requires_grad_(True)
    _reward_run(folder, recipe, reward, 0).take_up(weights)


def _reward_run(
    folder: Path, recipe: RewardRecipe, reward: EmbeddedReward, steps: int, batch: int = 32
) -> TrainingRun:
    hidden = [p for name, p in reward.named_parameters() if ".layers." in name and p.ndim == 2]
    rest = [p for p in reward.parameters() if all(p is not one for one in hidden)]
    return TrainingRun(
        recipe.stage,
        folder,
        reward,
        [muon(hidden), torch.optim.AdamW(rest, 1e-3, (0.9, 0.98), weight_decay=0.02)],
        steps,
        batch,
        recipe.seed,
        torch.Generator().manual_seed(recipe.seed),
        ema_decay=0.998,
    )


def _viewer_loss(
    reward: EmbeddedReward, painted: Batch, generator: torch.Generator
) -> tuple[Tensor, dict[str, float]]:
    """Choices on what is right, soundness on everything; a reward that looks at single views gets each alone."""
    device, views = reward.reader.queries.device, reward.config.views
    latents = weathered(painted.latents, generator)
    latents = latents.reshape(-1, views, *latents.shape[2:])
    names, colors, relation = (
        column.repeat_interleave(VIEWS // views, 0).to(device)
        for column in (painted.names, painted.colors, painted.relation)
    )
    worse, hurt = damaged(latents, generator)
    seen, soundness = reward.viewer(latents_to_image(torch.cat([latents, worse])).to(device))
    seen = SlotLogits(*(x[: len(latents)] for x in seen))
    value, wrong = _choice_loss(seen, noun_classes(names), colors, relation)
    sound = torch.cat([torch.ones_like(hurt), ~hurt]).to(device)
    unsound = F.binary_cross_entropy_with_logits(soundness, sound.float())
    told = ((soundness > 0) == sound).float().mean()
    return value + unsound, {"viewed_wrong": wrong, "soundness_right": told.item()}


class _Comparisons(NamedTuple):
    """Pairs of which the truth tells the better: what priors predict from noise, and outputs against the truth.

    A method that compares predictions (DreamDPO) asks exactly the first question at every step.
    """

    priors: list[EmbeddedPrior]
    """The weak and the finished one; they are asked in turn."""
    outputs: Outputs | None

    @classmethod
    def load(cls, folder: Path, device: str) -> _Comparisons:
        priors = [weak_prior(folder).to(device), averaged_prior(folder).to(device)]
        return cls(priors, Outputs.load(folder / "outputs"))

    def loss(
        self, reward: EmbeddedReward, painted: Batch, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """−log σ(r_better − r_worse) (Bradley–Terry), r in nats, over both kinds of pairs."""
        better, worse, wanted = self._predictions(painted, generator)
        predicted = _margin(reward, better, worse, wanted)
        numbers = {"predictions_right": (predicted > 0).float().mean().item()}
        value = F.softplus(-predicted).mean()
        if self.outputs is not None:
            drawn = self.outputs.sample(NUM_COMPARED, generator)
            margin = _margin(reward, drawn.truth, drawn.latents, _certain(drawn))
            numbers["outputs_right"] = (margin > 0).float().mean().item()
            value = value + F.softplus(-margin).mean()
        return value, numbers

    @torch.no_grad()
    def _predictions(self, painted: Batch, generator: torch.Generator) -> tuple[Tensor, Tensor, SlotLogits]:
        """Guided x̂₀ of two noises at one time for each of the first pictures, the nearer to the truth first."""
        prior = self.priors[int(torch.randint(len(self.priors), (1,), generator=generator))]
        device = next(prior.parameters()).device
        first = type(painted)(*(_first(column, NUM_COMPARED) for column in painted))
        # The generator draws on the CPU wherever the networks are, so that each device trains on the same pictures.
        start = weathered(first.latents, generator).to(device)
        t = torch.randint(20, 980, (NUM_COMPARED,), generator=generator).to(device)
        some = moved_to(first, device)
        alpha, sigma = alpha_sigma(prior.schedule, t, start)
        text = prior.slot_encoder(choices_of(some))
        twice = Cameras(*(torch.cat([x, x]) for x in some.cameras))
        x0 = []
        for _ in range(2):
            noisy = alpha * start + sigma * torch.randn(start.shape, generator=generator).to(device)
            answer = prior.predict(
                torch.cat([noisy] * 2), torch.cat([t, t]), torch.cat([text, 0 * text]), twice
            )
            conditional, unconditional = answer.now().x0.float().chunk(2)
            x0.append(clamp_latents(guide(conditional, unconditional, GUIDANCE), prior.latent_range))
        a, b = x0
        true = latents_to_image(some.latents)
        error_a, error_b = ((latents_to_image(x) - true).square().mean((1, 2, 3, 4)) for x in x0)
        a_wins = (error_a < error_b)[:, None, None, None, None]
        return torch.where(a_wins, a, b), torch.where(a_wins, b, a), _certain(some)


def _first(column: Any, count: int) -> Any:
    return Cameras(*(x[:count] for x in column)) if isinstance(column, Cameras) else column[:count]


def _certain(words: Batch | Outputs) -> SlotLogits:
    """What the reader would answer for captions of these classes if it were never in doubt."""
    choices = (
        (noun_classes(words.names), len(NAMES) + 1),
        (words.colors, len(COLORS) + 1),
        (words.relation, len(RELATIONS)),
    )
    return SlotLogits(*(CERTAIN * F.one_hot(chosen, classes).float() for chosen, classes in choices))


def _margin(reward: EmbeddedReward, better: Tensor, worse: Tensor, wanted: SlotLogits) -> Tensor:
    """How much higher latents `better` score than `worse`, both (N, V, 4, 32, 32): (N,) nats."""
    device = reward.reader.queries.device
    seen, soundness = reward.viewer(latents_to_image(torch.cat([better, worse])).to(device))
    twice = SlotLogits(*(torch.cat([x, x]).to(device) for x in wanted))
    score = match_score(twice, seen) + F.logsigmoid(soundness).sum(1)
    return score[: len(better)] - score[len(better) :]


def _pairs_loss(reward: EmbeddedReward, pairs: list[PreferencePair]) -> tuple[Tensor, dict[str, float]]:
    """−log σ(r_better − r_worse) (Bradley–Terry) on true and altered pictures."""
    prompts = [pair.prompt for pair in pairs]
    device = reward.reader.queries.device
    better, worse = (
        reward.score(torch.stack(images).to(device), prompts).mean(1)
        for images in ([pair.better for pair in pairs], [pair.worse for pair in pairs])
    )
    margin = better - worse
    return F.softplus(-margin).mean(), {"pairs_right": (margin > 0).float().mean().item()}


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
