"""The embedded rewards: how well pictures of an object show what the words say, and how sound they look.

Two small networks meet in the same words-of-the-world. One reads the prompt and says, for two slots (upper or left,
lower or right), which thing with which color should stand there; the other looks at the pictures and says what does.
The score is the log-likelihood of the prompt's choices under the pictures' choices, plus the log-probability that
every picture is undamaged. Since each slot binds its own noun and color, swapped colors or objects cost as much as
wrong ones. For "next to" either order counts, as pictures taken from an unknown side cannot tell left from right.

Two of them ship: one looks at four views together and steers, the other looks at each view alone, was trained on
other pictures from another start, and referees.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, NamedTuple

import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reward_models.contracts import RewardCard, check_pixels, score_and_gradient

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "NEXT",
    "EmbeddedReward",
    "EmbeddedRewardConfig",
    "SlotLogits",
    "load_embedded_reward",
    "match_score",
]

MAX_WORDS = 28
IMAGE_PX = 32
NEXT = 2
"""The relation head's class of two things beside one another; 0 is a single thing, 1 a stack."""


@dataclass(frozen=True)
class EmbeddedRewardConfig:
    """What a weights file says about its own networks, as JSON in its metadata."""

    name: str
    words: list[str]
    names: int
    """Nouns, and one more class for "nothing stands in this slot"."""
    colors: int
    """Colors, and one more class for "no color is named"."""
    views: int = 4
    """How many views, evenly spaced around the object, it looks at together; 1: each alone."""
    width: int = 128

    def to_json(self) -> str:
        return json.dumps(asdict(self))


class SlotLogits(NamedTuple):
    """Choices of N groups, from words or from pictures, as logits."""

    name: Tensor
    """(N, 2, names)."""
    color: Tensor
    """(N, 2, colors)."""
    relation: Tensor
    """(N, 3)."""


class EmbeddedReward(nn.Module):
    """Score 32 px views against a prompt: see the module's docstring."""

    def __init__(self, config: EmbeddedRewardConfig) -> None:
        super().__init__()
        self.config = config
        self.sha256: str | None = None
        self.retrained = False
        self._word_ids = {word: index + 2 for index, word in enumerate(config.words)}
        self.reader = _Reader(len(config.words), config)
        self.viewer = _Viewer(config)

    @property
    def card(self) -> RewardCard:
        """Declare what this reward is."""
        return RewardCard(
            name=self.config.name,
            value_range=None,
            scale="nats: 0 is a certain match of sound pictures; −1 is e times less likely",
            views=self.config.views if self.config.views > 1 else None,
            uses_prompt=True,
            differentiable=True,
            license="NOASSERTION" if self.retrained else "Apache-2.0",
            weights_sha256=self.sha256,
            retrained=self.retrained,
        )

    def word_ids(self, prompts: list[str]) -> Tensor:
        """Tokenize prompts to (N, MAX_WORDS) ids: 0 pads, 1 is any unknown word."""
        rows = [
            [self._word_ids.get(w, 1) for w in re.findall(r"\w+", p.lower())][:MAX_WORDS] for p in prompts
        ]
        padded = [row + [0] * (MAX_WORDS - len(row)) for row in rows]
        device = self.reader.queries.device
        return torch.tensor(padded, dtype=torch.int64, device=device).reshape(len(prompts), MAX_WORDS)

    def score_batch(
        self, images: Tensor, prompts: list[str], wants_gradient: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Score images (G, V, 3, H, W) for prompts (G): values as `score` gives them, and their gradient."""
        return score_and_gradient(self.score, images, prompts, wants_gradient)

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Score images (G, V, 3, H, W) in [0, 1] in nats; differentiable to the images.

        Answers (G, 1) where it looks at all views together, (G, V) where at each alone. Raises ValueError for a wrong
        number of views, and for images that are not finite or not in [0, 1].
        """
        check_pixels(self.card, images)
        together = self.config.views
        if together != 1 and images.shape[1] != together:
            raise ValueError(
                f"reward {self.config.name!r} wants {together} views of each object, evenly spaced around it, "
                f"but got {images.shape[1]}"
            )
        with torch.no_grad():
            wanted = self.reader(self.word_ids(prompts))
        groups = images.shape[1] // together
        seen, soundness = self.viewer(_resized(images).unflatten(1, (groups, together)).flatten(0, 1))
        wanted = SlotLogits(*(x.repeat_interleave(groups, 0) for x in wanted))
        score = match_score(wanted, seen) + F.logsigmoid(soundness).sum(1)
        return score.unflatten(0, (len(images), groups))


def match_score(wanted: SlotLogits, seen: SlotLogits) -> Tensor:
    """Log-likelihood (N,) of the words' choices under the pictures', in nats.

    Σ over slots and attributes of Σ_c p_wanted(c) log p_seen(c); an attribute that the words leave open counts
    nothing. For "next to" the two orders are averaged as likelihoods (log-mean-exp): a certain match of two unlike
    things has −log 2.
    """
    straight, crossed = _agreement(wanted, seen), _agreement(wanted, SlotLogits(*(_flipped(x) for x in seen)))
    either = torch.logaddexp(straight, crossed) - torch.log(torch.tensor(2.0))
    relation = wanted.relation.softmax(-1)
    match = torch.where(relation.argmax(-1) == NEXT, either, straight)
    return match + (relation * seen.relation.log_softmax(-1)).sum(-1)


def _agreement(wanted: SlotLogits, seen: SlotLogits) -> Tensor:
    name, color = wanted.name.softmax(-1), wanted.color.softmax(-1)
    present = 1 - name[..., -1]
    named = (name * seen.name.log_softmax(-1)).sum(-1)
    colored = (color[..., :-1] * seen.color.log_softmax(-1)[..., :-1]).sum(-1)
    return (named + present * colored).sum(-1)


def _flipped(logits: Tensor) -> Tensor:
    """Swap the slots A and B."""
    return logits.flip(1) if logits.ndim == 3 else logits


def _resized(images: Tensor) -> Tensor:
    if images.shape[-1] == IMAGE_PX:
        return images
    flat = F.interpolate(images.flatten(0, 1), (IMAGE_PX, IMAGE_PX), mode="bilinear", antialias=True)
    return flat.unflatten(0, images.shape[:2])


class _Reader(nn.Module):
    """Words (N, MAX_WORDS) → what should stand where."""

    def __init__(self, num_words: int, config: EmbeddedRewardConfig, width: int = 64) -> None:
        super().__init__()
        self.words = nn.Embedding(num_words + 2, width, padding_idx=0)
        self.positions = nn.Parameter(torch.randn(MAX_WORDS, width) * 0.02)
        self.queries = nn.Parameter(torch.randn(3, width) * 0.02)
        self.mixer = _transformer(width, layers=3)
        self.heads = _Heads(width, config)

    def forward(self, word_ids: Tensor) -> SlotLogits:
        tokens = torch.cat(
            [self.queries.expand(len(word_ids), -1, -1), self.words(word_ids) + self.positions], 1
        )
        padding = F.pad(word_ids == 0, (3, 0), value=False)
        return _slot_logits(self.heads, self.mixer(tokens, src_key_padding_mask=padding))


class _Viewer(nn.Module):
    """Pictures (N, V, 3, 32, 32) → what stands where, and a logit (N, V) that each is sound among the others."""

    def __init__(self, config: EmbeddedRewardConfig) -> None:
        super().__init__()
        width = config.width
        layers: list[nn.Module] = []
        for before, after, stride in ((3, 16, 1), (16, 48, 2), (48, 96, 2), (96, width, 2)):
            layers += [nn.Conv2d(before, after, 3, stride, 1), nn.GroupNorm(8, after), nn.SiLU()]
        self.convolutions = nn.Sequential(*layers)
        self.place = nn.Parameter(torch.randn(config.views, 16, width) * 0.02)
        self.queries = nn.Parameter(torch.randn(3, width) * 0.02)
        self.mixer = _transformer(width, layers=2)
        self.heads = _Heads(width, config)
        self.damage = nn.Linear(width, 1)

    def forward(self, images: Tensor) -> tuple[SlotLogits, Tensor]:
        features = self.convolutions(images.flatten(0, 1) * 2 - 1).flatten(2).transpose(1, 2)
        tokens = (features.unflatten(0, images.shape[:2]) + self.place).flatten(1, 2)
        mixed = self.mixer(torch.cat([self.queries.expand(len(images), -1, -1), tokens], 1))
        damage = self.damage(mixed[:, 3:]).unflatten(1, (images.shape[1], -1)).squeeze(-1)
        # A view is as sound as its worst place: a stray blob is small.
        return _slot_logits(self.heads, mixed), math.log(damage.shape[-1]) - damage.logsumexp(-1)


class _Heads(nn.Module):
    def __init__(self, width: int, config: EmbeddedRewardConfig) -> None:
        super().__init__()
        self.name = nn.Linear(width, config.names)
        self.color = nn.Linear(width, config.colors)
        self.relation = nn.Linear(width, 3)


def _slot_logits(heads: _Heads, tokens: Tensor) -> SlotLogits:
    """The first three tokens answer for slot A, slot B and the relation."""
    return SlotLogits(heads.name(tokens[:, :2]), heads.color(tokens[:, :2]), heads.relation(tokens[:, 2]))


def _transformer(width: int, layers: int) -> nn.Module:
    layer = nn.TransformerEncoderLayer(
        width, 4, 2 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )
    return nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)


def load_embedded_reward(weights: Path, name: str | None = None) -> EmbeddedReward:
    """Load a reward from its safetensors file (fp16), as fp32, frozen, in eval mode.

    Raises ValueError when the file is damaged, foreign, misses a tensor or holds another reward than `name`, naming
    file and key.
    """
    try:
        content = weights.read_bytes()  # once, as an import may replace it meanwhile
        tensors = safetensors.torch.load(content)
    except (OSError, safetensors.SafetensorError) as error:
        raise ValueError(
            f"{weights.name} cannot be read as safetensors ({error}); restore it, or train it anew"
        ) from error
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    metadata = header.get("__metadata__", {})
    if "embedded_reward" not in metadata:
        raise ValueError(f"{weights.name} is no embedded reward: its metadata has no key 'embedded_reward'")
    try:
        config = EmbeddedRewardConfig(**json.loads(metadata["embedded_reward"]))
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{weights.name}: 'embedded_reward' in its metadata is not ours ({error})"
        ) from error
    reward = EmbeddedReward(config)
    if name not in (None, reward.config.name):
        raise ValueError(f"{weights.name} holds the reward {reward.config.name!r}, not {name!r}")
    own = {name: tensor.shape for name, tensor in reward.state_dict().items()}
    if unmatched := sorted(own.items() ^ {name: tensor.shape for name, tensor in tensors.items()}.items()):
        raise ValueError(
            f"{weights.name} does not fit the embedded reward: missing, unknown or misshapen tensor {unmatched[0][0]!r}"
        )
    reward.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    reward.sha256 = hashlib.sha256(content).hexdigest()
    reward.retrained = "training" in metadata
    return reward.eval().requires_grad_(False)
