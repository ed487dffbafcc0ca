"""Our code against the numbers of the public reference code."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from tests.golden.adapters import CASES, name_of
from tests.golden.compare import complaints, read_case

if TYPE_CHECKING:
    from pathlib import Path


def test_golden(golden_case: Path) -> None:
    name = name_of(golden_case.stem)
    if name is None:
        pytest.fail(f"no adapter in tests/golden/adapters.py answers the case '{golden_case.stem}'")
    torch.manual_seed(0)
    document, tensors = read_case(golden_case.parent, golden_case.stem)
    lines = complaints(golden_case.stem, document, tensors, CASES[name](document, tensors))
    assert not lines, "\n".join([f"{len(lines)} answers of {golden_case} are wrong:", *lines])
