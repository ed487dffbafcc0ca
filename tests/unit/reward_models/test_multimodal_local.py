"""A tiny random Qwen2.5-VL as judge, without torchvision: its chat, its patches, and what its answers depend on."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from reward_models.multimodal import Answers, MultimodalJudge
from reward_models.multimodal_formats import Boxed, Checklist, Unparsed
from reward_models.multimodal_local import SPECIAL, LocalQwen
from reward_models.multimodal_questions import Question, UnparsedAnswers, picture_bytes

if TYPE_CHECKING:
    from pathlib import Path

COLORS = {"red": (1.0, 0.0, 0.0), "blue": (0.0, 0.0, 1.0)}
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


@pytest.fixture(scope="module")
def tiny() -> Tiny:
    return make_tiny()


def view(color: str, px: int = 56) -> torch.Tensor:
    return torch.tensor(COLORS[color])[:, None, None].expand(3, px, px).clone()


def noise(seed: int, height: int = 56, width: int = 84) -> bytes:
    return picture_bytes(torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed)))


def test_leaving_out_the_token_kinds_changes_the_logits(tiny: Tiny) -> None:
    inputs = tiny.local.encode(Question("What is it?", (noise(0),)))
    without = {name: tensor for name, tensor in inputs.items() if name != "mm_token_type_ids"}
    with torch.no_grad():
        whole, blind = tiny.network(**inputs).logits, tiny.network(**without).logits
    assert (whole - blind).abs().max() > 0.05 * whole.abs().max()


def test_the_chat_is_qwens_and_holds_a_token_for_each_patch(tiny: Tiny) -> None:
    inputs = tiny.local.encode(Question("Is it red?", (noise(0), noise(1, 56, 56))))
    said = tiny.tokenizer.decode(inputs["input_ids"][0].tolist(), skip_special_tokens=False)
    assert said == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        f"<|vision_start|>{PAD * 6}<|vision_end|><|vision_start|>{PAD * 4}<|vision_end|>Is it red?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert inputs["mm_token_type_ids"].sum() == 10
    assert inputs["image_grid_thw"].tolist() == [[1, 4, 6], [1, 4, 4]]
    assert inputs["pixel_values"].shape == (40, 1176)


def test_marks_in_a_prompt_are_plain_text(tiny: Tiny) -> None:
    inputs = tiny.local.encode(Question(f"{PAD}<|im_end|> is red", (noise(0),)))
    assert inputs["mm_token_type_ids"].sum() == 6
    ends = inputs["input_ids"] == tiny.tokenizer.token_to_id("<|im_end|>")
    assert ends.sum() == 2
    assert f"{PAD}<|im_end|> is red" in tiny.tokenizer.decode(
        inputs["input_ids"][0].tolist(), skip_special_tokens=False
    )


def test_an_answer_does_not_depend_on_what_else_is_asked(tiny: Tiny) -> None:
    questions = [
        Question("?", (noise(0),)),
        Question("What is to be seen here?", (noise(1), noise(2))),
        Question("?"),
    ]
    together = tiny.local.answer(questions)
    assert together == [tiny.local.answer([question])[0] for question in questions]
    assert len(set(together)) > 1


def test_a_random_model_never_gives_a_score(tiny: Tiny) -> None:
    answers = Answers(tiny.local)
    judge = MultimodalJudge("lmm", Boxed(), answers, license="Apache-2.0")
    images = torch.stack([view("red"), view("blue")])[:, None]
    assert all(isinstance(one, Unparsed) for row in judge.judge(images, ["x"] * 2) for one in row)
    with pytest.raises(UnparsedAnswers, match="2 of 2 answers"):
        judge.score_batch(images, ["x"] * 2, torch.zeros(2, dtype=torch.bool))


@pytest.mark.slow
def test_a_model_taught_to_tell_two_colors_judges_pictures_from_pixels_to_scores() -> None:
    local, network, tokenizer = make_tiny()
    checklist = Checklist(lambda prompt: ["Is it red?"])
    text = checklist.form("a red thing").text
    rows = []
    for color, answer in (("red", "A1: Yes"), ("blue", "A1: No")):
        row = local.encode(Question(text, (picture_bytes(view(color)),)))
        target = torch.tensor([[*tokenizer.encode(answer).ids, tokenizer.token_to_id("<|im_end|>")]])
        row["labels"] = torch.cat([torch.full_like(row["input_ids"], -100), target], 1)
        row["input_ids"] = torch.cat([row["input_ids"], target], 1)
        row["attention_mask"] = torch.ones_like(row["input_ids"])
        row["mm_token_type_ids"] = torch.nn.functional.pad(row["mm_token_type_ids"], (0, target.shape[1]))
        rows.append(row)
    network.requires_grad_(True)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        sum(network(**row).loss for row in rows).backward()
        optimizer.step()
    network.requires_grad_(False)
    judge = MultimodalJudge("lmm", checklist, Answers(local), license="Apache-2.0")
    images = torch.stack([view("red"), view("blue")])[None]
    values, _ = judge.score_batch(images, ["a red thing"], torch.tensor([False]))
    assert values.tolist() == [[1.0, 0.0]]


def test_a_folder_is_loaded_as_published(tmp_path: Path) -> None:
    local, network, tokenizer = make_tiny()
    network.save_pretrained(tmp_path)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    question = [Question("What is it?", (noise(0),))]
    loaded = LocalQwen.from_folder(tmp_path, max_tokens=12)
    assert loaded.model == tmp_path.name
    assert loaded.answer(question) == local.answer(question)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"has no tokenizer\.json"):
        LocalQwen.from_folder(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "tokenizer.json").touch()
    with pytest.raises(ValueError, match="holds a 'llama'; expected a 'qwen2_5_vl'"):
        LocalQwen.from_folder(tmp_path)


def test_a_foreign_tokenizer_is_refused(tiny: Tiny) -> None:
    bare = Tokenizer(models.BPE({"a": 0}, []))
    with pytest.raises(ValueError, match=r"does not know <\|im_start\|>"):
        LocalQwen(tiny.network, bare, model="x")
    shifted = Tokenizer(models.BPE({"a": 0}, []))
    shifted.add_special_tokens(list(SPECIAL))
    with pytest.raises(ValueError, match="they are not of one model"):
        LocalQwen(tiny.network, shifted, model="x")
