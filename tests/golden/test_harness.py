"""The harness itself: what it finds wrong, what it collects, and that adapters call what the product calls."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch

from tests.golden.adapters import CASES, NOT_YET, name_of
from tests.golden.compare import complaints, tolerance_of
from tests.golden.conftest import COPY, _cases

ROOT = Path(__file__).parents[2]
PRODUCTION = [file for package in ("workers", "reward_models") for file in (ROOT / package).rglob("*.py")]
ADAPTERS = sorted(Path(__file__).parent.glob("*_adapters.py"))


def test_right_answers_are_accepted_within_the_tolerance() -> None:
    tensors = {"in.x": torch.ones(1), "out.y": torch.tensor([1.0, -2.0])}
    assert complaints("some_network", {}, tensors, {"out.y": torch.tensor([1.0001, -2.0001])}) == []
    rows = {"rows": [{"weight": 10}, {"weight": 0.5}], "order": ["side", "front"]}
    assert complaints("some_rows", rows, {}, {"rows.*.weight": [10.0, 0.5], "order": ["side", "front"]}) == []


@pytest.mark.parametrize(
    ("got", "said"),
    [
        ({}, "out.y: not answered"),
        ({"out.y": torch.tensor([1.0, -2.001])}, "out.y: off by 0.001 at element 1"),
        ({"out.y": torch.tensor([1.0, torch.nan])}, "out.y: off by nan at element 1"),
        ({"out.y": torch.tensor([[1.0, -2.0]])}, "out.y: shape (1, 2), expected (2,)"),
        (
            {"out.y": torch.tensor([1.0, -2.0]), "out.z": 1},
            "out.z: answered, but the case holds no such expectation",
        ),
        (
            {"out.y": torch.tensor([1.0, -2.0]), "rows.*.n": [1, 3]},
            "rows.*.n: [1] 1 of 1 whole numbers differ",
        ),
        ({"out.y": torch.tensor([1.0, -2.0]), "rows.*.n": [1]}, "rows.*.n: 1 entries, expected 2"),
    ],
)
def test_every_wrong_answer_is_named(got: dict[str, object], said: str) -> None:
    tensors, document = {"out.y": torch.tensor([1.0, -2.0])}, {"rows": [{"n": 1}, {"n": 2}]}
    lines = complaints("some_network", document, tensors, got)
    assert any(line.startswith(said) for line in lines), lines


def test_a_documents_own_tolerance_comes_first() -> None:
    assert tolerance_of("x", "out.y", {"tolerance": {"atol": 1e-5, "rtol": 1e-4}})[:2] == (1e-5, 1e-4)
    assert tolerance_of("dreamfl", "out.loss.g1.step9800.t60", {}).of_max == 1e-4
    assert tolerance_of("dreamfl", "out.loss.g1.step9801.t60", {}).of_max == 1e-3


def test_a_case_belongs_to_the_longest_name_and_a_strange_one_to_none() -> None:
    assert name_of("imagereward_head") == "imagereward_head"
    assert name_of("imagereward_s7") == "imagereward"
    assert name_of("strange_case_s1") is None


def test_no_case_is_both_answered_and_put_off() -> None:
    assert not set(CASES) & set(NOT_YET)


def test_a_copy_of_a_case_is_run_once_and_another_case_of_its_name_under_its_folders_name(
    tmp_path: Path,
) -> None:
    (tmp_path / "calculate_weight.json").write_bytes((COPY / "calculate_weight.json").read_bytes())
    (tmp_path / "view_prompts.json").write_text("{}")
    (tmp_path / "vqvae3d_s70.json").write_text("{}")
    copied = _cases([COPY])
    assert set(_cases([COPY, tmp_path])) - set(copied) == {f"{tmp_path.name}/view_prompts"}


@pytest.mark.parametrize("adapters", ADAPTERS, ids=lambda file: file.stem)
def test_what_adapters_call_is_called_by_the_product_too(adapters: Path) -> None:
    used: set[str] = set()
    for file in PRODUCTION:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
                used.add(node.id)
            elif isinstance(node, ast.Attribute):
                used.add(node.attr)
    called = {
        alias.name
        for node in ast.walk(ast.parse(adapters.read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(("workers", "reward_models"))
        for alias in node.names
    }
    constants_and_modules = {name for name in called if name.isupper()} | {file.stem for file in PRODUCTION}
    assert called - constants_and_modules <= used, f"only {adapters.name} calls them"
