"""World pairs as files: readable as a pair data set, the true pictures preferred, either side winning."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import torch

from reward_models.comparisons import load_views, read_comparisons
from workers.embedded.preference_pairs import PAIR_KINDS, draw_preference_pair
from workers.embedded.write_pairs import write_world_pairs

if TYPE_CHECKING:
    from pathlib import Path


def test_written_pairs_are_read_back_with_the_truth_preferred(tmp_path: Path) -> None:
    read = read_comparisons(write_world_pairs(tmp_path, 48, seed=3, tie_share=0.0), 4)
    assert len({one.prompt for one in read}) > 40
    assert set(Counter(one.preferred for one in read)) == {"a", "b"}
    assert Counter(one.source for one in read) == {f"world/{kind}": 6 for kind in PAIR_KINDS}
    first = draw_preference_pair(PAIR_KINDS[0], np.random.default_rng(3), held_out=False)
    preferred = read[0].a if read[0].preferred == "a" else read[0].b
    assert (load_views(preferred) - first.better).abs().max() <= 0.5 / 255 + 1e-6


def test_a_tie_is_one_object_seen_from_a_quarter_turn_further(tmp_path: Path) -> None:
    file = write_world_pairs(tmp_path, 40, seed=4, tie_share=0.4)
    pictures = tmp_path / "pictures"
    ties = [number for number, line in enumerate(file.read_text().splitlines()) if '"tie"' in line]
    assert 5 < len(ties) < 30
    a, b = (load_views((pictures / f"{ties[0]:05d}-{side}.npz",)) for side in ("a", "b"))
    assert torch.equal(b, a.roll(1, 0)) or torch.equal(a, b.roll(1, 0))
