"""Training from scratch: the loss falls, and an interrupted run ends with the bits of an undisturbed one."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest
import torch

from workers.embedded.dataset import Pictures, render_pictures
from workers.embedded.outputs import Outputs, collect_outputs
from workers.embedded.train_prior import WEAK_STEP, SlotsAndUNet, new_prior, train_prior, train_text
from workers.embedded.train_rewards import REFEREE, REWARD, RewardRecipe, train_reward
from workers.embedded.training import TrainingRun

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("pictures")
    render_pictures(folder / "pictures", 100, seed=0)
    render_pictures(folder / "referee", 60, seed=1)
    return folder


STEPS = 200


def curve(folder: Path, stage: str) -> list[dict[str, float]]:
    state = torch.load(folder / f"{stage}.pt", weights_only=True)
    return list(state["curve"])


def test_the_prior_learns_and_resumes_bit_equal(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [tmp_path / name for name in ("whole", "interrupted")]
    for folder in folders:
        shutil.copytree(pictures, folder)
    train_prior(folders[0], STEPS, batch=4)

    class Interrupted(Exception):
        pass

    fit = TrainingRun.fit

    def fit_half(run: TrainingRun, loss: object, log_every: int = 100) -> None:
        def until_half(step: int) -> object:
            if step == STEPS // 2:
                run.save()
                raise Interrupted
            return loss(step)  # type: ignore[operator]

        fit(run, until_half, log_every)  # type: ignore[arg-type]

    monkeypatch.setattr(TrainingRun, "fit", fit_half)
    with pytest.raises(Interrupted):
        train_prior(folders[1], STEPS, batch=4)
    monkeypatch.undo()
    train_prior(folders[1], STEPS, batch=4)

    whole, resumed = (torch.load(folder / "prior.pt", weights_only=True) for folder in folders)
    for part in ("model", "ema"):
        assert all(torch.equal(value, resumed[part][name]) for name, value in whole[part].items())
    assert curve(folders[0], "prior")[-1]["loss"] < 0.25


def test_the_text_encoder_learns(tmp_path: Path) -> None:
    train_text(tmp_path, steps=60, batch=48)
    assert curve(tmp_path, "text")[-1]["box_error"] < 0.35
    assert curve(tmp_path, "text")[-1]["loss"] < 14


@pytest.mark.parametrize("recipe", [REWARD, REFEREE], ids=lambda recipe: recipe.name)
def test_a_reward_learns_also_from_real_outputs(recipe: RewardRecipe, pictures: Path, tmp_path: Path) -> None:
    shutil.copytree(pictures, tmp_path, dirs_exist_ok=True)
    painted = Pictures(tmp_path / "pictures").sample(8, torch.Generator().manual_seed(0))
    right = torch.arange(8) % 2 == 0
    outputs = Outputs(painted.latents.half(), painted.names, painted.colors, painted.relation, right)
    (tmp_path / "outputs").mkdir()
    torch.save(outputs._asdict(), tmp_path / "outputs" / "output-30-000.pt")
    reward = train_reward(tmp_path, recipe, steps=60, batch=8)
    assert curve(tmp_path, recipe.stage)[-1]["loss"] < 13
    images = torch.rand(1, 4, 3, 32, 32)
    assert reward.score(images, ["a red cube"]).shape == (1, 4 // recipe.views)


def test_outputs_tell_what_was_made_and_whether_it_is_right(tmp_path: Path) -> None:
    train_text(tmp_path, steps=2, batch=4)
    torch.save({"ema": SlotsAndUNet(new_prior()).state_dict()}, tmp_path / f"prior-step{WEAK_STEP}.pt")
    collect_outputs(tmp_path / "outputs", tmp_path, count=1)
    outputs = Outputs.load(tmp_path / "outputs")
    assert outputs is not None
    assert outputs.latents.shape == (4, 4, 4, 32, 32)
    assert not outputs.right.any(), "an untrained prior makes nothing that is right"
    written = next((tmp_path / "outputs").iterdir())
    before = written.stat().st_mtime_ns
    collect_outputs(tmp_path / "outputs", tmp_path, count=1)
    assert written.stat().st_mtime_ns == before
