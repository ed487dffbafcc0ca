"""Training on comparisons, without Ray: it learns, stops, keeps the best, goes on where it was, and shares its work."""

from __future__ import annotations

import gc
import math
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from reward_models.comparisons import Split, read_comparisons, split_by_prompt
from reward_models.contracts import RewardCard
from reward_models.train_batches import Batch
from reward_models.trainable import TrainableReward
from reward_models.training import (
    TrainingPlan,
    TrainingState,
    comparison_loss,
    measure,
    train,
    wilson_interval,
)
from tests.unit.reward_models.pair_files import write_pairs

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from typing import Any

PLAN = TrainingPlan(learning_rate=0.05, batch=16, epochs=6, evaluations_per_epoch=2)


class Brightness(TrainableReward):
    """w · (mean color) + dropout's noise: two lines that can learn which object is brighter."""

    card = RewardCard("brightness", None, "none", 4, False, True, "Apache-2.0", None)

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([-0.3, 0.1, 0.0]))
        self.fixed = torch.nn.Parameter(torch.zeros(3), requires_grad=False)
        self.dropout = torch.nn.Dropout(dropout)

    def prepare(self, views: Tensor) -> Tensor:
        return views

    def forward(self, pixels: Tensor, prompts: Sequence[str]) -> Tensor:
        return (self.dropout(pixels.mean((1, 3, 4))) * self.weight).sum(1)

    def write(self, path: Path, mean: float, std: float, record: dict[str, Any]) -> None:
        raise NotImplementedError


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Split:
    file = write_pairs(tmp_path_factory.mktemp("pairs"), 120, px=4, ties=10)
    return split_by_prompt(read_comparisons(file, 4))


def batch(preferred: list[int], tie: list[bool]) -> Batch:
    return Batch(torch.zeros(0), [], torch.tensor(preferred), torch.tensor(tie))


def test_the_loss_is_bradley_terrys_and_a_tie_is_half_a_win_for_each() -> None:
    scores = torch.tensor([[1.0, 0.0], [0.5, 2.5], [3.0, 1.0]])
    value = comparison_loss(scores, batch([0, 0, 0], [False, False, True]))
    decided = [math.log(1 + math.exp(-1)), math.log(1 + math.exp(2))]
    tie = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(2))) / 2
    assert float(value) == pytest.approx((sum(decided) + tie) / 3)
    only_tie = torch.tensor([[0.7, 0.7]], requires_grad=True)
    comparison_loss(only_tie, batch([0], [True])).backward()
    assert only_tie.grad is not None
    assert not only_tie.grad.any(), "equal scores are what a tie wants"


def test_it_learns_and_tells_what_it_measured(split: Split) -> None:
    reward, reports = Brightness(), []
    before = measure(reward, split.test)
    state = train(reward, split, PLAN, report=lambda state: reports.append(state.step))
    assert before.accuracy < 0.5
    assert state.outcome is not None
    assert state.outcome["test"]["accuracy"] == 1
    assert state.outcome["test"]["decided"] == sum(one.preferred != "tie" for one in split.test)
    assert reports == [row["step"] for row in state.curve] + [state.step], "one more when it has ended"
    training = measure(reward, split.training)
    assert (state.outcome["training"]["mean"], state.outcome["training"]["std"]) == (
        training.mean,
        training.std,
    )
    assert training.std > 0
    assert reward.fixed.tolist() == [0, 0, 0]


def test_equal_scores_are_not_right(split: Split) -> None:
    reward = Brightness()
    with torch.no_grad():
        reward.weight.zero_()
    seen = measure(reward, split.test)
    assert (seen.right, seen.std) == (0, 0)
    assert seen.loss == pytest.approx(math.log(2))


def test_it_stops_when_validation_no_longer_falls_and_keeps_the_best(split: Split) -> None:
    turned = {"a": "b", "b": "a", "tie": "tie"}
    contrary = [replace(one, preferred=turned[one.preferred]) for one in split.validation]
    reward = Brightness()
    state = train(reward, split._replace(validation=contrary), replace(PLAN, patience=3))
    assert state.outcome is not None
    assert state.outcome["stopped_early"]
    assert len(state.curve) == 4, "the first was the best, and three were worse"
    assert state.best_loss == min(row["loss"] for row in state.curve)
    assert torch.equal(reward.weight, state.best_weights["weight"])
    assert not torch.equal(reward.weight, state.weights["weight"])


class Killed(Exception):
    pass


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_killed_training_goes_on_as_if_nothing_had_happened(
    dropout: float, split: Split, tmp_path: Path
) -> None:
    undisturbed = train(Brightness(dropout), split, PLAN)

    def save_and_die(state: TrainingState) -> None:
        torch.save(state.to_dict(), tmp_path / "state.pt")
        if len(state.curve) == 5:
            raise Killed

    with pytest.raises(Killed):
        train(Brightness(dropout), split, PLAN, report=save_and_die)
    saved = TrainingState(**torch.load(tmp_path / "state.pt", weights_only=True))
    stopped = saved.step
    assert 0 < stopped < undisturbed.step
    resumed = train(Brightness(dropout), split, PLAN, state=saved)
    assert resumed.curve == undisturbed.curve
    assert torch.equal(resumed.weights["weight"], undisturbed.weights["weight"])
    assert resumed.outcome == undisturbed.outcome
    assert resumed.begun == [0, stopped]
    ended = train(
        Brightness(dropout), split, PLAN, state=resumed, report=lambda state: pytest.fail("it had ended")
    )
    assert ended.outcome == undisturbed.outcome


def _work(rank: int, folder: Path, split: Split) -> None:
    gc.disable()
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=2)
    state = train(Brightness(), split, replace(PLAN, epochs=2))
    assert not any(isinstance(thing, DistributedDataParallel) for thing in gc.get_objects()), (
        "it holds the group"
    )
    torch.save(state.to_dict(), folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_workers_share_what_one_does_alone(split: Split, tmp_path: Path) -> None:
    mp.spawn(_work, (tmp_path, split), nprocs=2)
    both = [TrainingState(**torch.load(tmp_path / f"{rank}.pt", weights_only=True)) for rank in (0, 1)]
    alone = train(Brightness(), split, replace(PLAN, epochs=2))
    for state in both:
        torch.testing.assert_close(state.weights["weight"], alone.weights["weight"])
        assert [row["loss"] for row in state.curve] == pytest.approx([row["loss"] for row in alone.curve])
        assert state.outcome is not None
        assert alone.outcome is not None
        assert state.outcome["test"]["right"] == alone.outcome["test"]["right"]
        assert state.outcome["workers"] == 2


def test_a_loss_that_is_no_number_ends_it(split: Split) -> None:
    reward = Brightness()
    with torch.no_grad():
        reward.weight.fill_(torch.inf)
    with pytest.raises(FloatingPointError, match="step 0: lower the learning rate"):
        train(reward, split, PLAN)


@pytest.mark.parametrize("name", ["learning_rate", "batch", "epochs", "patience"])
def test_a_plan_of_nothing_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be above 0, but is 0"):
        TrainingPlan(**{name: 0})


def test_the_interval_is_wilsons() -> None:
    assert wilson_interval(9, 10) == pytest.approx((0.596, 0.982), abs=1e-3)
    assert wilson_interval(50, 50)[1] == 1
    assert wilson_interval(0, 0) == (0, 1)
