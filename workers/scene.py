"""A scene: one object under optimization, with everything that its future depends on, and its checkpoint.

A scene draws every random number from its own generator, so that its curve does not depend on who shares the
engine with it, and a resumed one goes on exactly as it would have (bit for bit on one CPU with a scene alone).
"""

from __future__ import annotations

import json
import math
import struct
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch.nn import Parameter

from workers.cameras import Cameras
from workers.priors.view_prompts import seen_prompts
from workers.render import render
from workers.stages import fit, stage_at, supersampled

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor
    from torch.optim import Optimizer

    from workers.cameras import CameraRig
    from workers.contracts import Method, Prior, TrainedField, Views
    from workers.stages import Stage

__all__ = [
    "CheckpointError",
    "NanDivergence",
    "Scene",
    "SceneState",
    "load_checkpoint",
    "save_checkpoint",
]

NUM_SAMPLES = 48
"""Samples on a ray. Source: the embedded prototype."""
_FORMAT = "dreamserve-scene-1"


class NanDivergence(FloatingPointError):
    """An optimization left the finite numbers: `step` says when, `what` was first seen to do so."""

    def __init__(self, step: int, what: str) -> None:
        super().__init__(
            f"the {what} is not a finite number at step {step}; the optimization has diverged. "
            "Lower guidance_scale or the method's weights, or try another seed"
        )
        self.step, self.what = step, what


class CheckpointError(ValueError):
    """Bytes that are no whole checkpoint, or that belong to another job."""


class SceneState(NamedTuple):
    """Everything that a scene's future depends on, beside what its job says."""

    step: int
    steps_total: int
    spec_hash: str
    tensors: dict[str, Tensor]
    """The field's, the optimizer's, the method's and the generator's, under prefixed names."""


@runtime_checkable
class _ToldDirections(Protocol):
    """A prior whose negative prompt is embedded in another way than its prompt."""

    def encode_text(self, prompts: list[str]) -> Tensor: ...
    def encode_negative_text(self, prompts: list[str]) -> Tensor: ...


class _Learned(NamedTuple):
    """What a method learns beside the field."""

    value: Parameter
    optimizer: Optimizer


class Scene:
    """One object under optimization."""

    def __init__(
        self,
        *,
        prompt: str,
        prior: Prior,
        method: Method,
        field: TrainedField,
        rig: CameraRig,
        seed: int,
        steps_total: int,
        negative_prompt: str = "",
        spec_hash: str = "",
        num_samples: int = NUM_SAMPLES,
        stages: Sequence[Stage] = (),
    ) -> None:
        """Set up step 0.

        `method` is bound to its knobs and rewards (`make_method`), `seed` starts the scene's generator,
        `spec_hash` names the job's specification: a checkpoint of another one is refused. `stages` say how large
        and how many the renders are, by default those of `supersampled`.
        """
        assert steps_total >= 1, "a scene has at least one step"
        self.prompt, self.prior, self.method, self.field, self.rig = prompt, prior, method, field, rig
        self.steps_total, self.spec_hash, self.num_samples = steps_total, spec_hash, num_samples
        self.stages = stages or supersampled(prior.image_px)
        self.text = _encode(prior, prompt, negative_prompt)
        """(2, L, D): the prompt, the negative prompt."""
        self.step = 0
        self.generator = torch.Generator().manual_seed(seed)
        self.optimizer = field.new_optimizer()
        self.readings: dict[str, Tensor] = {}
        self._learned: dict[str, _Learned] = {}
        self._cameras: Cameras | None = None

    @property
    def progress(self) -> float:
        """The share of the steps that are done, in [0, 1]."""
        return self.step / self.steps_total

    @property
    def finished(self) -> bool:
        """Whether all steps are done."""
        return self.step >= self.steps_total

    @property
    def device(self) -> torch.device:
        """Where the field and the text live."""
        return self.text.device

    # --- one step, in this order ---

    def render(self) -> Views:
        """Begin a step: ready the field, draw cameras, and render (G, V) views as the prior wants them."""
        assert not self.finished, "a finished scene has no further step; retire it"
        if self.field.prepare(self.step, self.steps_total):
            self.optimizer = self.field.new_optimizer()
        for optimizer in self._optimizers():
            optimizer.zero_grad(set_to_none=True)
        self.readings = {}
        stage = stage_at(self.stages, self.step, self.steps_total)
        groups = [self.rig.draw(self.generator) for _ in range(stage.num_groups)]
        cameras = Cameras(*(torch.cat(parts).to(self.device) for parts in zip(*groups, strict=True)))
        self._cameras = cameras
        px, samples = stage.render_px, self.num_samples
        look = self.field.draw_look(cameras, self.step, self.steps_total, self.generator)
        occupied = self.field.occupied
        views = render(self.field, cameras, px, samples, self.generator, occupied=occupied, look=look)
        return fit(views, self.prior.image_px)

    async def loss(self) -> Tensor:
        """Render, let the method ask its networks, and give the step's scalar loss."""
        views = self.render()
        loss = await self.method(self, views, self.prior)
        assert loss.ndim == 0, f"a method returns a scalar loss, not one of shape {tuple(loss.shape)}"
        return loss + self.field.regularization(views, self.step, self.steps_total)

    def prompts(self, rows: int) -> list[str]:
        """Say what rewards are to read with this step's pictures: a prompt per row, those of all groups in turn."""
        seen = [self.prompt] if self._cameras is None else seen_prompts(self.prompt, self._cameras)
        assert rows % len(seen) == 0, f"{rows} rows are no multiple of {len(seen)} groups"
        return seen * (rows // len(seen))

    def record(self, name: str, value: Tensor) -> None:
        """Keep a scalar of this step (a score, a gap) for whoever watches the scene."""
        assert value.numel() == 1, f"'{name}' is to be one number"
        self.readings[name] = value.detach()

    def learned(self, name: str, start: Tensor, learning_rate: float) -> Tensor:
        """Give a tensor that the method learns by Adam from its loss, beside the field; `start` at the first call.

        It is float32, since small steps vanish in less, and in the checkpoint; it changes at the end of a step.
        """
        if name not in self._learned:
            self._learned[name] = _learn(start.detach().to(torch.float32, copy=True))
        for group in self._learned[name].optimizer.param_groups:
            group["lr"] = learning_rate
        return self._learned[name].value

    def check_loss(self, loss: Tensor) -> None:
        """Raise `NanDivergence` unless the loss and all readings are finite."""
        for what, value in {**self.readings, "loss": loss.detach()}.items():
            if not math.isfinite(value):
                raise NanDivergence(self.step, what)

    def descend(self) -> None:
        """End a step: follow the gradients, or raise `NanDivergence` if they are not finite."""
        learned = ((name, one.value) for name, one in self._learned.items())
        for name, parameter in chain(self.field.named_parameters(), learned):
            # A sum is finite only if all its terms are, and costs a fraction of looking at each.
            if parameter.grad is not None and not math.isfinite(parameter.grad.sum()):
                raise NanDivergence(self.step, f"gradient of {name}")
        for group in self.optimizer.param_groups:
            group["lr"] = self.field.learning_rate(self.progress)
        for optimizer in self._optimizers():
            optimizer.step()
        self.step += 1

    def _optimizers(self) -> list[Optimizer]:
        return [self.optimizer, *(one.optimizer for one in self._learned.values())]

    # --- between steps ---

    def state_dict(self) -> SceneState:
        """Gather the state; its tensors are the living ones, to be copied or written before the next step."""
        tensors = {f"field.{name}": tensor for name, tensor in self.field.state_dict().items()}
        for name, parameter in self.field.named_parameters():
            for key, tensor in self.optimizer.state[parameter].items():
                tensors[f"optimizer.{name}.{key}"] = tensor
        for name, (value, optimizer) in self._learned.items():
            tensors[f"learned.{name}"] = value
            for key, tensor in optimizer.state[value].items():
                tensors[f"learner.{name}.{key}"] = tensor
        tensors["generator"] = self.generator.get_state()
        return SceneState(self.step, self.steps_total, self.spec_hash, tensors)

    def load_state_dict(self, state: SceneState) -> None:
        """Become the scene that was saved; raises `CheckpointError` if it was one of another job."""
        if (state.spec_hash, state.steps_total) != (self.spec_hash, self.steps_total):
            raise CheckpointError(
                f"the checkpoint belongs to specification '{state.spec_hash}' with {state.steps_total} steps, "
                f"expected '{self.spec_hash}' with {self.steps_total}; start this job from its own checkpoint"
            )
        groups = _by_prefix(state.tensors)
        try:
            self.field.load_state_dict(groups["field"])
            self.generator.set_state(groups["generator"][""])
        except (KeyError, RuntimeError, TypeError) as error:
            raise CheckpointError(
                f"the checkpoint does not fit this scene's field or generator: {error}"
            ) from error
        self.optimizer = self.field.new_optimizer()
        for name, parameter in self.field.named_parameters():
            _restore_moments(self.optimizer, parameter, name, groups.get("optimizer", {}))
        self._learned = {}
        for name, tensor in groups.get("learned", {}).items():
            self._learned[name] = one = _learn(tensor.to(self.device, copy=True))
            _restore_moments(one.optimizer, one.value, name, groups.get("learner", {}))
        self.step = state.step


def _encode(prior: Prior, prompt: str, negative_prompt: str) -> Tensor:
    """Embed both: (2, L, D). A prior that is told in words from where a view looks avoids the same from everywhere."""
    if isinstance(prior, _ToldDirections):
        return torch.cat([prior.encode_text([prompt]), prior.encode_negative_text([negative_prompt])])
    return prior.encode_text([prompt, negative_prompt])


def _learn(start: Tensor) -> _Learned:
    value = Parameter(start)
    return _Learned(value, torch.optim.Adam([value]))


def _restore_moments(
    optimizer: Optimizer, parameter: Parameter, name: str, moments: dict[str, Tensor]
) -> None:
    for key in [key for key in moments if key.startswith(f"{name}.")]:
        moment = moments[key].to(parameter.device, copy=True)
        optimizer.state[parameter][key.removeprefix(f"{name}.")] = moment


def _by_prefix(tensors: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    groups: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        prefix, _, rest = name.partition(".")
        groups.setdefault(prefix, {})[rest] = tensor
    return groups


def save_checkpoint(scene: Scene) -> bytes:
    """Write a scene as one safetensors file: tensors, and a JSON header with step and specification."""
    state = scene.state_dict()
    header = {"step": state.step, "steps_total": state.steps_total, "spec_hash": state.spec_hash}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.tensors.items()}
    return safetensors.torch.save(tensors, {"format": _FORMAT, "scene": json.dumps(header)})


def load_checkpoint(data: bytes) -> SceneState:
    """Read what `save_checkpoint` wrote, for `Scene.load_state_dict`; raises `CheckpointError` on anything else."""
    try:
        tensors = safetensors.torch.load(data)
        (header_bytes,) = struct.unpack("<Q", data[:8])
        metadata = json.loads(data[8 : 8 + header_bytes]).get("__metadata__", {})
    except (SafetensorError, struct.error, ValueError) as error:
        raise CheckpointError(
            f"{len(data)} bytes are no whole checkpoint ({error}); use the one before it"
        ) from error
    if metadata.get("format") != _FORMAT:
        raise CheckpointError(
            f"found a safetensors file of format {metadata.get('format')!r}, expected {_FORMAT!r}; "
            "it was not written by this version of dreamserve as a scene's checkpoint"
        )
    header = json.loads(metadata["scene"])
    return SceneState(header["step"], header["steps_total"], header["spec_hash"], tensors)
