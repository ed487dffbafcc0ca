"""Micro-batching: score requests of many callers, gathered into few calls of one network. Plain asyncio, no Ray."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from reward_models.contracts import RewardModel
    from reward_models.shared_buffer import Array

__all__ = ["Answer", "Call", "DeadlinePassed", "MicroBatcher", "Precision", "RewardBusy"]

Answer: TypeAlias = "tuple[Array, Array | None]"
"""Values (G, V) or (G, 1), and their gradient (G, V, 3, H, W) unless nobody wanted one."""
Precision = Literal["float32", "float16", "bfloat16"]

PATIENCE_SHARE = 0.5
"""A request waits for company at most this share of its caller's own step. With one half, two callers of
equal speed always meet: of the two gaps between their requests, one is at most half a step."""
PATIENCE_MAX_S = 0.25
GONE_S = 60.0
"""A caller that was silent for so long is forgotten."""


class RewardBusy(RuntimeError):
    """The queue of a reward is full: workers ask faster than it can answer."""


class DeadlinePassed(TimeoutError):
    """A request waited longer than its caller wanted to; nothing was computed for it."""


class Call(NamedTuple):
    """One call of the network that answered, as metrics see it; times in seconds."""

    rows: int
    num_scenes: int
    num_callers: int
    model_s: float
    waits_s: tuple[float, ...]
    """Of each request: from its arrival to the start of the call."""
    latencies_s: tuple[float, ...]
    """Of each request: from its arrival to its answer."""


@dataclass(slots=True)
class _Request:
    images: Array
    prompts: list[str]
    wants_gradient: Array
    num_scenes: int
    caller: str
    asked_at: float
    deadline: float
    answer: asyncio.Future[Answer]
    gradient_into: Array | None

    def fits(self, other: _Request) -> bool:
        return self.images.shape[1:] == other.images.shape[1:] and self.images.dtype == other.images.dtype


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
    requests: int = 0
    failures: int = 0
    dropped: int = 0
    refused: int = 0
    model_s: float = 0.0
    wait_s: float = 0.0
    latency_s: float = 0.0
    scenes_per_call: collections.Counter[int] = field(default_factory=collections.Counter)
    callers_per_call: collections.Counter[int] = field(default_factory=collections.Counter)

    def add(self, call: Call) -> None:
        self.calls += 1
        self.rows += call.rows
        self.model_s += call.model_s
        self.wait_s += sum(call.waits_s)
        self.latency_s += sum(call.latencies_s)
        self.scenes_per_call[call.num_scenes] += 1
        self.callers_per_call[call.num_callers] += 1


class MicroBatcher:
    """Collect score requests of many callers into few calls of one network.

    A request waits a little for callers who are about to ask too (see `PATIENCE_SHARE`), never for one who
    is gone. The network runs in a thread, so that requests arrive meanwhile. A request whose caller has given
    up (its task was canceled) or whose deadline has passed is not computed. A call that fails is repeated
    request by request: only the guilty one gets the exception.
    """

    def __init__(
        self,
        model: RewardModel,
        *,
        max_rows: int = 64,
        max_waiting: int = 256,
        device: str = "cpu",
        precision: Precision = "float32",
        watch: Callable[[Call], None] | None = None,
    ) -> None:
        """`model` lives on `device`; `watch` is told every call that answered.

        With a `precision` of 16 bits the network computes in it where torch's autocast does, while weights,
        values and gradients stay float32; float64 images are computed in float64 all the same.
        """
        self._model = model
        self._max_rows = max_rows
        self._max_waiting = max_waiting
        self._device = device
        self._precision = precision
        self._watch = watch
        self._waiting: list[_Request] = []
        self._callers: collections.defaultdict[str, _Caller] = collections.defaultdict(_Caller)
        self._arrival = asyncio.Event()
        self._server: asyncio.Task[None] | None = None
        self._counters = _Counters()

    async def score(
        self,
        images: Array,
        prompts: list[str],
        wants_gradient: Array,
        num_scenes: int,
        caller: str,
        timeout_s: float = math.inf,
        *,
        gradient_into: Array | None = None,
    ) -> Answer:
        """Score (G, V, 3, H, W) images in [0, 1]: values, and their gradient unless no row wants one.

        Float64 images are answered in float64, all others in float32. `num_scenes` says how many scenes the rows
        belong to, `caller` which worker asks; the gradient is written to `gradient_into`, which may lie where the
        images do, if that is given. Raises `RewardBusy` when too many requests wait, `DeadlinePassed`
        when this one was not begun within `timeout_s`, and whatever the network raises for these rows.
        """
        if len(self._waiting) >= self._max_waiting:
            self._waiting = self._still_wanted(self._waiting)
        if len(self._waiting) >= self._max_waiting:
            self._counters.refused += 1
            raise RewardBusy(
                f"{len(self._waiting)} requests wait for this reward, no more are taken. Try again later."
            )
        if self._server is None or self._server.done():
            self._server = asyncio.create_task(self._serve())
        now = time.monotonic()
        self._callers[caller].asks(now)
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        deadline = now + timeout_s
        self._waiting.append(
            _Request(
                images, prompts, wants_gradient, num_scenes, caller, now, deadline, answer, gradient_into
            )
        )
        self._arrival.set()
        return await answer

    @property
    def num_waiting(self) -> int:
        """Requests in the queue."""
        return len(self._waiting)

    def stats(self) -> dict[str, Any]:
        """Count what happened so far: calls of the network, scenes and callers per call, times in seconds."""
        c = self._counters
        return {
            "calls": c.calls,
            "rows": c.rows,
            "requests": c.requests,
            "failures": c.failures,
            "dropped": c.dropped,
            "refused": c.refused,
            "waiting": len(self._waiting),
            "model_s": c.model_s,
            "wait_s": c.wait_s,
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
            self._waiting = self._still_wanted(self._waiting)
            if self._waiting:
                await self._answer(self._take_batch())

    async def _gather_company(self) -> None:
        """Wait as long as a caller who is not here yet is expected within the patience of those who are."""
        while True:
            now = time.monotonic()
            until = min(self._patient_until(request) for request in self._waiting)
            if until <= now or not any(caller.is_due(now, until) for caller in self._callers.values()):
                return
            self._arrival.clear()
            try:
                await asyncio.wait_for(self._arrival.wait(), until - now)
            except TimeoutError:
                return

    def _patient_until(self, request: _Request) -> float:
        half_its_time_s = 0.5 * (request.deadline - request.asked_at)
        return request.asked_at + min(self._callers[request.caller].patience_s(), half_its_time_s)

    def _still_wanted(self, requests: list[_Request]) -> list[_Request]:
        """End the requests whose deadline has passed, forget those that were given up; the others."""
        now = time.monotonic()
        wanted = []
        for request in requests:
            if not request.answer.done() and now < request.deadline:
                wanted.append(request)
                continue
            self._counters.dropped += 1
            self._callers[request.caller].waiting -= 1
            if not request.answer.done():
                waited_s = now - request.asked_at
                told = f"the request waited {waited_s:.1f} s for its turn, longer than its deadline allows"
                request.answer.set_exception(DeadlinePassed(told))
        return wanted

    def _take_batch(self) -> list[_Request]:
        """Take the oldest request and all that fit beside it: images of one kind, `max_rows` at most."""
        first, rows = self._waiting[0], 0
        taken: list[_Request] = []
        left: list[_Request] = []
        for request in self._waiting:
            room = not taken or rows + len(request.images) <= self._max_rows
            fits = room and request.fits(first)
            (taken if fits else left).append(request)
            rows += len(request.images) if fits else 0
        self._waiting = left
        return taken

    async def _answer(self, batch: list[_Request]) -> None:
        started = time.monotonic()
        try:
            answers = await asyncio.to_thread(self._run, batch)
        except Exception as error:
            if len(batch) > 1:
                for request in batch:
                    for wanted in self._still_wanted([request]):
                        await self._answer([wanted])
                return
            self._counters.failures += 1
            self._finish(batch[0])
            if not batch[0].answer.done():
                batch[0].answer.set_exception(error)
            return
        self._note(batch, started)
        for request, answer in zip(batch, answers, strict=True):
            self._finish(request)
            if not request.answer.done():  # its caller may have gone
                request.answer.set_result(answer)

    def _note(self, batch: list[_Request], started: float) -> None:
        now = time.monotonic()
        call = Call(
            rows=sum(len(request.images) for request in batch),
            num_scenes=sum(request.num_scenes for request in batch),
            num_callers=len({request.caller for request in batch}),
            model_s=now - started,
            waits_s=tuple(started - request.asked_at for request in batch),
            latencies_s=tuple(now - request.asked_at for request in batch),
        )
        self._counters.add(call)
        if self._watch is not None:
            self._watch(call)

    def _finish(self, request: _Request) -> None:
        now, caller = time.monotonic(), self._callers[request.caller]
        caller.waiting -= 1
        caller.answered_at = now
        self._counters.requests += 1
        gone = [
            name
            for name, c in self._callers.items()
            if not c.waiting and now - (c.answered_at or now) > GONE_S
        ]
        for name in gone:
            del self._callers[name]

    def _run(self, batch: list[_Request]) -> list[Answer]:
        """Ask the network, in this thread."""
        values, gradient = self._compute(
            _joined([request.images for request in batch]),
            [prompt for request in batch for prompt in request.prompts],
            np.concatenate([request.wants_gradient for request in batch]),
        )
        answers: list[Answer] = []
        row = 0
        for request in batch:
            rows = slice(row, row := row + len(request.images))
            wanted = request.wants_gradient.any()
            answers.append((values[rows], _handed_over(gradient[rows], request) if wanted else None))
        return answers

    def _compute(self, images: Array, prompts: list[str], wants_gradient: Array) -> tuple[Array, Tensor]:
        """The values, and their gradient where the network has left it."""
        import torch  # here, so that whoever only starts an actor need not have it

        pixels = torch.from_numpy(images)
        # 16 bits are for the way only: gradients would vanish in them.
        pixels = pixels.to(self._device, torch.promote_types(pixels.dtype, torch.float32))
        wants = torch.from_numpy(wants_gradient).to(pixels.device)
        with contextlib.ExitStack() as stack:
            if self._precision != "float32":
                stack.enter_context(torch.autocast(pixels.device.type, getattr(torch, self._precision)))
            values, gradient = self._model.score_batch(pixels, prompts, wants)
        return values.to(pixels.dtype).cpu().numpy(), gradient.to(pixels.dtype)


def _joined(images: list[Array]) -> Array:
    """All rows in one array, which torch may have: those that Ray hands out are read-only, and are copied."""
    return images[0] if len(images) == 1 and images[0].flags.writeable else np.concatenate(images)


def _handed_over(gradient: Tensor, request: _Request) -> Array:
    """Copy the gradient to where it is wanted, if that is said."""
    import torch

    if request.gradient_into is None:
        answer: Array = gradient.cpu().numpy()
        return answer
    torch.from_numpy(request.gradient_into).copy_(gradient)
    return request.gradient_into
