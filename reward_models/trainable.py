"""Rewards as training sees them: prepared pictures and prompts in, one raw score for each object out.

What is trained of each, and what is kept fixed:

- `reward3d`: all but the layers that ImageReward's rule freezes (`reward_models.freeze`); begins with a Reward3D file,
  or, like the published one, with ImageReward's and a new scorer.
- `reward3d-crossview`: the cross-view adapter alone, as published; begins with either file, too.
- embedded rewards: the network that looks at the pictures; the one that reads the prompt is kept.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reward_models.checkpoints import read_checkpoint
from reward_models.embedded import IMAGE_PX, EmbeddedReward, load_embedded_reward
from reward_models.freeze import freeze
from reward_models.image_reward import ImageReward
from reward_models.preprocess import prepare_images
from reward_models.reward3d import Reward3DCrossView, Reward3DScorer
from reward_models.tokens import BertTokens

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from reward_models.contracts import RewardCard

__all__ = ["FIX_RATE", "Start", "TrainableBlip", "TrainableEmbedded", "TrainableReward", "open_trainable"]

FIX_RATE = 0.7
"""Share of the layers that ImageReward keeps fixed. Source: THUDM/ImageReward, train/src."""
NEW_PARTS = ("Scorer.", "cross_view_adapter.")
"""What a Reward3D has and ImageReward has not, as the published files call it."""


@dataclass(frozen=True)
class Start:
    """Which reward is trained, and what it begins with."""

    name: str
    """"reward3d", "reward3d-crossview", or an embedded reward's."""
    weights: Path
    vocabulary: Path | None = None
    """BERT's vocab.txt; by default beside the weights. Only for the published rewards."""
    fix_rate: float = FIX_RATE
    """Only for reward3d."""
    renew: tuple[str, ...] = ()
    """Modules, by name, that begin with random weights in place of the file's."""
    seed: int = 0
    """Of the weights that begin anew."""


class TrainableReward(nn.Module):
    """Pixels (G, V, 3, P, P), as `prepare` makes them, and G prompts → raw scores (G,): higher is better."""

    card: RewardCard

    @property
    def num_views(self) -> int | None:
        """How many views of each object it must have; `None`: any number, but the same of each."""
        return self.card.views

    def trained(self) -> dict[str, nn.Parameter]:
        """Give the parameters that are trained, by name."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    @abstractmethod
    def prepare(self, views: Tensor) -> Tensor:
        """Make of an object's views (V, 3, H, W) in [0, 1] what the network sees: (V, 3, P, P)."""

    @abstractmethod
    def write(self, path: Path, mean: float, std: float, record: dict[str, Any]) -> None:
        """Write a weights file that a service can load; mean and std are of the raw scores on training pictures."""


class TrainableBlip(TrainableReward):
    """Reward3D in either variant; its raw score is not yet normalized by mean and std."""

    def __init__(self, reward: Reward3DScorer | Reward3DCrossView, fix_rate: float) -> None:
        super().__init__()
        self.reward = reward
        self.card = reward.card
        if isinstance(reward, Reward3DScorer):
            freeze(reward, fix_rate)
            reward.mlp.layers[3:].requires_grad_(False)  # what its score does not use has no gradient
        else:
            reward.requires_grad_(False)
            reward.cross_view_adapter.requires_grad_(True)

    def prepare(self, views: Tensor) -> Tensor:
        return prepare_images(views, self.reward.image_px, antialias=self.reward.antialias)

    def forward(self, pixels: Tensor, prompts: Sequence[str]) -> Tensor:
        return self.reward(pixels, self.reward.read(prompts, pixels.shape[1])).mean(1)

    def write(self, path: Path, mean: float, std: float, record: dict[str, Any]) -> None:
        self.reward.mean, self.reward.std = mean, std
        self.reward.save(path)


class TrainableEmbedded(TrainableReward):
    """An embedded reward. Its score is in nats and stays so: mean and std are told, not applied."""

    def __init__(self, reward: EmbeddedReward) -> None:
        super().__init__()
        self.reward = reward
        self.card = reward.card
        reward.requires_grad_(False)
        reward.viewer.requires_grad_(True)

    def prepare(self, views: Tensor) -> Tensor:
        if views.shape[-2:] == (IMAGE_PX, IMAGE_PX):
            return views
        return F.interpolate(views, (IMAGE_PX, IMAGE_PX), mode="bilinear", antialias=True)

    def forward(self, pixels: Tensor, prompts: Sequence[str]) -> Tensor:
        return self.reward.score(pixels, list(prompts)).mean(1)

    def write(self, path: Path, mean: float, std: float, record: dict[str, Any]) -> None:
        tensors = {name: tensor.half().contiguous() for name, tensor in self.reward.state_dict().items()}
        told = json.dumps(record | {"mean": mean, "std": std})
        metadata = {"embedded_reward": self.reward.config.to_json(), "training": told}
        partial = path.with_name(path.name + ".partial")
        safetensors.torch.save_file(tensors, partial, metadata)
        partial.replace(path)


def open_trainable(start: Start) -> TrainableReward:
    """Load what training begins with, on the CPU; raises ValueError, naming the file, when it does not fit."""
    if start.name in ("reward3d", "reward3d-crossview"):
        kind = Reward3DScorer if start.name == "reward3d" else Reward3DCrossView
        return TrainableBlip(_open_reward3d(kind, start), start.fix_rate)
    embedded = load_embedded_reward(start.weights, start.name)
    if start.renew:
        torch.manual_seed(start.seed)
        _renew(embedded, EmbeddedReward(embedded.config), start.renew)
    return TrainableEmbedded(embedded)


def _open_reward3d(
    kind: type[Reward3DScorer] | type[Reward3DCrossView], start: Start
) -> Reward3DScorer | Reward3DCrossView:
    tokens = BertTokens.read(start.vocabulary or start.weights.parent / "vocab.txt", kind.text_length)
    checkpoint = read_checkpoint(start.weights)
    if any(key.startswith(NEW_PARTS) for key in checkpoint.tensors):
        reward = kind.from_checkpoint(checkpoint, tokens=tokens)
    else:
        begun = ImageReward.from_checkpoint(checkpoint, tokens=tokens)
        torch.manual_seed(start.seed)
        reward = kind(begun.config, tokens)
        reward.blip, reward.mlp = begun.blip, begun.mlp
    if start.renew:
        torch.manual_seed(start.seed)
        _renew(reward, kind(reward.config, tokens), start.renew)
    return reward


def _renew(reward: nn.Module, fresh: nn.Module, modules: Sequence[str]) -> None:
    parts = dict(reward.named_modules())
    for name in modules:
        if not name or name not in parts:
            known = ", ".join(each for each in parts if each and each.count(".") < 2)
            raise ValueError(
                f"cannot begin {name!r} anew: there is no such module. There are {known}, and others"
            )
        parts[name].load_state_dict(fresh.get_submodule(name).state_dict())
