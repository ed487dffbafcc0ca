"""`dreamserve reward train` without Ray: it trains, goes on, writes a weights file and its record, and refuses."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from reward_models.embedded import load_embedded_reward
from workers.main import app
from workers.reward_commands import _name_to_give

if TYPE_CHECKING:
    from pathlib import Path

    from typer.testing import Result


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["reward", *map(str, arguments)])


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    written = run("pairs", folder, "--count", "64")
    assert written.exit_code == 0, written.output
    return folder / "pairs.jsonl"


def test_it_trains_in_this_process_and_what_it_writes_loads(pairs: Path, tmp_path: Path) -> None:
    output = tmp_path / "new.safetensors"
    line = [
        "train",
        pairs,
        "-o",
        output,
        "--workers",
        "0",
        "--epochs",
        "1",
        "--batch",
        "24",
        "--renew",
        "viewer.heads",
    ]
    done = run(*line)
    assert done.exit_code == 0, done.output
    record = json.loads(output.with_suffix(".json").read_text())
    assert json.loads(done.stdout)["accuracy"] == record["test"]["accuracy"]
    assert load_embedded_reward(output).sha256 == record["sha256"]
    assert "For jobs to use it: dreamserve weights import FILE" in done.stderr
    assert _name_to_give("reward3d") == ", call it Reward3D_Scorer.safetensors"
    assert record["std"] > 0
    assert record["renewed"] == ["viewer.heads"]
    curve = (tmp_path / "new.run" / "curve.jsonl").read_text().splitlines()
    assert [json.loads(row) for row in curve] == record["curve"]

    again = run(*line)
    assert again.stdout == done.stdout, "it had ended, and is not trained again"
    other = run(*line, "--seed", "1")
    assert other.exit_code == 2
    assert "new.run holds the run of another training (its start and plan differ)" in other.stderr


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["-o", "new.pt"], "name a .safetensors file in a folder that exists"),
        (["-o", "nowhere/new.safetensors"], "name a .safetensors file in a folder that exists"),
        (["-o", "n.safetensors", "--gpu"], "--gpu wants --address of a Ray cluster with GPUs"),
        (
            ["-o", "n.safetensors", "--reward", "reward3d"],
            "'reward3d' does not come with this release: give its",
        ),
        (["-o", "n.safetensors", "--workers", "0", "--learning-rate", "-1"], "learning_rate must be above 0"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_starts(
    options: list[str], complaint: str, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refused = run("train", pairs, *options)
    assert refused.exit_code == 2
    assert complaint in refused.stderr


def test_faults_of_the_file_are_told_with_their_lines(pairs: Path, tmp_path: Path) -> None:
    broken = pairs.with_name("broken.jsonl")
    broken.write_text(pairs.read_text() + '{"prompt": "a cat", "a": "x.npz"}\n')
    refused = run("train", broken, "-o", tmp_path / "new.safetensors", "--workers", "0")
    assert refused.exit_code == 2
    assert "one-sided, a side is missing: 1 (line 65)" in refused.stderr


def test_help_tells_the_layout_of_the_file() -> None:
    told = run("train", "--help").stdout
    assert '{"prompt": "a red cube",' in told
    assert '"preferred": "a"}' in told
