"""One reward network for all workers of a machine: a Ray actor that batches over scenes and workers.

`MicroBatcher` is the logic, plain asyncio. `RewardActor` only builds one (Ray runs its coroutines),
`RemoteReward` is what a worker holds. An autograd graph does not cross processes, so the actor answers
with the scores *and* d score / d image, and everything travels as float32 arrays.
"""

from __future__ import annotations

import asyncio
import collections
import os
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from reward_models.contracts import RewardCard, RewardModel

__all__ = ["MicroBatcher", "RemoteReward", "RewardActor", "RewardBusy", "RewardUnavailable"]

Array = np.ndarray[Any, np.dtype[Any]]

PATIENCE_SHARE = 0.5
"""A request waits for company at most this share of its caller's own step. With one half, two callers of
equal speed always meet: of the two gaps between their requests, one is at most half a step."""
PATIENCE_MAX_S = 0.25
RETRY_DELAYS_S = (0.5, 2.0, 5.0)
"""Ray restarts a dead actor in about 2 s, to which loading the network comes."""


class RewardBusy(RuntimeError):
    """The queue of a reward is full: workers ask faster than it can answer."""


class RewardUnavailable(RuntimeError):
    """A shared reward did not answer, also not after retries: the attempt fails and may be tried again."""


@dataclass(slots=True)
class _Request:
    images: Array
    prompts: list[str]
    wants_gradient: Array
    num_scenes: int
    caller: str
    asked_at: float
    answer: asyncio.Future[tuple[Array, Array | None]]


@dataclass(slots=True)
class _Caller:
    """The rhythm of one worker: when it got its last answer, and how long it usually takes to ask again."""

    waiting: int = 0
    answered_at: float | None = None
    think_s: float | None = None

    def asks(self, now: float) -> None:
        self.waiting += 1
        if self.answered_at is not None:
            think_s = now - self.answered_at
            self.think_s = think_s if self.think_s is None else 0.5 * (self.think_s + think_s)

    def patience_s(self) -> float:
        return 0.0 if self.think_s is None else min(PATIENCE_SHARE * self.think_s, PATIENCE_MAX_S)

    def is_due(self, now: float, until: float) -> bool:
        """Whether this caller should ask again before `until`; one that is long overdue has left."""
        if self.waiting or self.answered_at is None or self.think_s is None:
            return False
        due = self.answered_at + self.think_s
        return now - self.patience_s() <= due <= until


@dataclass(slots=True)
class _Counters:
    calls: int = 0
    rows: int = 0
    failures: int = 0
    model_s: float = 0.0
    latency_s: float = 0.0
    requests: int = 0
    scenes_per_call: collections.Counter[int] = field(default_factory=collections.Counter)
    callers_per_call: collections.Counter[int] = field(default_factory=collections.Counter)


class MicroBatcher:
    """Collect score requests of many callers into few calls of one network.

    A request waits a little for callers who are about to ask too (see `PATIENCE_SHARE`), never for one who
    is gone. The network runs in a thread, so that requests arrive meanwhile. A call that fails is repeated
    request by request: only the guilty one gets the exception.
    """

    def __init__(self, model: RewardModel, *, max_rows: int = 64, max_waiting: int = 256) -> None:
        self._model = model
        self._max_rows = max_rows
        self._max_waiting = max_waiting
        self._waiting: list[_Request] = []
        self._callers: collections.defaultdict[str, _Caller] = collections.defaultdict(_Caller)
        self._arrival = asyncio.Event()
        self._server: asyncio.Task[None] | None = None
        self._counters = _Counters()

    async def score(
        self, images: Array, prompts: list[str], wants_gradient: Array, num_scenes: int, caller: str
    ) -> tuple[Array, Array | None]:
        """Score (G, V, 3, H, W) images in [0, 1]: values, and their gradient unless no row wants one.

        `num_scenes` says how many scenes the rows belong to, `caller` which worker asks. Raises `RewardBusy`
        when too many requests wait, and whatever the network raises for these rows.
        """
        if len(self._waiting) >= self._max_waiting:
            raise RewardBusy(
                f"{len(self._waiting)} requests wait for this reward, no more are taken. Try again later."
            )
        if self._server is None or self._server.done():
            self._server = asyncio.create_task(self._serve())
        now = time.monotonic()
        self._callers[caller].asks(now)
        answer: asyncio.Future[tuple[Array, Array | None]] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Request(images, prompts, wants_gradient, num_scenes, caller, now, answer))
        self._arrival.set()
        return await answer

    def stats(self) -> dict[str, Any]:
        """Count what happened so far: calls of the network, scenes and callers per call, times in seconds."""
        c = self._counters
        return {
            "calls": c.calls,
            "rows": c.rows,
            "requests": c.requests,
            "failures": c.failures,
            "waiting": len(self._waiting),
            "model_s": c.model_s,
            "latency_s": c.latency_s,
            "scenes_per_call": dict(c.scenes_per_call),
            "callers_per_call": dict(c.callers_per_call),
        }

    async def _serve(self) -> None:
        while True:
            while not self._waiting:
                self._arrival.clear()
                await self._arrival.wait()
            await self._gather_company()
            await self._answer(self._take_batch())

    async def _gather_company(self) -> None:
        """Wait as long as a caller who is not here yet is expected within the patience of those who are."""
        while True:
            now = time.monotonic()
            until = min(
                request.asked_at + self._callers[request.caller].patience_s() for request in self._waiting
            )
            if until <= now or not any(caller.is_due(now, until) for caller in self._callers.values()):
                return
            self._arrival.clear()
            try:
                await asyncio.wait_for(self._arrival.wait(), until - now)
            except TimeoutError:
                return

    def _take_batch(self) -> list[_Request]:
        """Take the oldest request and all that fit beside it: images of one size, `max_rows` at most."""
        shape, rows = self._waiting[0].images.shape[1:], 0
        taken: list[_Request] = []
        left: list[_Request] = []
        for request in self._waiting:
            fits = request.images.shape[1:] == shape and (
                not taken or rows + len(request.images) <= self._max_rows
            )
            (taken if fits else left).append(request)
            rows += len(request.images) if fits else 0
        self._waiting = left
        return taken

    async def _answer(self, batch: list[_Request]) -> None:
        try:
            answers = await asyncio.to_thread(self._run, batch)
        except Exception as error:
            if len(batch) > 1:
                for request in batch:
                    await self._answer([request])
                return
            self._counters.failures += 1
            self._finish(batch[0])
            if not batch[0].answer.done():
                batch[0].answer.set_exception(error)
            return
        for request, answer in zip(batch, answers, strict=True):
            self._finish(request)
            if not request.answer.done():  # its caller may have gone
                request.answer.set_result(answer)

    def _finish(self, request: _Request) -> None:
        now, caller = time.monotonic(), self._callers[request.caller]
        caller.waiting -= 1
        caller.answered_at = now
        self._counters.requests += 1
        self._counters.latency_s += now - request.asked_at
        gone = [
            name for name, c in self._callers.items() if not c.waiting and now - (c.answered_at or now) > 60
        ]
        for name in gone:
            del self._callers[name]

    def _run(self, batch: list[_Request]) -> list[tuple[Array, Array | None]]:
        import torch

        started = time.monotonic()
        images = torch.from_numpy(np.concatenate([request.images for request in batch]))
        wants = torch.from_numpy(np.concatenate([request.wants_gradient for request in batch]))
        prompts = [prompt for request in batch for prompt in request.prompts]
        values, gradient = self._model.score_batch(images, prompts, wants)
        answers: list[tuple[Array, Array | None]] = []
        row = 0
        for request in batch:
            rows = slice(row, row := row + len(request.images))
            wanted = bool(request.wants_gradient.any())
            # Copies: a view would send the whole batch to each caller.
            answers.append((values[rows].numpy().copy(), gradient[rows].numpy().copy() if wanted else None))
        self._counters.calls += 1
        self._counters.rows += len(images)
        self._counters.scenes_per_call[sum(request.num_scenes for request in batch)] += 1
        self._counters.callers_per_call[len({request.caller for request in batch})] += 1
        self._counters.model_s += time.monotonic() - started
        return answers


class RewardActor:
    """Hold one reward network as a Ray actor: `ray.remote(RewardActor).options(max_restarts=-1, …)`."""

    def __init__(self, load: Callable[[], RewardModel], num_threads: int) -> None:
        import torch  # here, so that whoever only starts the actor need not have it

        torch.set_num_threads(num_threads)
        self._model = load()
        self._batcher = MicroBatcher(self._model)

    async def score(
        self, images: Array, prompts: list[str], wants_gradient: Array, num_scenes: int, caller: str
    ) -> tuple[Array, Array | None]:
        return await self._batcher.score(images, prompts, wants_gradient, num_scenes, caller)

    async def card(self) -> RewardCard:
        return self._model.card

    async def stats(self) -> dict[str, Any]:
        return {"pid": os.getpid(), **self._batcher.stats()}


class RemoteReward:
    """Ask a `RewardActor` as if it were the network itself.

    Safe to use from several threads. A restarted actor is asked again after each of `RETRY_DELAYS_S`; then
    `RewardUnavailable` is raised.
    """

    def __init__(self, handle: Any, card: RewardCard, caller: str, timeout_s: float = 60.0) -> None:
        self._handle = handle
        self._caller = caller
        self._timeout_s = timeout_s
        self.card = card

    def score_batch(
        self, images: Tensor, prompts: list[str], wants_gradient: Tensor, num_scenes: int = 1
    ) -> tuple[Tensor, Tensor]:
        """Answer as `RewardModel.score_batch` does, on the device of `images`; no gradient flows through."""
        import torch

        pictures = images.detach().float().cpu().numpy()
        values, gradient = self._ask(pictures, prompts, wants_gradient.cpu().numpy(), num_scenes)
        # Arrays from Ray's object store are read-only, and shared: copy.
        values_GV = torch.from_numpy(values.copy()).to(images.device)
        if gradient is None:
            return values_GV, torch.zeros_like(images)
        return values_GV, torch.from_numpy(gradient.copy()).to(images.device)

    def _ask(self, *message: Any) -> tuple[Array, Array | None]:
        import ray
        from ray.exceptions import GetTimeoutError, RayActorError

        for delay_s in (*RETRY_DELAYS_S, None):
            try:
                reference = self._handle.score.remote(*message, self._caller)
                answer: tuple[Array, Array | None] = ray.get(reference, timeout=self._timeout_s)
                return answer
            except (RayActorError, GetTimeoutError, RewardBusy) as error:
                if delay_s is None:
                    raise RewardUnavailable(
                        f"The shared reward '{self.card.name}' did not answer, also not after "
                        f"{len(RETRY_DELAYS_S)} retries ({type(error).__name__}). "
                        "Look at its log, or set the reward's placement to 'local'."
                    ) from error
            time.sleep(delay_s)
        raise AssertionError("unreachable")
