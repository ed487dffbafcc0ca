"""What evaluations print: tables with bootstrap intervals, paired comparisons, a contact sheet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw

from reward_models.training import wilson_interval
from workers.embedded.world import SHAPES

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["best_of_table", "comparison_table", "contact_sheet", "interval", "shape_table", "truth_table"]


def interval(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval of the mean."""
    rng = np.random.default_rng(seed)
    means = rng.choice(values, (2000, len(values))).mean(-1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def _share_interval(shares: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the mean of prompts' shares; Wilson's where all are 0 or all 1, which cannot be resampled."""
    if set(shares) in ({0.0}, {1.0}):
        return wilson_interval(round(sum(shares)), len(shares))
    return interval(shares)


def truth_table(lines: list[dict[str, Any]]) -> str:
    """Write one Markdown row per arm and kind of prompt.

    Intervals resample prompts, as seeds of one prompt are no independent evidence.
    """
    rows = [
        "| arm | prompts | right | 95 % interval | silhouette IoU, mean (least of a prompt) | F-score | median CPU s |",
        "|---|---|---|---|---|---|---|",
    ]
    for arm in dict.fromkeys(line["arm"] for line in lines):
        for kind in ("shape", "everyday", "pair"):
            chosen = [line for line in lines if (line["arm"], line["kind"]) == (arm, kind)]
            if not chosen:
                continue
            right = [line["right"] for line in chosen]
            low, high = _share_interval(_prompt_means(chosen, "right"))
            iou = _prompt_means(chosen, "silhouette_iou")
            rows.append(
                f"| {arm} | {kind} | {sum(right):.0f} of {len(right)} ({np.mean(right):.0%}) "
                f"| {low:.0%} – {high:.0%} | {np.mean(iou):.3f} ({min(iou):.3f}) "
                f"| {np.mean([line['f_score'] for line in chosen]):.2f} "
                f"| {np.median([line['cpu_s'] for line in chosen]):.0f} |"
            )
    return "\n".join(rows)


def shape_table(lines: list[dict[str, Any]]) -> str:
    """Write one Markdown row per arm: of the pairs with a cube, with a sphere and so on, how many are right."""
    rows = [f"| arm, pairs with a | {' | '.join(SHAPES)} |", "|---" * (len(SHAPES) + 1) + "|"]
    pairs = [line for line in lines if line["kind"] == "pair"]
    for arm in dict.fromkeys(line["arm"] for line in pairs):
        cells = []
        for shape in SHAPES:
            right = [x["right"] for x in pairs if x["arm"] == arm and shape in x["prompt"].split()]
            cells.append(f"{sum(right)} of {len(right)}")
        rows.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(rows)


def _by_prompt(lines: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Lines of one prompt together, prompts in their order."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        groups.setdefault(line["prompt"], []).append(line)
    return groups


def _prompt_means(lines: list[dict[str, Any]], number: str) -> list[float]:
    """Mean over seeds, of each prompt."""
    return [float(np.mean([line[number] for line in group])) for group in _by_prompt(lines).values()]


def comparison_table(
    lines: list[dict[str, Any]], baseline: str, arms: Sequence[str], numbers: Sequence[str]
) -> str:
    """Compare arms with a baseline on the same prompts and seeds: mean difference, its interval, share of wins."""
    rows = [
        f"| arm against {baseline} | number | mean difference | 95 % interval | wins | objects |",
        "|---|---|---|---|---|---|",
    ]
    by_case = {(line["arm"], line["prompt"], line["seed"]): line for line in lines}
    for arm in arms:
        cases = [(p, s) for a, p, s in by_case if a == arm and (baseline, p, s) in by_case]
        for number in numbers if cases else ():
            gains: dict[str, list[float]] = {}
            for prompt, seed in cases:
                gain = by_case[arm, prompt, seed][number] - by_case[baseline, prompt, seed][number]
                gains.setdefault(prompt, []).append(float(gain))
            low, high = interval([float(np.mean(of_prompt)) for of_prompt in gains.values()])
            flat = np.array([gain for of_prompt in gains.values() for gain in of_prompt])
            won, lost = int((flat > 0).sum()), int((flat < 0).sum())
            rows.append(
                f"| {arm} | {number} | {flat.mean():+.4f} | {low:+.4f} … {high:+.4f} "
                f"| {won} of {won + lost} ({won / max(1, won + lost):.0%}) | {len(flat)} |"
            )
    return "\n".join(rows)


def best_of_table(lines: list[dict[str, Any]], reward: str, numbers: Sequence[str]) -> str:
    """Compare, for each arm, the object that `reward` likes best among a prompt's seeds with a random one of them."""
    rows = [
        f"| arm, best of its seeds by {reward} | number | gain over one seed | 95 % interval | prompts |",
        "|---|---|---|---|---|",
    ]
    for arm in dict.fromkeys(line["arm"] for line in lines):
        of_arm = [line for line in lines if line["arm"] == arm]
        several = [group for group in _by_prompt(of_arm).values() if len(group) > 1]
        for number in numbers if several else ():
            gains = []
            for group in several:
                best = max(group, key=lambda line: float(line[f"score:{reward}"]))
                gains.append(float(best[number]) - float(np.mean([line[number] for line in group])))
            low, high = interval(gains)
            rows.append(
                f"| {arm} | {number} | {np.mean(gains):+.4f} | {low:+.4f} … {high:+.4f} | {len(gains)} |"
            )
    return "\n".join(rows)


def contact_sheet(
    lines: list[dict[str, Any]], folder: Path, columns: int = 8, tile_px: int = 160
) -> Image.Image | None:
    """Lay out the thumbnails that are in `folder` with their prompts, green where right and red where not.

    None where there is no thumbnail.
    """
    lines = [line for line in lines if (folder / line["picture"]).exists()]
    if not lines:
        return None
    rows = -(-len(lines) // columns)
    sheet = Image.new("RGB", (columns * tile_px, rows * (tile_px + 26)), "white")
    draw = ImageDraw.Draw(sheet)
    for index, line in enumerate(lines):
        x, y = index % columns * tile_px, index // columns * (tile_px + 26)
        sheet.paste(
            Image.open(folder / line["picture"]).convert("RGB").resize((tile_px, tile_px)), (x, y + 26)
        )
        title = f"{line['prompt']} [{line['arm']} {line['seed']}]"
        color = (0, 120, 0) if line["right"] else (200, 0, 0)
        draw.text((x + 2, y + 1), title[:26], fill=color)
        draw.text((x + 2, y + 13), title[26:52], fill=color)
    return sheet
