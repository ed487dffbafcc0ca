"""A reward is trained by two workers of Ray Train, killed, and trained on: as one process alone would have done."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from reward_models.embedded import load_embedded_reward
from reward_models.train import TrainingRequest, train_reward
from reward_models.trainable import Start
from reward_models.training import TrainingPlan
from tests.cluster.conftest import descendants, process_table
from workers.embedded.write_pairs import write_world_pairs
from workers.weights import EMBEDDED_REWARDS

if TYPE_CHECKING:
    from pathlib import Path

NAME = "embedded-multiview"
RENEWED = ("viewer.heads",)
PLAN = TrainingPlan(learning_rate=1e-3, batch=32, epochs=2, evaluations_per_epoch=2)
PATIENCE_S = 600.0


def wait_until(what: Any, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not what():
        assert time.monotonic() < deadline, f"not so after {PATIENCE_S} s"
        assert process.poll() is None, f"it ended with {process.returncode}"
        threading.Event().wait(0.05)


def command(pairs: Path, output: Path) -> list[str]:
    options = {
        "--reward": NAME,
        "--workers": 2,
        "--batch": PLAN.batch,
        "--epochs": PLAN.epochs,
        "--learning-rate": PLAN.learning_rate,
    }
    given = [str(word) for option in options.items() for word in option]
    renewed = [word for part in RENEWED for word in ("--renew", part)]
    return [
        sys.executable,
        "-m",
        "workers.main",
        "reward",
        "train",
        str(pairs),
        "-o",
        str(output),
        *given,
        *renewed,
    ]


def kill_when_under_way(process: subprocess.Popen[str], curve: Path) -> None:
    """Kill the command like the kernel would, when two evaluations are saved, and wait for its workers to end."""
    wait_until(lambda: curve.is_file() and len(curve.read_text().splitlines()) >= 2, process)
    started = descendants(process.pid)
    working = {pid for pid, line in started.items() if line.startswith("ray::") and "Agent" not in line}
    assert len(working) >= 3, "a controller and two workers"
    process.kill()
    process.wait()
    deadline = time.monotonic() + 60
    while working & process_table().keys():
        assert time.monotonic() < deadline, "the workers outlive the command"
        threading.Event().wait(0.1)


@pytest.mark.cluster
@pytest.mark.slow
def test_two_workers_killed_and_started_again_train_what_one_process_trains(tmp_path: Path) -> None:
    pairs = write_world_pairs(tmp_path / "pairs", 120, seed=5)
    line, output = command(pairs, tmp_path / "new.safetensors"), tmp_path / "new.safetensors"
    environ = os.environ | {"RAY_worker_niceness": "0"}
    first = subprocess.Popen(line, env=environ, stdout=subprocess.DEVNULL, text=True, start_new_session=True)
    kill_when_under_way(first, tmp_path / "new.run" / "curve.jsonl")
    assert not output.exists()
    told = subprocess.run(
        line, env=environ, stdout=subprocess.PIPE, check=True, timeout=PATIENCE_S, text=True
    )
    record = json.loads(output.with_suffix(".json").read_text())

    start = Start(NAME, EMBEDDED_REWARDS[NAME], renew=RENEWED)
    alone = train_reward(
        TrainingRequest(pairs, start, PLAN, tmp_path / "alone.run", tmp_path / "alone.safetensors"), 0
    )
    assert record["workers"] == 2
    first_begun, last_begun = record["begun_at_steps"]
    assert first_begun == 0 < last_begun, "it went on from a checkpoint"
    assert [row["step"] for row in record["curve"]] == [row["step"] for row in alone["curve"]]
    losses = [[row["loss"] for row in one["curve"]] for one in (record, alone)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)
    low, high = alone["test"]["interval"]
    assert low <= record["test"]["accuracy"] <= high
    assert json.loads(told.stdout.splitlines()[-1])["accuracy"] == record["test"]["accuracy"]
    assert load_embedded_reward(output).sha256 == record["sha256"]
