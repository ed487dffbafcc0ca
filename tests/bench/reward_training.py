"""Retrain the embedded reward on Ray Train, with one and with two workers, and compare it with the shipped one.

Run `python -m tests.bench.reward_training FOLDER [--pairs 8000] [--epochs 6] [--renew viewer.heads …]`; it prints JSON.
All are tested on the same pairs, whose combinations of shapes and colors no training has seen. What is retrained has
forgotten the modules named by `--renew`; what it knows with them lost is printed as `at_the_start`.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from reward_models.comparisons import read_comparisons
from reward_models.train import TrainingRequest, train_reward
from reward_models.trainable import Start, open_trainable
from reward_models.training import TrainingPlan, measure, wilson_interval
from workers.embedded.write_pairs import write_world_pairs
from workers.up import private_ray
from workers.weights import EMBEDDED_REWARDS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reward_models.comparisons import Comparison

NAME = "embedded-multiview"
TEST_PAIRS = 800
FORGOTTEN = ("viewer.heads", "viewer.damage")
"""The layers that give the answers; what looks at the pictures stays, as ImageReward's trunk does in Reward3D."""


def tested(start: Start, comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """Accuracy of a reward as it is."""
    seen = measure(open_trainable(start), comparisons)
    low, high = wilson_interval(seen.right, seen.decided)
    return {
        "accuracy": round(seen.accuracy, 4),
        "interval": [round(low, 4), round(high, 4)],
        "decided": seen.decided,
    }


def run(
    folder: Path, num_pairs: int, epochs: int, renew: tuple[str, ...], workers: list[int]
) -> dict[str, Any]:
    """Write pairs unless they are there, test, train with each number of workers."""
    torch.set_num_threads(1)
    pairs, held_out = folder / "training" / "pairs.jsonl", folder / "test" / "pairs.jsonl"
    if not pairs.is_file():
        write_world_pairs(pairs.parent, num_pairs, seed=11)
    if not held_out.is_file():
        write_world_pairs(held_out.parent, TEST_PAIRS, seed=12, held_out=True)
    weights = EMBEDDED_REWARDS[NAME]
    start = Start(NAME, weights, renew=renew)
    test = read_comparisons(held_out, 4, check_pictures=False)
    answer = {"shipped": tested(Start(NAME, weights), test), "at_the_start": tested(start, test)}
    plan = TrainingPlan(learning_rate=1e-3, epochs=epochs, evaluations_per_epoch=2, patience=6)
    with private_ray():
        for count in workers:
            began = time.monotonic()
            run_folder, output = folder / f"{count}.run", folder / f"{count}.safetensors"
            record = train_reward(TrainingRequest(pairs, start, plan, run_folder, output), count)
            minutes = round((time.monotonic() - began) / 60, 1)
            seen = tested(Start(NAME, output), test)
            answer[f"retrained_by_{count}"] = {**seen, "steps": record["steps"], "minutes": minutes}
    return answer


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pairs", type=int, default=8_000)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--renew", nargs="*", default=FORGOTTEN)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    given = parser.parse_args()
    print(
        json.dumps(run(given.folder, given.pairs, given.epochs, tuple(given.renew), given.workers), indent=1)
    )
