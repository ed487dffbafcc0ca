"""Small files of comparisons: random pictures, of which the brighter object is preferred."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["write_lines", "write_pairs"]


def write_lines(file: Path, lines: list[Any]) -> Path:
    """Write JSON objects, or raw text, one a line."""
    file.write_text("\n".join(one if isinstance(one, str) else json.dumps(one) for one in lines) + "\n")
    return file


def write_pairs(folder: Path, count: int, *, views: int = 4, px: int = 20, ties: int = 0) -> Path:
    """Write `count` pairs of different prompts, the last `ties` of them ties."""
    rng = np.random.default_rng(0)
    lines: list[Any] = []
    for number in range(count):
        dark, bright = ((rng.random((views, px, px, 3)) * 100 + extra).astype(np.uint8) for extra in (0, 100))
        bright_is_a = bool(rng.random() < 0.5)
        for side, pictures in (
            ("a", bright if bright_is_a else dark),
            ("b", dark if bright_is_a else bright),
        ):
            np.savez(folder / f"{number}-{side}.npz", views=pictures)
        preferred = "tie" if number >= count - ties else "a" if bright_is_a else "b"
        prompt = f"a {'red' if number % 2 else 'cat'} {number}"
        lines.append(
            {"prompt": prompt, "a": f"{number}-a.npz", "b": f"{number}-b.npz", "preferred": preferred}
        )
    return write_lines(folder / "pairs.jsonl", lines)
