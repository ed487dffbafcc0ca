"""The pair data set: what it takes, what it refuses by count and line, and that parts of a split share no prompt."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image

from reward_models.comparisons import Comparison, load_views, read_comparisons, split_by_prompt
from reward_models.contracts import ViewPrompt
from tests.unit.reward_models.pair_files import write_lines, write_pairs

if TYPE_CHECKING:
    from pathlib import Path


def lines_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def refusal(file: Path, num_views: int | None = 4) -> str:
    with pytest.raises(ValueError, match=r"pairs\.jsonl") as caught:
        read_comparisons(file, num_views)
    return str(caught.value)


def test_sound_pairs_are_read_with_their_lines(tmp_path: Path) -> None:
    file = write_pairs(tmp_path, 40, ties=3)
    file.write_text("\n" + file.read_text())
    read = read_comparisons(file, 4)
    assert [one.line for one in read] == list(range(2, 42))
    assert [one.preferred for one in read[-3:]] == ["tie"] * 3
    assert load_views(read[0].a).shape == (4, 3, 20, 20)


def test_pictures_are_read_as_views_and_put_on_white(tmp_path: Path) -> None:
    Image.new("RGB", (6, 5), (255, 0, 0)).save(tmp_path / "red.png")
    Image.new("RGBA", (6, 5), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    views = load_views((tmp_path / "red.png", tmp_path / "clear.png"))
    assert views.shape == (2, 3, 5, 6)
    assert torch.equal(views[0, :, 0, 0], torch.tensor([1.0, 0.0, 0.0]))
    assert views[1].min() == 1


def test_lines_that_are_no_comparison_are_told_by_count_and_line(tmp_path: Path) -> None:
    lines = lines_of(write_pairs(tmp_path, 40))
    bad: list[Any] = [
        "{not json",
        ["a"],
        {**lines[0], "prefered": "a"},
        {**lines[1], "preferred": "left"},
        {**lines[2], "prompt": " "},
        {**lines[3], "a": "1.png"},
        {**lines[4], "sides": ["front", "below"]},
        {**lines[5], "b": []},
        {key: value for key, value in lines[6].items() if key != "a"},
    ]
    told = refusal(write_lines(tmp_path / "pairs.jsonl", [*bad, *lines]))
    assert "no JSON: 1 (line 1); first: Expecting property name" in told
    assert "no comparison: 6 (lines 2, 3, 4, 5, 6, …); first: it is a list" in told
    assert "one-sided, a side is missing: 2 (lines 8, 9); first: nothing under 'b'" in told


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"preferred": "left"}, "'preferred' is 'left', expected 'a', 'b' or 'tie'"),
        ({"winner": "a"}, "unknown key 'winner', expected a, b, preferred, prompt, sides, source"),
        ({"a": "picture.png"}, "'picture.png' is neither a list of pictures nor one .npz file"),
        ({"sides": ["front"]}, r"1 'sides', expected 4"),
    ],
)
def test_a_fault_says_what_was_found_and_expected(
    change: dict[str, Any], complaint: str, tmp_path: Path
) -> None:
    lines = lines_of(write_pairs(tmp_path, 40))
    told = refusal(write_lines(tmp_path / "pairs.jsonl", [*lines[:7], lines[7] | change, *lines[8:]]))
    assert "line 8" in told
    assert complaint in told


def test_broken_pictures_are_told_by_count_and_line(tmp_path: Path) -> None:
    lines = lines_of(write_pairs(tmp_path, 40))
    (tmp_path / "3-a.npz").write_bytes(b"no views")
    np.savez(tmp_path / "4-a.npz", views=np.zeros((4, 20, 20, 3)))
    np.savez(tmp_path / "5-a.npz", pictures=np.zeros((4, 20, 20, 3), np.uint8))
    (tmp_path / "6-a.npz").unlink()
    Image.new("RGB", (64, 64)).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:60])
    lines[7]["b"] = ["whole.png"] * 3 + ["cut.png"]
    told = refusal(write_lines(tmp_path / "pairs.jsonl", lines))
    assert "broken pictures: 5 (lines 4, 5, 6, 7, 8)" in told
    assert "3-a.npz cannot be read as views" in told


def test_wrong_numbers_of_views_are_told_with_what_is_wanted(tmp_path: Path) -> None:
    lines = lines_of(write_pairs(tmp_path, 40))
    for number in (9, 12):
        np.savez(tmp_path / f"{number}-b.npz", views=np.full((3, 20, 20, 3), number, np.uint8))
    told = refusal(write_lines(tmp_path / "pairs.jsonl", lines))
    assert "wrong number of views: 2 (lines 10, 13); first: 3 views, expected 4" in told
    assert "wrong number of views: 2" in refusal(tmp_path / "pairs.jsonl", num_views=None)


def test_the_same_pictures_on_both_sides_are_no_comparison(tmp_path: Path) -> None:
    lines = lines_of(write_pairs(tmp_path, 40))
    (tmp_path / "2-b.npz").write_bytes((tmp_path / "2-a.npz").read_bytes())
    told = refusal(write_lines(tmp_path / "pairs.jsonl", lines))
    assert "one-sided, both sides are the same pictures: 1 (line 3)" in told


def test_contradictions_are_told_with_both_lines_and_repetitions_are_taken(tmp_path: Path) -> None:
    lines = lines_of(write_pairs(tmp_path, 40))
    turned = {"prompt": "A  cat 0", "a": lines[0]["b"], "b": lines[0]["a"]}
    agrees = turned | {"preferred": "b" if lines[0]["preferred"] == "a" else "a"}
    assert len(read_comparisons(write_lines(tmp_path / "pairs.jsonl", [*lines, agrees]), 4)) == 41
    for preferred in (lines[0]["preferred"], "tie"):
        told = refusal(write_lines(tmp_path / "pairs.jsonl", [*lines, turned | {"preferred": preferred}]))
        assert "contradictory: 1 (line 41); first: the same pair is judged otherwise in line 1" in told


def test_too_few_pairs_or_prompts_are_counted(tmp_path: Path) -> None:
    file = write_pairs(tmp_path, 36, ties=6)
    assert "too few comparisons: 30 decided ones and 6 ties for 36 prompts" in refusal(file)
    lines = [line | {"prompt": "a cat"} for line in lines_of(write_pairs(tmp_path, 40))]
    assert "40 decided ones and 0 ties for 1 prompts" in refusal(write_lines(file, lines))


def test_a_side_that_always_wins_is_refused_unless_it_is_expected(tmp_path: Path) -> None:
    lines = lines_of(write_pairs(tmp_path, 40))
    file = write_lines(tmp_path / "pairs.jsonl", [line | {"preferred": "b"} for line in lines])
    assert "one-sided: all 40 decided comparisons (lines 1 to 40) prefer 'b'" in refusal(file)
    assert len(read_comparisons(file, 4, one_sided=True)) == 40


def test_sides_make_a_text_for_each_view(tmp_path: Path) -> None:
    sides = ["front", "side", "back", "side"]
    lines = [line | {"sides": sides} for line in lines_of(write_pairs(tmp_path, 40))]
    prompt = read_comparisons(write_lines(tmp_path / "pairs.jsonl", lines), 4)[0].prompt
    assert isinstance(prompt, ViewPrompt)
    assert prompt.views[2] == "a cat 0, back view"


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert "pairs.jsonl cannot be read" in refusal(tmp_path / "pairs.jsonl")


def comparison(prompt: str, line: int = 1) -> Comparison:
    return Comparison(line, prompt, (), (), "a")


def test_no_prompt_is_in_two_parts_and_none_changes_its_part_when_the_file_grows() -> None:
    prompts = [f"{start} thing {number}" for number in range(300) for start in ("A", "a ", "  a")]
    whole = split_by_prompt([comparison(prompt) for prompt in prompts])
    kinds = [{" ".join(one.prompt.casefold().split()) for one in part} for part in whole]
    assert not kinds[0] & kinds[1] | kinds[1] & kinds[2] | kinds[0] & kinds[2]
    assert sum(map(len, whole)) == 900
    assert [round(len(part) / 900, 1) for part in whole] == [0.8, 0.1, 0.1]
    half = split_by_prompt([comparison(prompt) for prompt in prompts[:450]])
    for few, many in zip(half, whole, strict=True):
        assert {one.prompt for one in few} <= {one.prompt for one in many}


def test_a_part_without_a_decided_comparison_is_refused() -> None:
    with pytest.raises(ValueError, match="validation part has 0 comparisons"):
        split_by_prompt([comparison(f"{number}") for number in range(100)], validation=0)
