"""The text tower of CLIP on transformers' `CLIPTextModel`: OpenCLIP ViT-H's last layer but one.

A prompt becomes 77 tokens; the transformer's output before its last block, normalized by the tower's final LayerNorm,
is the text that Stable Diffusion 2 reads. So our network has one layer fewer than the published tower.

Shapes: N prompts, L = 77 tokens, D numbers per token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["PromptEncoder", "PromptTokens", "TextConfig", "from_open_clip", "text_names", "to_open_clip"]


@dataclass(frozen=True)
class TextConfig:
    """Sizes of the published tower; by default those of OpenCLIP ViT-H/14."""

    width: int = 1024
    layers: int = 24
    """Blocks of the published tower, of which the last is not used."""
    heads: int = 16
    mlp_width: int = 4096
    vocab_size: int = 49408
    num_tokens: int = 77


class PromptTokens(Protocol):
    """CLIP's tokenizer, which no checkpoint holds: whoever loads a prior brings it."""

    @property
    def length(self) -> int:
        """L, start, end and padding included."""
        ...

    @property
    def size(self) -> int:
        """How many different tokens there are."""
        ...

    def __call__(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids (N, L) int64, cut before the end token and padded with 0, and their mask: 0 for padding."""
        ...


class PromptEncoder(nn.Module):
    """Turn prompts into text tokens for a diffusion U-Net."""

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.clip = CLIPTextModel(config)
        # A buffer that no checkpoint holds: it must not stay on the meta device, where networks are built.
        position_ids = torch.arange(config.max_position_embeddings, device="cpu")[None]
        self.clip.embeddings.register_buffer("position_ids", position_ids, persistent=False)

    @classmethod
    def of_published(cls, config: TextConfig) -> PromptEncoder:
        """Build the tower that reads an OpenCLIP checkpoint."""
        return cls(
            CLIPTextConfig(
                hidden_size=config.width,
                intermediate_size=config.mlp_width,
                num_hidden_layers=config.layers - 1,
                num_attention_heads=config.heads,
                vocab_size=config.vocab_size,
                max_position_embeddings=config.num_tokens,
                hidden_act="gelu",
                bos_token_id=config.vocab_size - 2,
                eos_token_id=config.vocab_size - 1,
                pad_token_id=0,
            )
        )

    def check(self, tokens: PromptTokens) -> None:
        """Raise ValueError unless this tower reads what the tokenizer makes."""
        reads = self.clip.config.max_position_embeddings, self.clip.config.vocab_size
        if (tokens.length, tokens.size) != reads:
            raise ValueError(
                f"the text encoder reads {reads[0]} of {reads[1]} different tokens, but the tokenizer makes "
                f"{tokens.length} of {tokens.size}; they do not belong together"
            )

    def forward(self, token_ids: Tensor) -> Tensor:
        """Embed token ids (N, L): (N, L, D) in float32."""
        hidden: Tensor = self.clip(token_ids).last_hidden_state
        return hidden.float()


_LAYERS = {
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
_PARTS = ("q", "k", "v")


def text_names(network: PromptEncoder) -> dict[str, str]:
    """Map OpenCLIP's names, after `from_open_clip` has split its joint projections, to ours, one to one."""
    names = {
        "token_embedding.weight": "clip.embeddings.token_embedding.weight",
        "positional_embedding": "clip.embeddings.position_embedding.weight",
    }
    for ours in network.state_dict():
        if ours.startswith("clip.final_layer_norm."):
            names[ours.replace("clip.final_layer_norm", "ln_final")] = ours
        elif ours.startswith("clip.encoder.layers."):
            block, rest = ours.removeprefix("clip.encoder.layers.").split(".", 1)
            layer, _, kind = rest.rpartition(".")
            published = _LAYERS.get(layer, layer.replace("self_attn", "attn"))
            names[f"transformer.resblocks.{block}.{published}.{kind}"] = ours
    return names


def from_open_clip(tensors: Mapping[str, Tensor], config: TextConfig) -> dict[str, Tensor]:
    """Take what the penultimate layer needs of an OpenCLIP tower, and split each joint projection into q, k, v."""
    unused = (f"transformer.resblocks.{config.layers - 1}.", "text_projection", "logit_scale", "attn_mask")
    split = {}
    for name, tensor in tensors.items():
        if name.startswith(unused):
            continue
        block, joint, kind = name.partition("attn.in_proj_")
        if not joint:
            split[name] = tensor
        else:
            for part, piece in zip(_PARTS, tensor.chunk(3), strict=True):
                split[f"{block}attn.{part}_proj.{kind}"] = piece
    return split


def to_open_clip(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Undo `from_open_clip`: join each q, k, v into one projection. What was left out stays out."""
    joined: dict[str, Any] = {}
    for name, tensor in tensors.items():
        block, projection, kind = name.partition("attn.q_proj.")
        if projection:
            pieces = [tensors[f"{block}attn.{part}_proj.{kind}"] for part in _PARTS]
            joined[f"{block}attn.in_proj_{kind}"] = torch.cat(pieces)
        elif not any(f"attn.{part}_proj." in name for part in _PARTS):
            joined[name] = tensor
    return joined
