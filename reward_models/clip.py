"""The CLIP trunk of HPSv2, PickScore, the CLIP score and the aesthetic predictor, on transformers.

Checkpoints come in two layouts, told apart by their keys: open_clip's, which OpenAI's files share
(`visual.conv1.weight`, query, key and value in one tensor), and transformers' own (`vision_model.…`). Both are taken,
and both are given back.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import nn

from reward_models.checkpoints import Checkpoint, Layout, Place, export_state, import_state

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["VIT_B_32", "VIT_H_14", "VIT_L_14", "ClipConfig", "ClipTrunk", "cosine", "unit"]

KeyNames = Literal["open_clip", "transformers"]
IGNORED = r"(.*\.)?position_ids|attn_mask|input_resolution|context_length|vocab_size"
"""Counters and sizes that some published files hold beside the weights."""


@dataclass(frozen=True)
class ClipConfig:
    """Sizes of a CLIP model."""

    embedding: int
    patch_px: int
    vision_width: int
    vision_layers: int
    vision_heads: int
    text_width: int
    text_layers: int
    text_heads: int
    quick_gelu: bool
    """Whether it was trained with x·σ(1.702 x) for GELU, as OpenAI's were."""
    image_px: int = 224
    context: int = 77
    vocabulary: int = 49408


VIT_H_14 = ClipConfig(1024, 14, 1280, 32, 16, 1024, 24, 16, quick_gelu=False)
"""LAION's, on which HPSv2 and PickScore were trained."""
VIT_L_14 = ClipConfig(768, 14, 1024, 24, 16, 768, 12, 12, quick_gelu=True)
VIT_B_32 = ClipConfig(512, 32, 768, 12, 12, 512, 12, 8, quick_gelu=True)
"""OpenAI's."""


class ClipTrunk(nn.Module):
    """Pictures and texts into one space."""

    def __init__(self, config: ClipConfig) -> None:
        from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

        super().__init__()
        self.config = config
        activation = "quick_gelu" if config.quick_gelu else "gelu"
        text = CLIPTextConfig(
            vocab_size=config.vocabulary,
            hidden_size=config.text_width,
            intermediate_size=4 * config.text_width,
            num_hidden_layers=config.text_layers,
            num_attention_heads=config.text_heads,
            max_position_embeddings=config.context,
            hidden_act=activation,
            projection_dim=config.embedding,
            bos_token_id=None,
            eos_token_id=2,  # transformers' sign for CLIP's own rule: the end token is the largest id of a row
        )
        vision = CLIPVisionConfig(
            hidden_size=config.vision_width,
            intermediate_size=4 * config.vision_width,
            num_hidden_layers=config.vision_layers,
            num_attention_heads=config.vision_heads,
            image_size=config.image_px,
            patch_size=config.patch_px,
            hidden_act=activation,
            projection_dim=config.embedding,
        )
        self.model = CLIPModel(
            CLIPConfig(
                text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=config.embedding
            )
        )

    def image_features(self, pixels: Tensor) -> Tensor:
        """Embed prepared pictures (N, 3, P, P): (N, embedding), not of unit length."""
        return self.model.visual_projection(self.model.vision_model(pixel_values=pixels).pooler_output)

    def text_features(self, ids: Tensor) -> Tensor:
        """Embed texts (N, context) of token ids: (N, embedding), not of unit length."""
        return self.model.text_projection(self.model.text_model(input_ids=ids).pooler_output)

    @property
    def scale(self) -> Tensor:
        """What training learned to multiply cosines with, 100 for most."""
        return self.model.logit_scale.exp()

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, config: ClipConfig) -> ClipTrunk:
        """Build a trunk of a file in either layout; raises ValueError naming file and key when it does not fit."""
        with torch.device("meta"):
            trunk = cls(config)
        names: KeyNames = "open_clip" if "visual.conv1.weight" in checkpoint.tensors else "transformers"
        import_state(trunk, checkpoint, _layout(names), ignore=IGNORED)
        return trunk.eval().requires_grad_(False)

    def published_state(self, names: KeyNames = "open_clip") -> dict[str, Tensor]:
        """Give all tensors in one of the published layouts."""
        return export_state(self, _layout(names))


def cosine(images: Tensor, texts: Tensor, scale: Tensor | float = 1.0) -> Tensor:
    """scale · cos(image, text) of features (…, embedding), whose leading dimensions broadcast."""
    return scale * (unit(images) * unit(texts)).sum(-1)


def unit(features: Tensor) -> Tensor:
    """Scale features (…, embedding) to length 1."""
    return F.normalize(features, dim=-1)


def _layout(names: KeyNames) -> Layout:
    return _open_clip_place if names == "open_clip" else lambda name: Place(name.removeprefix("model."))


_PARTS = {"q_proj": 0, "k_proj": 1, "v_proj": 2}
_SINGLE = {
    "logit_scale": Place("logit_scale"),
    "visual_projection.weight": Place("visual.proj", transposed=True),
    "text_projection.weight": Place("text_projection", transposed=True),
    "vision_model.embeddings.class_embedding": Place("visual.class_embedding"),
    "vision_model.embeddings.position_embedding.weight": Place("visual.positional_embedding"),
    "vision_model.embeddings.patch_embedding.weight": Place("visual.conv1.weight"),
    "text_model.embeddings.token_embedding.weight": Place("token_embedding.weight"),
    "text_model.embeddings.position_embedding.weight": Place("positional_embedding"),
}
_NORMS = {
    "vision_model.pre_layrnorm": "visual.ln_pre",  # transformers' spelling
    "vision_model.post_layernorm": "visual.ln_post",
    "text_model.final_layer_norm": "ln_final",
}
_IN_LAYERS = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def _open_clip_place(name: str) -> Place:
    """Find one of our tensors in a file of open_clip's layout."""
    name = name.removeprefix("model.")
    if name in _SINGLE:
        return _SINGLE[name]
    module, _, kind = name.rpartition(".")
    if module in _NORMS:
        return Place(f"{_NORMS[module]}.{kind}")
    match = re.fullmatch(r"(vision|text)_model\.encoder\.layers\.(\d+)\.(.+)", module)
    assert match, f"transformers' CLIP has a new tensor: {name}"
    block = f"{'visual.' if match[1] == 'vision' else ''}transformer.resblocks.{match[2]}."
    inside = match[3]
    if inside in _IN_LAYERS:
        return Place(f"{block}{_IN_LAYERS[inside]}.{kind}")
    return Place(f"{block}attn.in_proj_{kind}", third=_PARTS[inside.removeprefix("self_attn.")])
