"""Tables: intervals hold the mean, comparisons pair the same prompts and seeds, and a planted gain is seen."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from workers.embedded.world import SHAPES
from workers.evaluation.report import (
    best_of_table,
    comparison_table,
    contact_sheet,
    interval,
    shape_table,
    truth_table,
)


def line(arm: str, prompt: str, seed: int, iou: float, *, right: bool = True) -> dict[str, Any]:
    return {
        "arm": arm,
        "prompt": prompt,
        "seed": seed,
        "kind": "pair",
        "right": right,
        "f_score": iou,
        "silhouette_iou": iou,
        "cpu_s": 20.0,
        "picture": "one.png",
    }


def test_an_interval_holds_the_mean_and_shrinks_with_more_values() -> None:
    values = np.random.default_rng(0).normal(1.0, 1.0, 400)
    few, many = interval(list(values[:20])), interval(list(values))
    assert many[0] < values.mean() < many[1]
    assert many[1] - many[0] < few[1] - few[0]


def lines_with_gain(gain: float) -> list[dict[str, Any]]:
    rng = np.random.default_rng(1)
    lines = []
    for number in range(30):
        for seed in range(3):
            base = float(rng.uniform(0.7, 0.9))
            lines.append(line("sds", f"prompt {number}", seed, base))
            lines.append(line("dpo", f"prompt {number}", seed, base + gain + float(rng.normal(0, 0.01))))
    return lines


def cells(table: str) -> list[str]:
    return [cell.strip() for cell in table.splitlines()[2].strip("|").split("|")]


def test_a_gain_is_shown_and_noise_is_not() -> None:
    _, _, difference, bounds, wins, count = cells(
        comparison_table(lines_with_gain(0.05), "sds", ["dpo"], ["silhouette_iou"])
    )
    assert float(difference) == pytest.approx(0.05, abs=0.005)
    assert (bounds[:5], wins, count) == ("+0.04", "90 of 90 (100%)", "90")
    low, high = cells(comparison_table(lines_with_gain(0.0), "sds", ["dpo"], ["silhouette_iou"]))[3].split(
        " … "
    )
    assert float(low) < 0 < float(high)


def test_only_cases_that_both_arms_made_are_compared() -> None:
    lines = [line("sds", "a", 0, 0.5), line("dpo", "a", 0, 0.6), line("dpo", "b", 0, 0.9)]
    assert cells(comparison_table(lines, "sds", ["dpo"], ["silhouette_iou"]))[5] == "1"


@pytest.mark.parametrize(("trust", "gain"), [(1.0, 0.1), (-1.0, -0.1)])
def test_best_of_seeds_gains_what_the_reward_knows(trust: float, gain: float) -> None:
    lines = [
        line("sds", f"prompt {number}", seed, 0.8 + 0.1 * (seed - 1))
        for number in range(9)
        for seed in range(3)
    ]
    for one in lines:
        one["score:judge"] = trust * one["f_score"]
    _, _, mean, bounds, prompts = cells(best_of_table(lines, "judge", ["f_score"]))
    assert float(mean) == pytest.approx(gain)
    assert (bounds, prompts) == (f"{gain:+.4f} … {gain:+.4f}", "9")


def test_the_truth_table_tells_mean_and_least_over_prompts() -> None:
    lines = [line("sds", "a", 0, 0.9), line("sds", "a", 1, 0.7, right=False), line("sds", "b", 0, 0.6)]
    row = cells(truth_table(lines))
    assert row[:3] == ["sds", "pair", "2 of 3 (67%)"]
    assert row[4] == "0.700 (0.600)"


def test_the_shape_table_counts_the_pairs_that_hold_a_shape() -> None:
    lines = [
        line("sds", "a red cube next to a blue torus", 0, 0.9),
        line("sds", "a red torus on top of a blue torus", 0, 0.9, right=False),
    ]
    row = dict(zip(SHAPES, cells(shape_table(lines))[1:], strict=True))
    assert (row["cube"], row["torus"], row["egg"]) == ("1 of 1", "1 of 2", "0 of 0")


def test_the_contact_sheet_shows_every_object(tmp_path: Any) -> None:
    Image.new("RGB", (64, 64), "blue").save(tmp_path / "one.png")
    sheet = contact_sheet([line("sds", "a", seed, 0.9) for seed in range(9)], tmp_path)
    assert sheet.size == (8 * 160, 2 * 186)
    assert sheet.getpixel((80, 186 + 100)) == (0, 0, 255)
