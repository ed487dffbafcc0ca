"""Training from scratch: the loss falls, and an interrupted run ends with the bits of an undisturbed one."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest
import torch

from workers.embedded.dataset import render_pictures
from workers.embedded.train_prior import train_prior, train_text
from workers.embedded.training import TrainingRun

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("pictures")
    render_pictures(folder, 100, seed=0)
    return folder


def curve(folder: Path, stage: str) -> list[dict[str, float]]:
    state = torch.load(folder / f"{stage}.pt", weights_only=True)
    return list(state["curve"])


def test_the_prior_learns_and_resumes_bit_equal(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [tmp_path / name for name in ("whole", "interrupted")]
    for folder in folders:
        shutil.copytree(pictures, folder)
    train_prior(folders[0], 40, batch=8)

    class Interrupted(Exception):
        pass

    fit = TrainingRun.fit

    def fit_half(run: TrainingRun, loss: object, log_every: int = 100) -> None:
        def until_half(step: int) -> object:
            if step == 20:
                run.save()
                raise Interrupted
            return loss(step)  # type: ignore[operator]

        fit(run, until_half, log_every)  # type: ignore[arg-type]

    monkeypatch.setattr(TrainingRun, "fit", fit_half)
    with pytest.raises(Interrupted):
        train_prior(folders[1], 40, batch=8)
    monkeypatch.undo()
    train_prior(folders[1], 40, batch=8)

    whole, resumed = (torch.load(folder / "prior.pt", weights_only=True) for folder in folders)
    for part in ("model", "ema"):
        assert all(torch.equal(value, resumed[part][name]) for name, value in whole[part].items())
    assert curve(folders[0], "prior")[-1]["loss"] < 0.6


def test_the_text_encoder_learns(tmp_path: Path) -> None:
    train_text(tmp_path, steps=60, batch=48)
    assert curve(tmp_path, "text")[-1]["box_error"] < 0.35
    assert curve(tmp_path, "text")[-1]["loss"] < 14
