"""The BLIP trunk of ImageReward and Reward3D, on transformers: a picture and a text in, one feature out.

A ViT encodes the picture; a BERT encoder reads the text and, in every layer, the picture by cross-attention; the
feature is what it says at the text's first token, [CLS]. Published checkpoints are taken and given under their own
key names (those of THUDM/ImageReward, commit c1392c6, which liuff19/DreamReward shares).
"""

from __future__ import annotations

import re
from abc import abstractmethod
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import nn

from reward_models.checkpoints import (
    Checkpoint,
    Place,
    export_state,
    import_state,
    read_checkpoint,
    write_checkpoint,
)
from reward_models.linear_head import LinearHead
from reward_models.picture_reward import PictureReward, Texts

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from reward_models.tokens import PromptTokens

__all__ = ["BLIP_LARGE", "BlipConfig", "BlipReward", "BlipTrunk", "published_name"]

REWARD_MEAN, REWARD_STD = 0.16717362830052426, 1.0333394966054072
"""Of ImageReward's raw scores on its training pictures. Source: ImageReward/ImageReward.py."""
IGNORED = r"blip\.text_encoder\.embeddings\.position_ids"
"""A counter that the published files hold."""


@dataclass(frozen=True)
class BlipConfig:
    """Sizes of a BLIP trunk; the defaults are those of the published rewards (BLIP-large)."""

    image_px: int = 224
    patch_px: int = 16
    vision_width: int = 1024
    vision_layers: int = 24
    vision_heads: int = 16
    vocabulary: int = 30524
    text_width: int = 768
    text_layers: int = 12
    text_heads: int = 12
    text_hidden: int = 3072
    text_positions: int = 512
    projection_width: int = 256


BLIP_LARGE = BlipConfig()


class BlipTrunk(nn.Module):
    """Pixels (N, 3, P, P) and token ids (N, L) → features (N, text_width)."""

    def __init__(self, config: BlipConfig) -> None:
        from transformers import BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

        super().__init__()
        self.visual_encoder = BlipVisionModel(
            BlipVisionConfig(
                hidden_size=config.vision_width,
                intermediate_size=4 * config.vision_width,
                num_hidden_layers=config.vision_layers,
                num_attention_heads=config.vision_heads,
                image_size=config.image_px,
                patch_size=config.patch_px,
                hidden_act="gelu",
                layer_norm_eps=1e-6,  # the class's default, 1e-5, is another BLIP's
            )
        )
        self.text_encoder = BlipTextModel(
            BlipTextConfig(
                vocab_size=config.vocabulary,
                hidden_size=config.text_width,
                encoder_hidden_size=config.vision_width,
                intermediate_size=config.text_hidden,
                num_hidden_layers=config.text_layers,
                num_attention_heads=config.text_heads,
                max_position_embeddings=config.text_positions,
                hidden_act="gelu",
                layer_norm_eps=1e-12,
                hidden_dropout_prob=0.1,  # in training only, as is the next
                attention_probs_dropout_prob=0.1,
                bos_token_id=None,
                eos_token_id=None,
                sep_token_id=None,
                is_decoder=True,  # gives it cross-attention; it is called as an encoder
            ),
            add_pooling_layer=False,
        )
        # BLIP's contrastive projections: in the published files, but in no score.
        self.vision_proj: nn.Linear | None = nn.Linear(config.vision_width, config.projection_width)
        self.text_proj: nn.Linear | None = nn.Linear(config.text_width, config.projection_width)
        self.vision_proj.requires_grad_(False)
        self.text_proj.requires_grad_(False)

    def see(self, pixels: Tensor) -> Tensor:
        """Encode pictures (N, 3, P, P) to their tokens (N, 1 + patches, vision_width)."""
        return self.visual_encoder(pixels).last_hidden_state

    def read(self, seen: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """Read texts, ids and mask (N, L), in sight of pictures (N, K, vision_width): features (N, text_width)."""
        said = self.text_encoder(
            ids,
            attention_mask=mask,
            encoder_hidden_states=seen,
            encoder_attention_mask=torch.ones(seen.shape[:2], dtype=torch.long, device=seen.device),
            is_decoder=False,
        )
        return said.last_hidden_state[:, 0]


class BlipReward(PictureReward):
    """A reward on the BLIP trunk: features → raw score → (raw − mean) / std.

    `forward` gives the raw score, which training compares; `mean` and `std` are of raw scores on training pictures.
    """

    kind: str
    """Which class a file of ours holds."""
    text_length: int
    """Tokens of a prompt, padding included."""

    def __init__(
        self,
        config: BlipConfig = BLIP_LARGE,
        tokens: PromptTokens | None = None,
        *,
        mean: float = REWARD_MEAN,
        std: float = REWARD_STD,
        antialias: bool = True,
    ) -> None:
        super().__init__(config.image_px, tokens, antialias=antialias)
        self.config = config
        self.mean, self.std = mean, std
        self.blip = BlipTrunk(config)
        self.mlp = LinearHead(config.text_width)

    @abstractmethod
    def raw(self, features: Tensor) -> Tensor:
        """Score features (G, V, text_width) of an object's views: (G, V) or (G, 1), not normalized."""

    def features(self, pixels: Tensor, texts: Texts) -> Tensor:
        """Features (G, V, text_width) of prepared pictures (G, V, 3, P, P), each seen with its own text."""
        rows = texts.of_view.flatten()
        seen = self.blip.see(pixels.flatten(0, 1))
        return self.blip.read(seen, texts.ids[rows], texts.mask[rows]).unflatten(0, pixels.shape[:2])

    def forward(self, pixels: Tensor, texts: Texts) -> Tensor:
        """Raw scores of prepared pictures: (G, V) or (G, 1)."""
        return self.raw(self.features(pixels, texts))

    def score_prepared(self, pixels: Tensor, texts: Texts) -> Tensor:
        """Score prepared pictures (G, V, 3, P, P): (G, V) or (G, 1), normalized."""
        return (self(pixels, texts) - self.mean) / self.std

    @classmethod
    def from_checkpoint(
        cls, checkpoint: Checkpoint, config: BlipConfig | None = None, tokens: PromptTokens | None = None
    ) -> Self:
        """Build this reward, frozen, in eval mode, of a published file or one that `save` wrote.

        Raises ValueError, naming file and key, when they do not fit, or when the vocabulary does not.
        """
        facts = _facts_of(cls.kind, checkpoint)
        config = config or BlipConfig(**facts.get("config", {}))
        with torch.device("meta"):
            reward = cls(config, tokens, **{name: facts[name] for name in ("mean", "std") if name in facts})
        for side in ("vision_proj", "text_proj"):
            if not any(key.startswith(f"blip.{side}.") for key in checkpoint.tensors):
                setattr(reward.blip, side, None)
        import_state(reward, checkpoint, published_name, ignore=IGNORED)
        if tokens is not None and tokens.size != config.vocabulary:
            raise ValueError(
                f"{checkpoint.file} knows {config.vocabulary} tokens, but the vocabulary beside it has {tokens.size} "
                "(with BLIP's two). Take vocab.txt of bert-base-uncased"
            )
        reward.sha256 = checkpoint.sha256
        return reward.eval().requires_grad_(False)

    @classmethod
    def load(cls, weights: Path, tokens: PromptTokens) -> Self:
        """Load a weights file as `from_checkpoint` does."""
        return cls.from_checkpoint(read_checkpoint(weights), tokens=tokens)

    def published_state(self) -> dict[str, Tensor]:
        """Give all tensors under the keys of the published files."""
        return export_state(self, published_name)

    def save(self, path: Path) -> None:
        """Write this reward as .safetensors in the published layout, with its sizes, mean and std beside."""
        facts: dict[str, Any] = {"kind": self.kind, "config": asdict(self.config)}
        write_checkpoint(path, self.published_state(), {**facts, "mean": self.mean, "std": self.std})


_VISION_NAMES = (
    (r"embeddings\.class_embedding", "cls_token"),
    (r"embeddings\.position_embedding", "pos_embed"),
    (r"embeddings\.patch_embedding\.(\w+)", r"patch_embed.proj.\1"),
    (r"encoder\.layers\.(\d+)\.layer_norm([12])\.(\w+)", r"blocks.\1.norm\2.\3"),
    (r"encoder\.layers\.(\d+)\.self_attn\.qkv\.(\w+)", r"blocks.\1.attn.qkv.\2"),
    (r"encoder\.layers\.(\d+)\.self_attn\.projection\.(\w+)", r"blocks.\1.attn.proj.\2"),
    (r"encoder\.layers\.(\d+)\.mlp\.(fc[12])\.(\w+)", r"blocks.\1.mlp.\2.\3"),
    (r"post_layernorm\.(\w+)", r"norm.\1"),
)


def published_name(name: str) -> Place:
    """Find one of our tensors in the published files: only the ViT's and the Scorer's names differ."""
    vision = "blip.visual_encoder."
    if name.startswith(vision):
        rest = name.removeprefix(vision)
        for ours, published in _VISION_NAMES:
            if match := re.fullmatch(ours, rest):
                return Place(vision + match.expand(published))
        raise AssertionError(f"transformers' BLIP has a new tensor: {name}")
    return Place(re.sub("^scorer", "Scorer", name))


def _facts_of(kind: str, checkpoint: Checkpoint) -> dict[str, Any]:
    facts = dict(checkpoint.facts or {})
    if facts and facts["kind"] != kind:
        raise ValueError(
            f"{checkpoint.file} holds a {facts['kind']}, not a {kind}: use it under its own name"
        )
    return facts
