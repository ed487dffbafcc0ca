"""Train a reward on comparisons: the loop, alone or as one of several workers.

Loss (Bradley–Terry, DreamReward eq. 1): the mean over comparisons of −log σ(r_preferred − r_other), with r the raw
score; a tie is half a win for each. Adam without weight decay and a cosine learning rate, as ImageReward was trained;
the weights of the lowest validation loss are kept, and training ends when it has not fallen for some evaluations.
At the end the kept weights are tested once, and mean and standard deviation of the raw score on the training pictures
are measured, which normalize a Reward3D.

Several workers are several processes of one `torch.distributed` group, whoever started them. They share each batch, so
that their number changes the order of sums only. What the loop needs to go on is a `TrainingState`; everything else
(order of comparisons, dropout, learning rate) follows from the plan and the step.
"""

from __future__ import annotations

import gc
import math
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from reward_models.preference_loss import preference_loss, prefers_rightly
from reward_models.train_batches import Batch, in_batches

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import nn

    from reward_models.comparisons import Comparison, Split
    from reward_models.trainable import TrainableReward

__all__ = [
    "Measured",
    "TrainingPlan",
    "TrainingState",
    "comparison_loss",
    "measure",
    "train",
    "wilson_interval",
]

BETAS = (0.9, 0.999)
MEASURED_AT_ONCE = 32
"""Comparisons of a batch that is only measured."""


@dataclass(frozen=True)
class TrainingPlan:
    """How to train; the defaults are ImageReward's and Reward3D's (source: THUDM/ImageReward, train/src)."""

    learning_rate: float = 1e-5
    batch: int = 64
    """Comparisons in a step, over all workers."""
    epochs: int = 10
    evaluations_per_epoch: int = 4
    patience: int = 8
    """Evaluations in a row without a lower validation loss, after which training ends."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("learning_rate", "batch", "epochs", "evaluations_per_epoch", "patience"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, but is {getattr(self, name)}")


class Measured(NamedTuple):
    """A reward on some comparisons."""

    loss: float
    """Mean, ties included; nats."""
    right: int
    """Decided comparisons whose preferred object scores higher; equal scores are not right."""
    decided: int
    mean: float
    """Of the raw scores of all objects."""
    std: float

    @property
    def accuracy(self) -> float:
        """Share of the decided comparisons that are right."""
        return self.right / self.decided if self.decided else math.nan


@dataclass
class TrainingState:
    """How far training is: all of it goes through `torch.save` and `torch.load(weights_only=True)`."""

    step: int = 0
    weights: dict[str, Tensor] = field(default_factory=dict)
    """The trained parameters."""
    optimizer: dict[str, Any] = field(default_factory=dict)
    best_loss: float = math.inf
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    stale: int = 0
    """Evaluations since the best one."""
    curve: list[dict[str, float]] = field(default_factory=list)
    begun: list[int] = field(default_factory=list)
    """Steps at which it began, and went on after an interruption."""
    outcome: dict[str, Any] | None = None
    """Set when training has ended: test and training measurements of the best weights, and why it ended."""

    def to_dict(self) -> dict[str, Any]:
        """Give all fields, tensors not copied."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def comparison_loss(scores: Tensor, batch: Batch) -> Tensor:
    """Bradley–Terry of scores (N, 2): each comparison is judged twice, a tie once for either side; a scalar."""
    judgments = torch.cat([batch.preferred, torch.where(batch.tie, 1 - batch.preferred, batch.preferred)])
    return preference_loss(torch.cat([scores, scores]), judgments)


def train(
    reward: TrainableReward,
    split: Split,
    plan: TrainingPlan,
    *,
    device: str | torch.device = "cpu",
    state: TrainingState | None = None,
    report: Callable[[TrainingState], None] = lambda state: None,
) -> TrainingState:
    """Train to the end, from `state` if given; leaves `reward` in eval mode with the best weights.

    `report` is called in every worker after each evaluation, and at the end. Raises ValueError when the batch cannot
    be shared, and FloatingPointError when the loss is no longer finite.
    """
    run = _Run(reward.to(device), split, plan, torch.device(device), state or TrainingState())
    run.restore()
    if run.state.outcome is None:
        run.state.begun.append(run.state.step)
    while run.state.step < run.total_steps and run.state.stale < plan.patience and run.state.outcome is None:
        run.steps_to_next_evaluation()
        run.evaluate()
        report(run.state)
    reward.load_state_dict(run.state.best_weights, strict=False)
    reward.eval()
    if run.state.outcome is None:
        run.state.outcome = run.outcome()
        report(run.state)
    ended = run.state
    if run.workers > 1:
        # The wrapper is a reference cycle that holds the group. Threads of a group that lives until the interpreter
        # ends may abort the process there (github.com/pytorch/pytorch/pull/179291).
        del run
        gc.collect()
    return ended


@torch.no_grad()
def measure(
    reward: TrainableReward, comparisons: Sequence[Comparison], device: str | torch.device = "cpu"
) -> Measured:
    """Score comparisons in eval mode; workers share them, and all get the whole answer."""
    rank, workers = _place()
    reward.eval()
    sums = torch.zeros(7, dtype=torch.float64, device=device)
    mine = list(comparisons[rank::workers])
    pieces = [mine[first : first + MEASURED_AT_ONCE] for first in range(0, len(mine), MEASURED_AT_ONCE)]
    for batch in in_batches(pieces, reward.prepare):
        batch = batch.to(device)
        scores = _scores(reward, batch)
        decided = ~batch.tie
        count = len(scores)
        sums += torch.stack(
            [
                comparison_loss(scores, batch).double() * count,
                torch.tensor(count, device=device),
                (prefers_rightly(scores, batch.preferred) & decided).sum(),
                decided.sum(),
                scores.double().sum(),
                scores.double().square().sum(),
                torch.tensor(scores.numel(), device=device),
            ]
        )
    if workers > 1:
        dist.all_reduce(sums)
    loss, count, right, decided, total, squares, objects = sums.tolist()
    mean = total / objects
    return Measured(
        loss / count, round(right), round(decided), mean, math.sqrt(max(0, squares / objects - mean**2))
    )


def wilson_interval(right: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson's score interval)."""
    if not count:
        return 0.0, 1.0
    share, weight = right / count, z**2 / count
    center = (share + weight / 2) / (1 + weight)
    half = z * math.sqrt(share * (1 - share) / count + weight / (4 * count)) / (1 + weight)
    return max(0.0, center - half), min(1.0, center + half)


class _Run:
    """One training under way in one worker."""

    def __init__(
        self,
        reward: TrainableReward,
        split: Split,
        plan: TrainingPlan,
        device: torch.device,
        state: TrainingState,
    ) -> None:
        self.reward, self.split, self.plan, self.device, self.state = reward, split, plan, device, state
        self.rank, self.workers = _place()
        self.batch = min(plan.batch, len(split.training)) // self.workers * self.workers
        if plan.batch % self.workers or not self.batch:
            raise ValueError(
                f"a batch of {plan.batch} of {len(split.training)} comparisons cannot be shared by {self.workers} "
                f"workers: give a batch that is a multiple of {self.workers}"
            )
        self.steps_per_epoch = len(split.training) // self.batch
        self.total_steps = plan.epochs * self.steps_per_epoch
        self.interval = max(1, self.steps_per_epoch // plan.evaluations_per_epoch)
        self.optimizer = torch.optim.Adam(reward.trained().values(), plan.learning_rate, BETAS)
        self.model: nn.Module = reward
        if self.workers > 1:
            self.model = DistributedDataParallel(reward)

    def restore(self) -> None:
        """Put the state's weights and the optimizer's memory in place."""
        if self.state.step:
            self.reward.load_state_dict(self.state.weights, strict=False)
            self.optimizer.load_state_dict(self.state.optimizer)

    def steps_to_next_evaluation(self) -> None:
        """Take steps until the next multiple of the interval, or the end."""
        first, state = self.state.step, self.state
        last = min((first // self.interval + 1) * self.interval, self.total_steps)
        self.reward.train()
        for batch in in_batches([self._share(step) for step in range(first, last)], self.reward.prepare):
            # Dropout draws from torch's global generator: seeded by the step, a resumed run draws the same.
            torch.manual_seed((self.plan.seed * 1_000_003 + state.step) * 1_024 + self.rank)
            for group in self.optimizer.param_groups:
                rate = 0.5 * (1 + math.cos(math.pi * state.step / self.total_steps))
                group["lr"] = self.plan.learning_rate * rate
            batch = batch.to(self.device)
            loss = comparison_loss(_scores(self.model, batch), batch)
            if not loss.isfinite():
                raise FloatingPointError(
                    f"the loss is {loss.item()} at step {state.step}: lower the learning rate, "
                    f"which is {self.plan.learning_rate}"
                )
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            state.step += 1

    def evaluate(self) -> None:
        """Measure on the validation part; keep the weights when they are the best so far."""
        state, seen = self.state, measure(self.reward, self.split.validation, self.device)
        state.weights = {name: p.detach().clone() for name, p in self.reward.trained().items()}
        state.optimizer = self.optimizer.state_dict()
        if seen.loss < state.best_loss:
            state.best_loss, state.best_weights, state.stale = seen.loss, state.weights, 0
        else:
            state.stale += 1
        epoch = state.step / self.steps_per_epoch
        state.curve.append({"step": state.step, "epoch": epoch, "loss": seen.loss, "accuracy": seen.accuracy})

    def outcome(self) -> dict[str, Any]:
        """Measure the best weights, which are in place: on the test part, and over the training part."""
        test = measure(self.reward, self.split.test, self.device)
        training = measure(self.reward, self.split.training, self.device)
        low, high = wilson_interval(test.right, test.decided)
        return {
            "test": {**test._asdict(), "accuracy": test.accuracy, "interval": [low, high]},
            "training": {**training._asdict(), "accuracy": training.accuracy},
            "steps": self.state.step,
            "stopped_early": self.state.step < self.total_steps,
            "workers": self.workers,
            "plan": asdict(self.plan),
        }

    def _share(self, step: int) -> list[Comparison]:
        """This worker's part of a step's batch; every epoch has an order of its own."""
        epoch, within = divmod(step, self.steps_per_epoch)
        generator = torch.Generator().manual_seed(self.plan.seed * 1_000_003 + epoch)
        order = torch.randperm(len(self.split.training), generator=generator)
        rows = order[within * self.batch : (within + 1) * self.batch][self.rank :: self.workers]
        return [self.split.training[row] for row in rows.tolist()]


def _scores(model: nn.Module, batch: Batch) -> Tensor:
    """Raw scores (N, 2) of both sides."""
    return model(batch.pixels, batch.prompts).view(2, -1).T


def _place() -> tuple[int, int]:
    """This worker's number, and how many there are."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1
