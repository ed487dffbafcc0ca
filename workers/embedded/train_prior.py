"""Train the embedded prior: stages "text" (the text encoder) and "prior" (slot encoder and U-Net)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workers.embedded.captions import accent_nouns, nouns, random_caption, vocabulary
from workers.embedded.dataset import NO_COLOR, Batch, Pictures
from workers.embedded.training import TrainingRun, has_fast_bfloat16, moved_to, muon
from workers.embedded.world import COLORS, NAMES, RELATIONS, SIZES, Description, build, random_description
from workers.priors.embedded import EmbeddedConfig, EmbeddedPrior, TextEncoder, load_embedded_prior
from workers.priors.embedded_unet import TextChoices
from workers.weights import EMBEDDED_PRIOR, EMBEDDED_WEAK_PRIOR

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

__all__ = [
    "WEAK_STEP",
    "SlotsAndUNet",
    "choices_of",
    "described",
    "new_prior",
    "noun_classes",
    "take_up_shipped_prior",
    "train_prior",
    "train_text",
]

CHANNELS = [64, 96, 160]
WEAK_STEP = 400
"""The weak prior of evaluations: 12,800 pictures, an early checkpoint where preference has more to gain."""
RING_STACKS = 3.0
"""Rings in stacks are the hardest to draw (holes close, flanks straighten): they are shown this many times as often."""
STEEP_RING_STACKS, STEEP_DEG = 9.0, 40.0
"""How often from where the holes are seen, steeply from above or below."""
ALIKE = 0.5
"""Share of the pairs whose things have one color or two that are near: what tells them apart adds little to the loss,
and painted as chance has it a ring on a cube of its color had its hole filled."""


def new_prior() -> EmbeddedPrior:
    """Build the prior of the current world, untrained."""
    config = EmbeddedConfig(
        words=vocabulary(),
        names=len(NAMES) + 1,
        colors=len(COLORS) + 1,
        sizes=len(SIZES),
        relations=len(RELATIONS),
        channels=CHANNELS,
        nouns=nouns(),
        accents=accent_nouns(),
    )
    return EmbeddedPrior(config)


def train_text(folder: Path, steps: int = 3000, batch: int = 96) -> TextEncoder:
    """Train the text encoder on captions of random descriptions; held-out pairs are never described."""
    torch.manual_seed(1)
    prior = new_prior()
    encoder = prior.text_encoder
    run = _text_run(folder, encoder, steps, batch)

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        rng = np.random.default_rng((3, step))
        descriptions = [random_description(rng) for _ in range(batch)]
        ids = prior.word_ids([random_caption(description, rng) for description in descriptions])
        forgotten = torch.from_numpy(rng.random(ids.shape) < 0.02) & (ids > 0)
        logits = encoder(torch.where(forgotten, 1, ids))
        truth, boxes = described(descriptions)
        present = truth["name"] < len(NAMES)
        terms = {
            "name": F.cross_entropy(logits.name.flatten(0, 1), truth["name"].flatten()),
            "color": F.cross_entropy(logits.color[present], truth["color"][present]),
            "accent": F.cross_entropy(logits.accent[present], truth["accent"][present]),
            "size": F.cross_entropy(logits.size[present], truth["size"][present]),
            "relation": F.cross_entropy(logits.relation, truth["relation"]),
            "box": 20 * F.smooth_l1_loss(logits.boxes[present], boxes[present], beta=0.05),
        }
        wrong = (logits.name.argmax(-1) != truth["name"]) | present & (
            logits.color.argmax(-1) != truth["color"]
        )
        box_error = (logits.boxes - boxes)[present].abs().mean().item()
        numbers = {"captions_wrong": float(wrong.any(1).float().mean()), "box_error": box_error}
        return torch.stack(list(terms.values())).sum(), numbers

    run.fit(loss)
    return encoder


def described(descriptions: list[Description]) -> tuple[dict[str, Tensor], Tensor]:
    """Classes (N, 2), relation (N,) and boxes (N, 2, 6) of descriptions, without jitter."""
    things = [(description.a, description.b) for description in descriptions]

    def classes(of: Callable[[Any], int], absent: int) -> Tensor:
        return torch.tensor([[of(thing) if thing else absent for thing in pair] for pair in things])

    truth = {
        "name": classes(lambda thing: NAMES.index(thing.name), len(NAMES)),
        "color": classes(lambda thing: COLORS.index(thing.color) if thing.color else NO_COLOR, NO_COLOR),
        "accent": classes(lambda thing: COLORS.index(thing.accent) if thing.accent else NO_COLOR, NO_COLOR),
        "size": classes(lambda thing: SIZES.index(thing.size), 0),
        "relation": torch.tensor([RELATIONS.index(description.relation) for description in descriptions]),
    }
    boxes = np.stack([build(description).boxes for description in descriptions])
    return truth, torch.from_numpy(boxes)


def noun_classes(names: Tensor) -> Tensor:
    """Classes (N, 2) of the nouns of a batch: the last one where it says −1, that nothing stands in this slot."""
    return torch.where(names < 0, len(NAMES), names)


def choices_of(batch: Batch) -> TextChoices:
    """One-hot choices of a painted batch, as the text encoder would make them if it were never wrong."""
    return TextChoices(
        F.one_hot(noun_classes(batch.names), len(NAMES) + 1).float(),
        F.one_hot(batch.colors, len(COLORS) + 1).float(),
        F.one_hot(batch.accents, len(COLORS) + 1).float(),
        F.one_hot(batch.sizes, len(SIZES)).float(),
        batch.boxes,
    )


class SlotsAndUNet(nn.Module):
    """What the prior stage trains: the slot encoder and the U-Net."""

    def __init__(self, prior: EmbeddedPrior) -> None:
        super().__init__()
        self.slot_encoder, self.unet = prior.slot_encoder, prior.unet


def muon_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Hidden convolution and linear matrices: what Muon trains; all else is AdamW's."""
    for name, parameter in model.named_parameters():
        hidden = any(
            part in name for part in (".conv1.", ".conv2.", ".qkv.", ".out.", ".mlp.", ".film.", ".slots.")
        )
        if hidden and parameter.ndim == 2:
            yield name, parameter


def train_prior(folder: Path, steps: int, batch: int = 32, device: str = "cpu") -> SlotsAndUNet:
    """Train slot encoder and U-Net by v-prediction on painted pictures; 10 % of captions are dropped.

    Autocast to bfloat16 where the processor multiplies it natively; the loss and the weights stay float32.
    """
    torch.manual_seed(4)
    prior = new_prior().to(device)
    model = SlotsAndUNet(prior)
    run = _prior_run(folder, model, steps, batch)
    pictures = Pictures(folder / "pictures")
    steep = pictures.elevation_deg.abs() > STEEP_DEG
    shares = torch.where(pictures.ring_stacks, torch.where(steep, STEEP_RING_STACKS, RING_STACKS), 1.0)
    fast = has_fast_bfloat16(device)

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        painted = pictures.sample(batch, run.generator, shares, ALIKE)
        draw = torch.rand(batch, generator=run.generator)
        time_ = 0.01 + 0.98 * (torch.arange(batch) + draw) / batch
        noise = torch.randn(painted.latents.shape, generator=run.generator)
        kept = torch.rand(batch, generator=run.generator) >= 0.1
        choices = choices_of(painted)
        shaken = (
            torch.randn(choices.boxes.shape, generator=run.generator) * 0.01 * (painted.names >= 0)[..., None]
        )
        choices = choices._replace(boxes=choices.boxes + shaken)
        there = moved_to((painted, choices, time_, noise, kept), device)
        value, late = _v_loss(model, there, fast=fast)
        return value, {"late": late}

    run.fit(loss)
    return model


def take_up_shipped_prior(folder: Path) -> None:
    """Write the shipped priors as both stages' checkpoints, as if trained here, but with new optimizers."""
    shipped = load_embedded_prior(EMBEDDED_PRIOR).requires_grad_(True)
    _text_run(folder, shipped.text_encoder, 0).take_up(EMBEDDED_PRIOR)
    _prior_run(folder, SlotsAndUNet(shipped), 0).take_up(EMBEDDED_PRIOR)
    weak = SlotsAndUNet(load_embedded_prior(EMBEDDED_WEAK_PRIOR)).state_dict()
    torch.save({"ema": weak}, folder / f"prior-step{WEAK_STEP}.pt")


def _text_run(folder: Path, encoder: TextEncoder, steps: int, batch: int = 96) -> TrainingRun:
    optimizer = torch.optim.AdamW(encoder.parameters(), 1.5e-3, (0.9, 0.98), weight_decay=0.01)
    return TrainingRun(
        "text", folder, encoder, [optimizer], steps, batch, 1, torch.Generator().manual_seed(2)
    )


def _prior_run(folder: Path, model: SlotsAndUNet, steps: int, batch: int = 32) -> TrainingRun:
    hidden = dict(muon_parameters(model))
    rest = [parameter for name, parameter in model.named_parameters() if name not in hidden]
    optimizers = [
        muon(hidden.values()),
        torch.optim.AdamW(rest, 2e-3, (0.9, 0.98), weight_decay=0.01),
    ]
    return TrainingRun(
        "prior",
        folder,
        model,
        optimizers,
        steps,
        batch,
        4,
        torch.Generator().manual_seed(5),
        ema_decay=0.998,
        keep_step=WEAK_STEP,
    )


def _v_loss(
    model: SlotsAndUNet, drawn: tuple[Batch, TextChoices, Tensor, Tensor, Tensor], *, fast: bool
) -> tuple[Tensor, float]:
    """Mean of (v̂ − (α ε − σ x₀))² at times in (0, 1), and its mean where t ≥ 0.9."""
    painted, choices, time_, noise, kept = drawn
    angle = (time_ * (torch.pi / 2))[:, None, None, None, None]
    alpha, sigma = angle.cos(), angle.sin()
    noisy = alpha * painted.latents + sigma * noise
    with torch.autocast(noisy.device.type, torch.bfloat16, enabled=fast):
        text = model.slot_encoder(choices) * kept[:, None, None]
        v = model.unet(noisy, time_, text, painted.cameras)
    error = (v.float() - (alpha * noise - sigma * painted.latents)).square().mean((1, 2, 3, 4))
    return error.mean(), float(error.detach()[time_ >= 0.9].mean())
