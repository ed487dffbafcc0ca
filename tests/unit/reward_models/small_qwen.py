"""A tiny Qwen2.5-VL, as a network and as the folder that one would fetch."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from reward_models.multimodal_local import SPECIAL, LocalQwen

if TYPE_CHECKING:
    from pathlib import Path

PAD = "<|image_pad|>"


def byte_tokenizer() -> Tokenizer:
    """One token for each byte, and Qwen's marks."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: n for n, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(mark, special=True) for mark in SPECIAL])
    return tokenizer


def tiny_network(tokenizer: Tokenizer, seed: int = 0) -> Qwen2_5_VLForConditionalGeneration:
    torch.manual_seed(seed)
    marks = {mark: tokenizer.token_to_id(mark) for mark in SPECIAL}
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": tokenizer.get_vocab_size(),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 4096,
            "initializer_range": 0.3,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]},
            "bos_token_id": None,
            "eos_token_id": marks["<|im_end|>"],
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "out_hidden_size": 32,
            "fullatt_block_indexes": [1],
            "initializer_range": 0.3,
        },
        image_token_id=marks[PAD],
        video_token_id=tokenizer.get_vocab_size() - 1,
        vision_start_token_id=marks["<|vision_start|>"],
        vision_end_token_id=marks["<|vision_end|>"],
    )
    return Qwen2_5_VLForConditionalGeneration(config).eval()


class Tiny(NamedTuple):
    """A transport and what it is made of."""

    local: LocalQwen
    network: Qwen2_5_VLForConditionalGeneration
    tokenizer: Tokenizer


def make_tiny() -> Tiny:
    tokenizer = byte_tokenizer()
    network = tiny_network(tokenizer)
    return Tiny(LocalQwen(network, tokenizer, model="tiny", max_tokens=12), network, tokenizer)


@torch.no_grad()
def write_folder(folder: Path, answer: str | None = None) -> Tiny:
    """Write a tiny random network as it is published, in several files; one that gives an `answer` gives no other.

    Such a network looks at pictures in vain: each of its tokens is followed by one that its head has been told.
    """
    tiny = make_tiny()
    network, tokenizer = tiny.network, tiny.tokenizer
    if answer is not None:
        _teach(network, tokenizer, answer)
    network.save_pretrained(folder, max_shard_size="100KB")
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "README.md").write_text("---\nlicense: apache-2.0\nlanguage: en\n---\n# A tiny one\n")
    return tiny


@torch.no_grad()
def _teach(network: Qwen2_5_VLForConditionalGeneration, tokenizer: Tokenizer, answer: str) -> None:
    """Let the head name the answer after the assistant's new line, as one token, and then the end."""
    tokenizer.add_tokens([AddedToken(answer, special=False, normalized=False)])
    network.resize_token_embeddings(tokenizer.get_vocab_size())
    for layer in network.model.language_model.layers:
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    words, head = network.get_input_embeddings().weight, network.get_output_embeddings().weight
    (line,), (said,) = tokenizer.encode("\n").ids, tokenizer.encode(answer).ids
    words[said] = torch.randn_like(words[said])
    head.zero_()
    head[said], head[tokenizer.token_to_id("<|im_end|>")] = words[line], words[said]
