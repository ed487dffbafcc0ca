"""Training from scratch: the loss falls, and an interrupted run ends with the bits of an undisturbed one."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest
import torch

from workers.embedded.dataset import Pictures, render_pictures
from workers.embedded.export import export_weights
from workers.embedded.outputs import Outputs, collect_outputs
from workers.embedded.train_prior import (
    WEAK_STEP,
    SlotsAndUNet,
    new_prior,
    take_up_shipped_prior,
    train_prior,
    train_text,
)
from workers.embedded.train_rewards import REFEREE, REWARD, RewardRecipe, take_up_shipped_reward, train_reward
from workers.embedded.trained import averaged_prior, weak_prior
from workers.embedded.training import TrainingRun
from workers.embedded.world import COLORS, NAMES, PALETTE, RELATIONS
from workers.weights import EMBEDDED_PRIOR, EMBEDDED_REWARDS

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


def test_pictures_are_drawn_by_their_shares(pictures: Path) -> None:
    drawn_from = Pictures(pictures / "pictures")
    assert 0 < drawn_from.ring_stacks.sum() < len(drawn_from) / 2
    drawn = drawn_from.sample(32, torch.Generator().manual_seed(0), drawn_from.ring_stacks.float())
    assert (drawn.names == NAMES.index("torus")).any(1).all()
    assert (drawn.relation == RELATIONS.index("on")).all()


def test_pairs_are_painted_alike_as_often_as_asked(pictures: Path) -> None:
    drawn_from = Pictures(pictures / "pictures")
    drawn = drawn_from.sample(400, torch.Generator().manual_seed(0), alike=1.0)
    first, second = drawn.colors[(drawn.names[:, 1] >= 0) & (drawn.colors < len(COLORS)).all(1)].T
    assert 0.3 < (first == second).float().mean() < 0.6
    apart = torch.tensor([PALETTE[color] for color in COLORS], dtype=torch.float32)
    assert (apart[first] - apart[second]).norm(dim=1).max() < 200


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


def untrained_priors(folder: Path) -> None:
    """Leave the checkpoints of stages "text" and "prior" in `folder`, as they are before the first step."""
    prior = new_prior()
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"model": prior.text_encoder.state_dict()}, folder / "text.pt")
    for stage in ("prior", f"prior-step{WEAK_STEP}"):
        torch.save({"ema": SlotsAndUNet(prior).state_dict()}, folder / f"{stage}.pt")


def test_the_shipped_prior_is_trained_on_from_where_its_record_ends(pictures: Path, tmp_path: Path) -> None:
    shutil.copytree(pictures, tmp_path, dirs_exist_ok=True)
    take_up_shipped_prior(tmp_path)
    export_weights(tmp_path, tmp_path / "weights")
    assert (tmp_path / "weights" / EMBEDDED_PRIOR.name).read_bytes() == EMBEDDED_PRIOR.read_bytes()
    records = (tmp_path / "weights" / EMBEDDED_PRIOR.name, EMBEDDED_PRIOR)
    exported, shipped = (json.loads(file.with_suffix(".json").read_text())["stages"] for file in records)
    assert exported == shipped
    taken_up = curve(tmp_path, "prior")
    train_prior(tmp_path, int(taken_up[-1]["step"]) + 1)
    assert curve(tmp_path, "prior")[:-1] == taken_up
    assert curve(tmp_path, "prior")[-1]["loss"] < 0.1
    with pytest.raises(
        FileExistsError, match=r"text\.pt is there already: remove it, or give another --folder"
    ):
        take_up_shipped_prior(tmp_path)


@pytest.mark.parametrize("recipe", [REWARD, REFEREE], ids=lambda recipe: recipe.stage)
def test_a_shipped_reward_is_trained_on_from_where_its_record_ends(
    pictures: Path, tmp_path: Path, recipe: RewardRecipe
) -> None:
    shutil.copytree(pictures, tmp_path, dirs_exist_ok=True)
    take_up_shipped_reward(tmp_path, recipe)
    export_weights(tmp_path, tmp_path / "weights")
    shipped = EMBEDDED_REWARDS[recipe.name]
    assert (tmp_path / "weights" / shipped.name).read_bytes() == shipped.read_bytes()
    taken_up = curve(tmp_path, recipe.stage)
    take_up_shipped_prior(tmp_path)
    train_reward(tmp_path, recipe, int(taken_up[-1]["step"]) + 1)
    assert curve(tmp_path, recipe.stage)[:-1] == taken_up
    assert curve(tmp_path, recipe.stage)[-1]["pairs_right"] > 0.75


def test_a_reward_that_steers_learns_also_from_comparisons(pictures: Path, tmp_path: Path) -> None:
    shutil.copytree(pictures, tmp_path, dirs_exist_ok=True)
    untrained_priors(tmp_path)
    painted = Pictures(tmp_path / "pictures").sample(8, torch.Generator().manual_seed(0))
    noise = torch.randn(painted.latents.shape, generator=torch.Generator().manual_seed(1))
    outputs = Outputs(noise.half(), painted.latents.half(), painted.names, painted.colors, painted.relation)
    (tmp_path / "outputs").mkdir()
    torch.save(outputs._asdict(), tmp_path / "outputs" / "output-30-000.pt")
    reward = train_reward(tmp_path, REWARD, steps=60, batch=8)
    last = curve(tmp_path, "reward")[-1]
    assert last["loss"] < 18
    assert last["outputs_right"] > 0.8
    assert 0 <= last["predictions_right"] <= 1
    assert reward.score(torch.rand(1, 4, 3, 32, 32), ["a red cube"]).shape == (1, 1)


def test_the_referee_learns_from_single_views(pictures: Path, tmp_path: Path) -> None:
    shutil.copytree(pictures, tmp_path, dirs_exist_ok=True)
    referee = train_reward(tmp_path, REFEREE, steps=60, batch=8)
    assert curve(tmp_path, "referee")[-1]["loss"] < 14
    assert referee.score(torch.rand(1, 4, 3, 32, 32), ["a red cube"]).shape == (1, 4)


def test_outputs_are_kept_with_the_truth_from_the_same_cameras(tmp_path: Path) -> None:
    untrained_priors(tmp_path)
    priors = [weak_prior(tmp_path), averaged_prior(tmp_path)]
    collect_outputs(tmp_path / "outputs", priors, count=2)
    outputs = Outputs.load(tmp_path / "outputs")
    assert outputs is not None
    assert outputs.latents.shape == outputs.truth.shape == (8, 4, 4, 32, 32)
    assert (outputs.truth[:, :, 3] > 0.9).flatten(1).any(1).all(), "every true picture shows something solid"
    written = next((tmp_path / "outputs").iterdir())
    before = written.stat().st_mtime_ns
    collect_outputs(tmp_path / "outputs", priors, count=2)
    assert written.stat().st_mtime_ns == before
