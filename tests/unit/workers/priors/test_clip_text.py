from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from tests.unit.workers.priors.tiny_priors import TINY
from workers.priors.clip_text import (
    PromptEncoder,
    TextConfig,
    from_open_clip,
    text_names,
    to_open_clip,
)
from workers.priors.weight_files import Target, checked_tensors, fill

if TYPE_CHECKING:
    from torch import Tensor


def _open_clip_tensors(config: TextConfig) -> dict[str, Tensor]:
    """A random tower under the names that open_clip gives it."""
    torch.manual_seed(0)
    d, m = config.width, config.mlp_width
    tensors = {
        "token_embedding.weight": torch.randn(config.vocab_size, d),
        "positional_embedding": torch.randn(config.num_tokens, d),
        "ln_final.weight": torch.randn(d),
        "ln_final.bias": torch.randn(d),
        "text_projection": torch.randn(d, d),
        "logit_scale": torch.randn(()),
    }
    shapes: dict[str, tuple[int, ...]] = {
        "ln_1.weight": (d,),
        "ln_1.bias": (d,),
        "attn.in_proj_weight": (3 * d, d),
        "attn.in_proj_bias": (3 * d,),
        "attn.out_proj.weight": (d, d),
        "attn.out_proj.bias": (d,),
        "ln_2.weight": (d,),
        "ln_2.bias": (d,),
        "mlp.c_fc.weight": (m, d),
        "mlp.c_fc.bias": (m,),
        "mlp.c_proj.weight": (d, m),
        "mlp.c_proj.bias": (d,),
    }
    for block in range(config.layers):
        for name, shape in shapes.items():
            tensors[f"transformer.resblocks.{block}.{name}"] = torch.randn(shape) / shape[-1] ** 0.5
    return tensors


def _penultimate(ids: Tensor, w: dict[str, Tensor], config: TextConfig) -> Tensor:
    """open_clip's tower without its last block, written down plainly: pre-norm, causal attention, exact GELU."""
    x = w["token_embedding.weight"][ids] + w["positional_embedding"]
    for block in range(config.layers - 1):
        p = {
            name.removeprefix(f"transformer.resblocks.{block}."): tensor
            for name, tensor in w.items()
            if name.startswith(f"transformer.resblocks.{block}.")
        }
        h = F.layer_norm(x, x.shape[-1:], p["ln_1.weight"], p["ln_1.bias"])
        q, k, v = F.linear(h, p["attn.in_proj_weight"], p["attn.in_proj_bias"]).chunk(3, -1)
        q, k, v = (y.unflatten(-1, (config.heads, -1)).transpose(1, 2) for y in (q, k, v))
        h = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        x = x + F.linear(h, p["attn.out_proj.weight"], p["attn.out_proj.bias"])
        h = F.layer_norm(x, x.shape[-1:], p["ln_2.weight"], p["ln_2.bias"])
        h = F.gelu(F.linear(h, p["mlp.c_fc.weight"], p["mlp.c_fc.bias"]))
        x = x + F.linear(h, p["mlp.c_proj.weight"], p["mlp.c_proj.bias"])
    return F.layer_norm(x, x.shape[-1:], w["ln_final.weight"], w["ln_final.bias"])


def test_an_open_clip_tower_gives_the_normalized_output_of_its_last_block_but_one() -> None:
    config = TINY.text
    tensors = _open_clip_tensors(config)
    with torch.device("meta"):
        encoder = PromptEncoder.of_published(config)
    found = checked_tensors(encoder, from_open_clip(tensors, config), text_names(encoder), "tower")
    fill(encoder, found, Target.of("cpu"))
    ids = torch.randint(0, config.vocab_size, (3, 77))
    torch.testing.assert_close(encoder(ids), _penultimate(ids, tensors, config), atol=1e-4, rtol=1e-4)


def test_joint_projections_are_split_and_joined_back_bit_equal() -> None:
    config = TINY.text
    tensors = _open_clip_tensors(config)
    joined = to_open_clip(from_open_clip(tensors, config))
    left_out = {name for name in tensors if ".resblocks.2." in name} | {"text_projection", "logit_scale"}
    assert set(joined) == set(tensors) - left_out
    assert all(torch.equal(joined[name], tensors[name]) for name in joined)


def test_the_published_tower_has_the_names_of_23_blocks() -> None:
    with torch.device("meta"):
        encoder = PromptEncoder.of_published(TextConfig())
    assert set(text_names(encoder).values()) == set(encoder.state_dict())
    # embedding and positions, 23 blocks of 16 (projections split), final norm
    assert len(text_names(encoder)) == 2 + 23 * 16 + 2
