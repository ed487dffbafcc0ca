"""Train a reward on a file of comparisons, on Ray Train's workers or in this process: the entry of `reward train`.

The run's folder holds what an interrupted training goes on from, and `curve.jsonl`, one line for each evaluation so
far. On several machines this folder, the comparisons, their pictures and the weights must be on a disk that all share.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from reward_models.comparisons import read_comparisons, split_by_prompt
from reward_models.trainable import Start, open_trainable
from reward_models.training import TrainingPlan, TrainingState, train

if TYPE_CHECKING:
    from collections.abc import Iterator

    from reward_models.comparisons import Comparison

__all__ = ["TrainingRequest", "joined_ray", "train_reward"]

STATE_FILE, CURVE_FILE, IDENTITY_FILE = "state.pt", "curve.jsonl", "training.json"
MAX_FAILURES = 2
"""How many times Ray begins anew, from the last checkpoint, when workers fail."""
START_TIMEOUT_S = 300
"""What Ray's workers get to start; a busy machine needs more than the default minute."""


@dataclass(frozen=True)
class TrainingRequest:
    """What to train on what, and where the result goes."""

    comparisons: Path
    """A `pairs.jsonl`, see `reward_models.comparisons`."""
    start: Start
    plan: TrainingPlan
    run: Path
    """The run's folder."""
    output: Path
    """The new weights, .safetensors; a record of the training goes beside it as .json."""
    one_sided: bool = False
    """Whether the winner was always written on the same side."""

    def absolute(self) -> TrainingRequest:
        """Make all paths absolute: workers run in folders of their own."""
        vocabulary = self.start.vocabulary and self.start.vocabulary.absolute()
        start = replace(self.start, weights=self.start.weights.absolute(), vocabulary=vocabulary)
        paths = {name: getattr(self, name).absolute() for name in ("comparisons", "run", "output")}
        return replace(self, start=start, **paths)


def train_reward(request: TrainingRequest, num_workers: int, *, use_gpu: bool = False) -> dict[str, Any]:
    """Check everything, train or go on, write the weights and their record; gives the record.

    With workers, Ray must be connected; without (0), training happens in this process, on its GPU if it has one.
    Raises ValueError for what the user can correct, RuntimeError when Ray's workers failed or were stopped.
    """
    request = request.absolute()
    reward = open_trainable(request.start)
    comparisons = read_comparisons(request.comparisons, reward.num_views, one_sided=request.one_sided)
    split_by_prompt(comparisons, seed=request.plan.seed)
    _claim_run(request, by_ray=num_workers > 0)
    state = _train_on_ray(request, num_workers, use_gpu=use_gpu) if num_workers else _train_here(request)
    assert state.outcome is not None
    reward.load_state_dict(state.best_weights, strict=False)
    record = _record(request, comparisons, state)
    mean, std = (state.outcome["training"][name] for name in ("mean", "std"))
    reward.write(request.output, mean, std, {name: record[name] for name in ("comparisons", "test")})
    digest = hashlib.sha256(request.output.read_bytes()).hexdigest()
    record = {"file": request.output.name, "sha256": digest, **record}
    request.output.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    return record


@contextlib.contextmanager
def joined_ray(address: str) -> Iterator[None]:
    """Connect to a cluster that runs already."""
    import ray

    ray.init(address=address)
    try:
        yield
    finally:
        ray.shutdown()


def _train_here(request: TrainingRequest) -> TrainingState:
    file = request.run / STATE_FILE
    state = _load(file) if file.is_file() else None

    def report(state: TrainingState) -> None:
        partial = file.with_suffix(".partial")
        torch.save(state.to_dict(), partial)
        partial.replace(file)
        _write_curve(request.run, state)

    device = "cuda" if torch.cuda.is_available() else "cpu"
    return _train(request, device, state, report)


def _train_on_ray(request: TrainingRequest, num_workers: int, *, use_gpu: bool) -> TrainingState:
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(START_TIMEOUT_S))
    import ray
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchTrainer

    cpus = min(1.0, ray.cluster_resources().get("CPU", 0) / num_workers)  # type: ignore[no-untyped-call]
    trainer = TorchTrainer(
        _ray_worker,
        train_loop_config={"request": request},
        scaling_config=ScalingConfig(
            num_workers=num_workers,
            use_gpu=use_gpu,
            resources_per_worker={"CPU": cpus, **({"GPU": 1} if use_gpu else {})},
        ),
        run_config=RunConfig(
            name=request.run.name,
            storage_path=str(
                request.run.parent
            ),  # the same name and path: Ray goes on from the last checkpoint
            failure_config=FailureConfig(max_failures=MAX_FAILURES),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
        ),
    )
    try:
        checkpoint = trainer.fit().checkpoint
    except TrainingFailedError as error:
        raise RuntimeError(
            f"Ray's workers failed {MAX_FAILURES + 1} times, at last with: {str(error).strip().splitlines()[-1]}. "
            "When that is repaired, the same command goes on from the last checkpoint"
        ) from error
    state = TrainingState()
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            state = _load(Path(folder) / STATE_FILE)
    if state.outcome is None:
        raise RuntimeError(
            f"training was ended at step {state.step}; the same command goes on from its checkpoint"
        )
    return state


def _ray_worker(config: dict[str, Any]) -> None:
    """What each of Ray Train's workers does."""
    import ray.train
    from ray.train.torch import get_device

    request: TrainingRequest = config["request"]
    first = ray.train.get_context().get_world_rank() == 0
    state = None
    if checkpoint := ray.train.get_checkpoint():
        with checkpoint.as_directory() as folder:
            state = _load(Path(folder) / STATE_FILE)

    def report(state: TrainingState) -> None:
        metrics = state.curve[-1] if state.outcome is None else {"step": state.step, **state.outcome["test"]}
        if not first:
            ray.train.report(metrics)
            return
        with tempfile.TemporaryDirectory() as folder:
            torch.save(state.to_dict(), Path(folder) / STATE_FILE)
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))
        _write_curve(request.run, state)

    _train(request, get_device(), state, report)


def _train(request: TrainingRequest, device: Any, state: TrainingState | None, report: Any) -> TrainingState:
    """Open what the request names, whose pictures were checked before, and train."""
    reward = open_trainable(request.start)
    comparisons = read_comparisons(
        request.comparisons, reward.num_views, check_pictures=False, one_sided=request.one_sided
    )
    split = split_by_prompt(comparisons, seed=request.plan.seed)
    return train(reward, split, request.plan, device=device, state=state, report=report)


def _load(file: Path) -> TrainingState:
    return TrainingState(**torch.load(file, map_location="cpu", weights_only=True))


def _write_curve(run: Path, state: TrainingState) -> None:
    partial = run / (CURVE_FILE + ".partial")
    partial.write_text("".join(json.dumps(row) + "\n" for row in state.curve))
    partial.replace(run / CURVE_FILE)


def _claim_run(request: TrainingRequest, *, by_ray: bool) -> None:
    """Make the run's folder, or raise ValueError unless it is of the same training."""
    start = request.start
    identity = {
        "comparisons": _sha256(request.comparisons),
        "weights": _sha256(start.weights),
        "start": [start.name, start.fix_rate, list(start.renew), start.seed],
        "plan": asdict(request.plan),
        "on Ray": by_ray,
    }
    file = request.run / IDENTITY_FILE
    if file.is_file():
        found = json.loads(file.read_text())
        if other := [name for name, value in identity.items() if found.get(name) != value]:
            raise ValueError(
                f"{request.run} holds the run of another training (its {' and '.join(other)} differ). "
                "Choose another folder for this run, or remove that one"
            )
        return
    request.run.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(identity, indent=1) + "\n")


def _record(request: TrainingRequest, comparisons: list[Comparison], state: TrainingState) -> dict[str, Any]:
    outcome = dict(state.outcome or {})
    return {
        "reward": request.start.name,
        "began_with": {"file": request.start.weights.name, "sha256": _sha256(request.start.weights)},
        "renewed": list(request.start.renew),
        "comparisons": {
            "file": request.comparisons.name,
            "sha256": _sha256(request.comparisons),
            "preferred": dict(Counter(one.preferred for one in comparisons)),
            "sources": dict(Counter(one.source or "unknown" for one in comparisons)),
        },
        "mean": outcome["training"]["mean"],
        "std": outcome["training"]["std"],
        **outcome,
        "begun_at_steps": state.begun,
        "curve": state.curve,
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
