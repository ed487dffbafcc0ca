"""One reward network for all workers of a machine: a Ray actor that batches over scenes and workers.

`RewardActor` holds the network and a `MicroBatcher` (Ray runs its coroutines), `RemoteReward` is what a worker
holds. Pictures travel by a `SharedBuffer` where both are on one machine, else as Ray's objects. An autograd graph does
not cross processes, so the actor answers with the scores *and* d score / d image.
Float64 images travel and are answered in float64; all others in at most float32, and are answered in float32.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from reward_models.batching import Answer, Call, DeadlinePassed, MicroBatcher, Precision, RewardBusy
from reward_models.shared_buffer import CAN_SHARE, Array, Elsewhere, SharedBuffer, SharedImages

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from torch import Tensor

    from reward_models.contracts import RewardCard, RewardModel

__all__ = [
    "RemoteReward",
    "RewardActor",
    "RewardOptions",
    "RewardUnavailable",
    "load_ready",
    "pack",
    "ready_card",
]

RETRY_DELAYS_S = (0.5, 2.0, 5.0)
RESTART_S = 15.0
"""What a restarted actor may take before each retry: Ray needs about 2 s, to which loading the network comes. With all
delays less than a minute, after which an optimization counts as stalled."""
READY_POLL_S = 0.25
WARM_VIEWS, WARM_PX = 4, 256
"""Pictures of the dummy batch: as many and as large as published priors draw."""
_OUTCOMES: dict[type[BaseException], str] = {
    RewardBusy: "refused",
    DeadlinePassed: "late",
    asyncio.CancelledError: "given_up",
}
_ROWS = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0]
_SECONDS = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0]


class RewardUnavailable(RuntimeError):
    """A shared reward did not answer, also not after retries: the attempt fails and may be tried again."""


@dataclass(frozen=True, slots=True)
class RewardOptions:
    """How an actor holds its reward."""

    num_threads: int = 1
    """CPU threads of torch."""
    gpu_share: float = 0.0
    """Share of one GPU: what Ray reserves (`num_gpus`) and, since Ray limits no memory, the most of its memory
    that this process may take. 0 stays on the CPU; without a GPU the CPU is used anyway."""
    precision: Precision = "float32"
    """What a GPU computes in (see `MicroBatcher`); a CPU computes in float32, which is faster there."""
    max_rows: int = 64
    """Objects in one call of the network."""
    max_waiting: int = 256
    """Requests that may wait; more are refused with `RewardBusy`."""


def load_ready(load: Callable[[], RewardModel], options: RewardOptions) -> tuple[RewardModel, str]:
    """Load a reward onto its device and let it answer one dummy batch; the model, and that device.

    So memory, kernels and lazy imports are in place before anybody waits for them, and a model that cannot answer
    is found out now: raises ValueError.
    """
    import torch  # here, so that whoever only starts the actor need not have it

    torch.set_num_threads(options.num_threads)
    device = "cuda" if options.gpu_share and torch.cuda.is_available() else "cpu"
    if device == "cuda":
        torch.cuda.set_per_process_memory_fraction(options.gpu_share)
    model = load()
    if device == "cuda":
        assert isinstance(model, torch.nn.Module), f"{model.card.name} cannot move to a GPU"
        model.to(device)
    gray = torch.full((1, model.card.views or WARM_VIEWS, 3, WARM_PX, WARM_PX), 0.5, device=device)
    values, _ = model.score_batch(gray, ["a red cube"], torch.tensor([model.card.differentiable]))
    if not bool(values.isfinite().all()):
        raise ValueError(
            f"reward '{model.card.name}' scores a gray picture with {values.flatten().tolist()}, expected finite "
            "numbers; its weights are damaged or do not fit"
        )
    return model, device


class RewardActor:
    """Hold one reward network as a Ray actor: `ray.remote(RewardActor).options(max_restarts=-1, …)`.

    It answers nothing before its network is warm.
    """

    def __init__(self, load: Callable[[], RewardModel], options: RewardOptions) -> None:
        self._model, device = load_ready(load, options)
        self._meters = _Meters(self._model.card.name)
        self._batcher = MicroBatcher(
            self._model,
            max_rows=options.max_rows,
            max_waiting=options.max_waiting,
            device=device,
            precision=options.precision if device == "cuda" else "float32",
            watch=self._meters.observe,
        )

    async def score(
        self,
        images: Array | SharedImages,
        prompts: list[str],
        wants_gradient: Array,
        num_scenes: int,
        caller: str,
        timeout_s: float,
    ) -> Answer:
        """Answer as `MicroBatcher.score` does; the gradient for `SharedImages` is left in their place, and not sent.

        Raises `Elsewhere` where their memory is on another machine.
        """
        into = None
        if isinstance(images, SharedImages):
            images, into = images.arrays(images.open())
        try:
            values, gradient = await self._batcher.score(
                images, prompts, wants_gradient, num_scenes, caller, timeout_s, gradient_into=into
            )
        except BaseException as error:
            self._meters.count(_OUTCOMES.get(type(error), "failed"), self._batcher.num_waiting)
            raise
        self._meters.count("answered", self._batcher.num_waiting)
        return values, gradient if into is None else None

    async def card(self) -> RewardCard:
        return self._model.card

    async def stats(self) -> dict[str, Any]:
        return {"pid": os.getpid(), **self._batcher.stats()}


class _Meters:
    """What only this process knows, by Ray's exporter (which puts `ray_` before each name)."""

    def __init__(self, reward: str) -> None:
        from ray.util.metrics import Counter, Gauge, Histogram

        def histogram(name: str, about: str, bounds: list[float]) -> Histogram:
            made = Histogram(f"dreamserve_reward_{name}", about, boundaries=bounds, tag_keys=("reward",))
            made.set_default_tags({"reward": reward})
            return made

        self._rows = histogram("batch_size", "Objects in one call of a shared reward.", _ROWS)
        self._wait = histogram("wait_seconds", "Time a request waited for its call.", _SECONDS)
        self._latency = histogram("latency_seconds", "Time from a request to its answer.", _SECONDS)
        self._model = histogram("model_seconds", "Time of one call of the network.", _SECONDS)
        self._waiting = Gauge(
            "dreamserve_reward_queue_depth", "Requests that wait for a shared reward.", tag_keys=("reward",)
        )
        self._requests = Counter(
            "dreamserve_reward_requests", "Requests, by outcome.", tag_keys=("reward", "outcome")
        )
        self._waiting.set_default_tags({"reward": reward})
        self._requests.set_default_tags({"reward": reward})

    def observe(self, call: Call) -> None:
        self._rows.observe(call.rows)
        self._model.observe(call.model_s)
        for wait_s, latency_s in zip(call.waits_s, call.latencies_s, strict=True):
            self._wait.observe(wait_s)
            self._latency.observe(latency_s)

    def count(self, outcome: str, waiting: int) -> None:
        self._requests.inc(tags={"outcome": outcome})
        self._waiting.set(waiting)


class RemoteReward:
    """Ask a `RewardActor` as if it were the network itself.

    Safe to use from several threads. An actor that died or is busy is asked again after each of `RETRY_DELAYS_S`, when
    it is ready; then `RewardUnavailable` is raised.
    """

    def __init__(
        self, handle: Any, card: RewardCard, caller: str, timeout_s: float = 60.0, *, shares: bool = CAN_SHARE
    ) -> None:
        """`timeout_s` bounds each try; what did not begin by then is not computed any more.

        Unless it `shares` its memory, or once the actor proves to be on another machine, pictures are sent.
        """
        self._handle = handle
        self._caller = caller
        self._timeout_s = timeout_s
        self._shares = shares
        self._buffers: list[SharedBuffer] = []
        self.card = card

    def score_batch(
        self, images: Tensor, prompts: list[str], wants_gradient: Tensor, num_scenes: int = 1
    ) -> tuple[Tensor, Tensor]:
        """Answer as `RewardModel.score_batch` does, on the device of `images`; no gradient flows through.

        In float64 for float64 images, else in float32: a gradient of 16 bits would vanish on its way.
        """
        from ray.exceptions import GetTimeoutError, RayActorError

        message = (prompts, wants_gradient.cpu().numpy(), num_scenes)
        for delay_s in (*RETRY_DELAYS_S, None):
            try:
                return self._try(images.detach(), *message)
            except (RayActorError, GetTimeoutError, DeadlinePassed, RewardBusy) as error:
                if delay_s is None:
                    raise RewardUnavailable(
                        f"The shared reward '{self.card.name}' did not answer, also not after "
                        f"{len(RETRY_DELAYS_S)} retries ({type(error).__name__}). "
                        "Look at its log, or set the reward's placement to 'local'."
                    ) from error
            time.sleep(delay_s)
            with contextlib.suppress(RayActorError, GetTimeoutError):
                ready_card(self._handle, RESTART_S)
        raise AssertionError("unreachable")

    def _try(
        self, images: Tensor, prompts: list[str], wants_gradient: Array, num_scenes: int
    ) -> tuple[Tensor, Tensor]:
        import torch

        message = (prompts, wants_gradient, num_scenes)
        try:
            values, gradient = self._lend(images, *message) if self._shares else self._send(images, *message)
        except Elsewhere:
            self._shares = False
            values, gradient = self._send(images, *message)
        values_GV = torch.from_numpy(values.copy()).to(images.device)  # Ray's arrays are read-only
        if gradient is None:
            gradient = values_GV.new_zeros(()).expand(images.shape)
        return values_GV, gradient

    def _send(
        self, images: Tensor, prompts: list[str], wants_gradient: Array, num_scenes: int
    ) -> tuple[Array, Tensor | None]:
        """Ask by messages, which hold the pictures and the gradient."""
        import torch

        values, gradient = self._ask(pack(images), prompts, wants_gradient, num_scenes)
        if gradient is None:
            return values, None
        return values, torch.from_numpy(gradient.copy()).to(images.device)

    def _lend(
        self, images: Tensor, prompts: list[str], wants_gradient: Array, num_scenes: int
    ) -> tuple[Array, Tensor | None]:
        """Ask by memory that an actor on this machine sees too; raises `Elsewhere` where it is on another."""
        import torch

        dtype = str(travel_dtype(images)).removeprefix("torch.")
        buffer = self._buffers.pop() if self._buffers else SharedBuffer()
        shared = buffer.room(images.shape, dtype)
        pixels, gradient = shared.arrays(buffer.memory)
        torch.from_numpy(pixels).copy_(images)
        values, _ = self._ask(shared, prompts, wants_gradient, num_scenes)
        wanted = bool(wants_gradient.any())
        answer = torch.from_numpy(gradient).to(images.device, copy=True) if wanted else None
        # Not where there was no answer: it may still come, and be written there.
        self._buffers.append(buffer)
        return values, answer

    def _ask(self, *message: Any) -> Answer:
        import ray
        from ray.exceptions import GetTimeoutError, RayTaskError

        reference = self._handle.score.remote(*message, self._caller, self._timeout_s)
        try:
            answer: Answer = ray.get(reference, timeout=self._timeout_s)
            return answer
        except GetTimeoutError:
            ray.cancel(reference)  # nobody waits for it any more
            raise
        except RayTaskError as error:
            raise error.cause from error  # in its own words, without the actor's traceback


def ready_card(handle: Any, timeout_s: float = math.inf) -> RewardCard:
    """Wait until a `RewardActor` is ready, also while it is restarting; its card.

    Raises Ray's `ActorUnavailableError` or `GetTimeoutError` when it is not in time, `RayActorError` when it died.
    """
    import ray
    from ray.exceptions import ActorUnavailableError

    deadline = time.monotonic() + timeout_s
    while True:
        left_s = max(0.0, deadline - time.monotonic())
        try:
            card: RewardCard = ray.get(handle.card.remote(), timeout=None if math.isinf(left_s) else left_s)
            return card
        except ActorUnavailableError:  # at once, while it is restarting
            if left_s <= READY_POLL_S:
                raise
        time.sleep(READY_POLL_S)


def travel_dtype(images: Tensor) -> torch.dtype:
    """Tell in which type images travel: with every digit they have.

    Float16 stays, as half the bytes; bfloat16, which NumPy does not know, becomes float32.
    """
    import torch

    return torch.float32 if images.dtype is torch.bfloat16 else images.dtype


def pack(images: Tensor) -> Array:
    """Turn images into an array for the way to another machine."""
    array: Array = images.detach().to(travel_dtype(images)).cpu().numpy()
    return array
