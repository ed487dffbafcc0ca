"""One loop for every embedded model: steps, learning rate, average of the weights, checkpoints and the curve."""

from __future__ import annotations

import json
import math
import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["TrainingRun", "has_fast_bfloat16", "moved_to", "muon"]


@dataclass
class TrainingRun:
    """One stage's loop: fixed number of steps, learning rate by step, checkpoints, a log of its curve."""

    name: str
    folder: Path
    model: nn.Module
    optimizers: list[torch.optim.Optimizer]
    steps: int
    batch: int
    """Samples in a step, for the record."""
    seed: int
    """From which the model was initialized, for the record."""
    generator: torch.Generator
    ema_decay: float = 0.0
    checkpoint_s: float = 60.0
    keep_step: int | None = None
    """The averaged weights after this step are kept as well, in `<name>-step<n>.pt`: a deliberately weak model."""

    def __post_init__(self) -> None:
        self.step = 0
        self.seconds = 0.0
        self.curve: list[dict[str, float]] = []
        self._device = next(self.model.parameters()).device
        self.hardware = _hardware(self._device)
        self.ema = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        self._base_rates = [
            [group["lr"] for group in optimizer.param_groups] for optimizer in self.optimizers
        ]
        if self.path.exists():
            self._load()

    @property
    def path(self) -> Path:
        return self.folder / f"{self.name}.pt"

    def fit(self, loss: Callable[[int], tuple[Tensor, dict[str, float]]], log_every: int = 100) -> None:
        """Take the remaining steps; `loss(step)` answers the loss and numbers for the log."""
        saved = started = time.monotonic()
        sums: dict[str, list[float]] = {}
        while self.step < self.steps:
            self._set_rates()
            value, told = loss(self.step)
            numbers = {"loss": value.item(), **told}
            if not math.isfinite(numbers["loss"]):
                raise FloatingPointError(
                    f"the loss of stage {self.name!r} is {numbers['loss']} at step {self.step}"
                )
            value.backward()
            for optimizer in self.optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            self.step += 1
            self._average()
            for key, number in numbers.items():
                sums.setdefault(key, []).append(number)
            if self.step == self.keep_step:
                self.folder.mkdir(parents=True, exist_ok=True)
                torch.save({"ema": self.ema}, self.folder / f"{self.name}-step{self.step}.pt")
            now = time.monotonic()
            self.seconds += now - started
            started = now
            if self.step % log_every == 0 or self.step == self.steps:
                means = {key: float(np.nanmean(values)) for key, values in sums.items()}
                self.curve.append({"step": self.step, "minutes": round(self.seconds / 60, 2), **means})
                print(self.name, json.dumps(self.curve[-1]), flush=True)
                sums = {}
            if now - saved > self.checkpoint_s or self.step == self.steps:
                self.save()
                saved = started = time.monotonic()

    def learning_rate(self) -> float:
        """Factor on every learning rate: 100 steps of warm-up, constant to 45 %, then a cosine to zero."""
        warm = min(1.0, (self.step + 1) / 100)
        late = max(0.0, (self.step / self.steps - 0.45) / 0.55)
        return warm * 0.5 * (1 + float(np.cos(np.pi * late)))

    def _set_rates(self) -> None:
        for optimizer, rates in zip(self.optimizers, self._base_rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * self.learning_rate()

    @torch.no_grad()
    def _average(self) -> None:
        decay = min(self.ema_decay, self.step / (self.step + 10))
        for name, value in self.model.state_dict().items():
            self.ema[name].lerp_(value, 1 - decay)

    def take_up(self, weights: Path) -> None:
        """Save the model, loaded from a shipped file, as this run at the end of the file's training record.

        Raises FileExistsError where the folder has a checkpoint of this stage.
        """
        if self.path.exists():
            raise FileExistsError(f"{self.path} is there already: remove it, or give another --folder")
        record = json.loads(weights.with_suffix(".json").read_text())["stages"][self.name]
        self.step, self.seconds, self.curve = record["steps"], 60 * record["minutes"], record["curve"]
        self.hardware = record["hardware"]
        self.save()

    def save(self) -> None:
        """Write the whole state beside the last one, then replace it."""
        state = {
            "model": self.model.state_dict(),
            "ema": self.ema,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "generator": self.generator.get_state(),
            "seeds": [self.seed, self.generator.initial_seed()],
            "batch": self.batch,
            "step": self.step,
            "seconds": self.seconds,
            "curve": self.curve,
            "hardware": self.hardware,
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        torch.save(state, partial)
        os.replace(partial, self.path)

    def _load(self) -> None:
        state = torch.load(self.path, map_location=self._device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.ema = state["ema"]
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.generator.set_state(state["generator"].cpu())
        self.step, self.seconds, self.curve = state["step"], state["seconds"], state["curve"]


def _hardware(device: torch.device) -> str:
    """Name what computes, and the torch it computes with."""
    named = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU"
    return f"{named}, torch {torch.__version__}"


def muon(matrices: Iterable[nn.Parameter], learning_rate: float = 2e-3) -> torch.optim.Optimizer:
    """Orthogonalized momentum for hidden matrices, at AdamW's scale; it learned binding in a third of AdamW's time."""
    return torch.optim.Muon(
        matrices,
        learning_rate,
        weight_decay=0.01,
        momentum=0.95,
        nesterov=True,
        adjust_lr_fn="match_rms_adamw",
    )


def has_fast_bfloat16(device: str) -> bool:
    """Tell whether `device` multiplies bfloat16 natively; a processor that does not is far slower than in float32."""
    if device != "cpu":
        return True
    if platform.machine() != "x86_64":
        return False
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    return "avx512_bf16" in flags or "amx_bf16" in flags


def moved_to(values: Any, device: str | torch.device) -> Any:
    """Move a (possibly nested) tuple of tensors."""
    if isinstance(values, Tensor):
        return values.to(device)
    moved = [moved_to(value, device) for value in values]
    return type(values)(*moved) if hasattr(values, "_fields") else tuple(moved)
