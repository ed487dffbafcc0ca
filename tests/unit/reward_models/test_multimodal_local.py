"""A tiny random Qwen2.5-VL as judge, without torchvision: its chat, its patches, and what its answers depend on."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models

from reward_models.multimodal import Answers, MultimodalJudge
from reward_models.multimodal_folder import INDEX, faults, license_of
from reward_models.multimodal_formats import Boxed, Checklist, Unparsed
from reward_models.multimodal_local import SPECIAL, LocalQwen
from reward_models.multimodal_questions import Question, UnparsedAnswers, picture_bytes
from tests.unit.reward_models.small_qwen import PAD, Tiny, make_tiny, write_folder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

COLORS = {"red": (1.0, 0.0, 0.0), "blue": (0.0, 0.0, 1.0)}


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


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("published")
    write_folder(folder)
    return folder


def test_a_folder_is_loaded_as_published(published: Path, tiny: Tiny) -> None:
    question = [Question("What is it?", (noise(0),))]
    loaded = LocalQwen.from_folder(published, max_tokens=12)
    assert loaded.model == published.name
    assert loaded.answer(question) == tiny.local.answer(question)
    assert len(list(published.glob("*.safetensors"))) > 1
    assert (faults(published), license_of(published)) == ([], "Apache-2.0")


def second(folder: Path) -> Path:
    """The second of the files of the weights."""
    return sorted(folder.glob("*.safetensors"))[1]


def without(folder: Path, name: str) -> None:
    (folder / name).unlink()


def says(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text)


def cut(folder: Path, share: float) -> None:
    whole = second(folder).read_bytes()
    second(folder).write_bytes(whole[: int(share * len(whole))])


def changed(folder: Path, *, lacks: bool, told: bool) -> None:
    """Take the first tensor of a file away, or give it another shape; the index may know."""
    tensors = load_file(second(folder))
    key = min(tensors)
    tensors[key] = torch.zeros(3, 3)
    if lacks:
        del tensors[key]
    save_file(tensors, second(folder), {"format": "pt"})
    if told:
        index = json.loads((folder / INDEX).read_text())
        del index["weight_map"][key]
        (folder / INDEX).write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda folder: without(folder, "config.json"), r"config\.json is missing"),
        (lambda folder: without(folder, "tokenizer.json"), r"tokenizer\.json is missing"),
        (
            lambda folder: without(folder, INDEX),
            r"model\.safetensors is missing, and so is model\.safetensors\.index",
        ),
        (lambda folder: second(folder).unlink(), r"model-00002-of-0000\d\.safetensors is missing"),
        (
            lambda folder: says(folder, "config.json", '{"model_type": "llama"}'),
            "that of a 'llama', expected a 'qwen2",
        ),
        (lambda folder: says(folder, "config.json", "{"), r"config\.json is no JSON file"),
        (
            lambda folder: says(folder, INDEX, '{"weight_map": {"a": "../b.safetensors"}}'),
            "does not say which",
        ),
        (lambda folder: cut(folder, 0.6), r"model-00002\S+ has \d+ bytes, expected \d+: it is cut short"),
        (lambda folder: cut(folder, 0.0), r"model-00002\S+ has no header of a \.safetensors file"),
        (
            lambda folder: changed(folder, lacks=True, told=False),
            r"model-00002\S+ has no tensor 'model\.\S+', which",
        ),
        (
            lambda folder: changed(folder, lacks=True, told=True),
            r"do not fit its config.*lack 1 tensor, first model\.",
        ),
        (
            lambda folder: changed(folder, lacks=False, told=False),
            r"model\.\S+ is \(3, 3\) where \(\d+, \d+\) is exp",
        ),
    ],
)
def test_a_folder_that_is_not_whole_is_refused_with_file_and_key(
    tmp_path: Path, published: Path, damage: Callable[[Path], None], told: str
) -> None:
    folder = shutil.copytree(published, tmp_path / "damaged")
    damage(folder)
    with pytest.raises(ValueError, match=told) as caught:
        LocalQwen.from_folder(folder)
    assert str(tmp_path) not in str(caught.value), "users may read it"


@pytest.mark.parametrize(
    ("readme", "expected"),
    [
        ("---\nlicense: apache-2.0\n---\n", "Apache-2.0"),
        ("---\nlicense: other\nlicense_name: qwen-research\n---\n", "NOASSERTION"),
        ("# no head\nlicense: mit\n", "NOASSERTION"),
        ("---\nlanguage: en\n---\nlicense: mit\n", "NOASSERTION"),
    ],
)
def test_a_license_is_what_the_head_of_the_page_says(tmp_path: Path, readme: str, expected: str) -> None:
    (tmp_path / "README.md").write_text(readme)
    assert license_of(tmp_path) == expected


def test_a_foreign_tokenizer_is_refused(tiny: Tiny) -> None:
    bare = Tokenizer(models.BPE({"a": 0}, []))
    with pytest.raises(ValueError, match=r"does not know <\|im_start\|>"):
        LocalQwen(tiny.network, bare, model="x")
    shifted = Tokenizer(models.BPE({"a": 0}, []))
    shifted.add_special_tokens(list(SPECIAL))
    with pytest.raises(ValueError, match="they are not of one model"):
        LocalQwen(tiny.network, shifted, model="x")
