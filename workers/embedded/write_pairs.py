"""Write preference pairs of the procedural world as a data set that a reward can be trained on.

The layout is that of `reward_models.comparisons`: a `pairs.jsonl`, and one .npz of views for each object. A share of
the pairs are ties: true pictures against the same, taken a quarter turn further.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np

from workers.embedded.preference_pairs import PAIR_KINDS, draw_preference_pair

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

__all__ = ["write_world_pairs"]


def write_world_pairs(
    folder: Path, count: int, seed: int = 0, tie_share: float = 0.05, *, held_out: bool = False
) -> Path:
    """Write `count` pairs, all kinds in turn, sides in random order; gives the path of the new `pairs.jsonl`.

    Their combinations of shapes and colors are such as may be trained on, or with `held_out` the others.
    """
    pictures = folder / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    lines = []
    for number in range(count):
        kind = PAIR_KINDS[number % len(PAIR_KINDS)]
        prompt, better, worse = draw_preference_pair(kind, rng, held_out=held_out)
        preferred = "a"
        if rng.random() < tie_share:
            worse, preferred, kind = better.roll(1, 0), "tie", "turned"
        sides = {"a": better, "b": worse}
        if rng.random() < 0.5:
            sides = {"a": worse, "b": better}
            preferred = "tie" if preferred == "tie" else "b"
        names = {side: f"pictures/{number:05d}-{side}.npz" for side in sides}
        for side, views in sides.items():
            np.savez_compressed(folder / names[side], views=_bytes(views))
        lines.append(
            json.dumps({"prompt": prompt, **names, "preferred": preferred, "source": f"world/{kind}"})
        )
    file = folder / "pairs.jsonl"
    file.write_text("\n".join(lines) + "\n", "utf-8")
    return file


def _bytes(views: Tensor) -> np.ndarray:
    """Images (V, 3, H, W) in [0, 1] as (V, H, W, 3) uint8."""
    rounded: np.ndarray = (views.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    return rounded
