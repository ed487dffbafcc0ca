"""The micro-batcher of shared rewards, with a tiny real reward and a real event loop."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest
import torch

from reward_models.batching import Call, DeadlinePassed, MicroBatcher, RewardBusy
from reward_models.contracts import RewardCard, score_and_gradient

CARD = RewardCard(
    name="redness",
    value_range=(-1.0, 1.0),
    scale="mean red minus mean blue",
    views=None,
    uses_prompt=True,
    differentiable=True,
    license="Apache-2.0",
    weights_sha256=None,
)


class Redness(torch.nn.Module):
    """Red minus blue, weighted by the length of the prompt; refuses the prompt 'poison'."""

    card = CARD

    def __init__(self) -> None:
        super().__init__()
        self.rows_per_call: list[int] = []
        self.gate = threading.Event()
        self.gate.set()

    def forward(self, images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        if "poison" in prompts:
            raise ValueError("poison")
        weight = torch.tensor([float(len(prompt)) for prompt in prompts]).to(images.dtype)
        red, _, blue = images.square().mean((-1, -2)).unbind(-1)
        return weight[:, None] * (red - blue)

    def score_batch(self, images, prompts, wants_gradient):
        self.gate.wait()
        self.rows_per_call.append(len(images))
        return score_and_gradient(self, images, prompts, wants_gradient)


def pictures(rows: int, seed: int = 0, px: int = 4) -> np.ndarray:
    return np.random.default_rng(seed).random((rows, 2, 3, px, px), dtype=np.float32)


def flags(*wants: bool) -> np.ndarray:
    return np.array(wants)


def test_gradient_is_that_of_the_sum_of_scores_and_zero_where_nobody_asked() -> None:
    images = torch.from_numpy(pictures(3))
    values, gradient = Redness().score_batch(images, ["a", "bb", "ccc"], torch.tensor([True, False, True]))
    assert not values.requires_grad
    expected = torch.zeros_like(images)
    for row, weight in ((0, 1.0), (2, 3.0)):
        expected[row, :, 0] = weight * 2 * images[row, :, 0] / 16
        expected[row, :, 2] = -weight * 2 * images[row, :, 2] / 16
    torch.testing.assert_close(gradient, expected)


def test_requests_that_arrive_during_a_call_share_the_next_one_and_get_their_own_rows() -> None:
    reward = Redness()

    async def scenario() -> list[tuple[np.ndarray, np.ndarray | None]]:
        batcher = MicroBatcher(reward)
        reward.gate.clear()
        first = asyncio.create_task(batcher.score(pictures(1), ["x"], flags(False), 1, "w0"))
        await asyncio.sleep(0.01)  # the first call is in its thread now, held by the gate
        rest = [
            asyncio.create_task(
                batcher.score(pictures(2, seed), ["a" * seed] * 2, flags(True, False), 1, f"w{seed}")
            )
            for seed in (1, 2, 3)
        ]
        await asyncio.sleep(0.01)
        assert batcher.stats()["waiting"] == 3
        reward.gate.set()
        answers = [await first, *[await one for one in rest]]
        assert batcher.stats()["scenes_per_call"] == {1: 1, 3: 1}
        return answers

    answers = asyncio.run(scenario())
    assert reward.rows_per_call == [1, 6]
    assert answers[0][1] is None, "nobody asked for a gradient"
    for seed in (1, 2, 3):
        images = torch.from_numpy(pictures(2, seed))
        values, gradient = Redness().score_batch(images, ["a" * seed] * 2, torch.tensor([True, False]))
        np.testing.assert_allclose(answers[seed][0], values.numpy(), rtol=1e-6)
        np.testing.assert_allclose(answers[seed][1], gradient.numpy(), rtol=1e-6)


def test_gradients_are_written_to_where_the_images_were_of_one_request_or_of_several() -> None:
    async def scenario(num_requests: int) -> None:
        batcher = MicroBatcher(Redness())
        images = [pictures(2, seed) for seed in range(num_requests)]
        given = [one.copy() for one in images]
        ask = [batcher.score(one, ["xx"] * 2, flags(True, True), 1, "w", gradient_into=one) for one in images]
        for (_, gradient), one, before in zip(await asyncio.gather(*ask), images, given, strict=True):
            assert gradient is one
            expected = Redness().score_batch(torch.from_numpy(before), ["xx"] * 2, torch.tensor([True] * 2))[
                1
            ]
            np.testing.assert_allclose(one, expected.numpy(), rtol=1e-6)

    for num_requests in (1, 3):
        asyncio.run(scenario(num_requests))


def test_only_the_guilty_request_gets_the_exception() -> None:
    reward = Redness()

    async def scenario() -> list[object]:
        batcher = MicroBatcher(reward)
        reward.gate.clear()
        tasks = [
            asyncio.create_task(batcher.score(pictures(1), [prompt], flags(False), 1, prompt))
            for prompt in ("good", "poison", "fine")
        ]
        await asyncio.sleep(0.01)
        reward.gate.set()
        return list(await asyncio.gather(*tasks, return_exceptions=True))

    good, poison, fine = asyncio.run(scenario())
    assert isinstance(poison, ValueError)
    assert isinstance(good, tuple)
    assert isinstance(fine, tuple)


def test_a_full_queue_refuses() -> None:
    reward = Redness()

    async def scenario() -> None:
        batcher = MicroBatcher(reward, max_waiting=1)
        reward.gate.clear()
        tasks = []
        for _ in range(2):  # one in the call, one waiting
            tasks.append(asyncio.create_task(batcher.score(pictures(1), ["x"], flags(False), 1, "w")))
            await asyncio.sleep(0.01)
        with pytest.raises(RewardBusy, match="Try again later"):
            await batcher.score(pictures(1), ["x"], flags(False), 1, "w")
        reward.gate.set()
        await asyncio.gather(*tasks)

    asyncio.run(scenario())


def test_images_of_different_sizes_are_not_mixed() -> None:
    reward = Redness()

    async def scenario() -> None:
        batcher = MicroBatcher(reward)
        await asyncio.gather(
            *(batcher.score(pictures(1, px=px), ["x"], flags(False), 1, f"{px}") for px in (4, 8, 4, 8))
        )

    asyncio.run(scenario())
    assert reward.rows_per_call == [2, 2]


@pytest.mark.parametrize("steps_s", [(0.04, 0.04), (0.04, 0.05)])
def test_two_workers_that_start_apart_fall_into_step(steps_s: tuple[float, float]) -> None:
    reward = Redness()

    async def worker(batcher: MicroBatcher, name: str, delay_s: float, step_s: float) -> None:
        await asyncio.sleep(delay_s)
        for _ in range(20):
            await batcher.score(pictures(1), ["x"], flags(False), 1, name)
            await asyncio.sleep(step_s)

    async def scenario() -> dict[int, int]:
        batcher = MicroBatcher(reward)
        await asyncio.gather(
            worker(batcher, "a", 0.0, steps_s[0]), worker(batcher, "b", steps_s[1] / 2, steps_s[1])
        )
        return dict(batcher.stats()["scenes_per_call"])

    scenes_per_call = asyncio.run(scenario())
    assert scenes_per_call[2] > scenes_per_call[1]


def test_a_caller_alone_never_waits_for_one_that_left() -> None:
    reward = Redness()

    async def scenario() -> float:
        batcher = MicroBatcher(reward)
        loop = asyncio.get_running_loop()
        for _ in range(4):
            await asyncio.gather(
                *(batcher.score(pictures(1), ["x"], flags(False), 1, name) for name in ("stays", "leaves"))
            )
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.05)
        started = loop.time()
        await batcher.score(pictures(1), ["x"], flags(False), 1, "stays")
        return loop.time() - started

    # The quickest of some tries, as a busy machine may keep any one of them waiting.
    assert min(asyncio.run(scenario()) for _ in range(5)) < 0.01 + 0.02


def test_a_request_past_its_deadline_is_not_computed() -> None:
    reward = Redness()

    async def scenario() -> None:
        batcher = MicroBatcher(reward)
        reward.gate.clear()
        first = asyncio.create_task(batcher.score(pictures(1), ["x"], flags(False), 1, "a"))
        await asyncio.sleep(0.01)
        late = asyncio.create_task(batcher.score(pictures(2), ["x"] * 2, flags(False, False), 1, "b", 0.02))
        patient = asyncio.create_task(
            batcher.score(pictures(3), ["x"] * 3, flags(*[False] * 3), 1, "c", 60.0)
        )
        await asyncio.sleep(0.03)
        reward.gate.set()
        await asyncio.gather(first, patient)
        with pytest.raises(DeadlinePassed, match="longer than its deadline allows"):
            await late
        assert batcher.stats()["dropped"] == 1
        await batcher.score(pictures(1), ["x"], flags(False), 1, "b")

    asyncio.run(scenario())
    assert reward.rows_per_call == [1, 3, 1]


def test_a_request_whose_caller_gave_up_is_not_computed_and_leaves_its_place() -> None:
    reward = Redness()

    async def scenario() -> None:
        batcher = MicroBatcher(reward, max_waiting=1)
        reward.gate.clear()
        first = asyncio.create_task(batcher.score(pictures(1), ["x"], flags(False), 1, "a"))
        await asyncio.sleep(0.01)
        given_up = asyncio.create_task(batcher.score(pictures(2), ["x"] * 2, flags(False, False), 1, "b"))
        await asyncio.sleep(0.01)
        given_up.cancel()
        await asyncio.sleep(0.01)
        other = asyncio.create_task(batcher.score(pictures(3), ["x"] * 3, flags(*[False] * 3), 1, "c"))
        await asyncio.sleep(0.01)
        reward.gate.set()
        await asyncio.gather(first, other)

    asyncio.run(scenario())
    assert reward.rows_per_call == [1, 3]


def answered(images: np.ndarray, **options: object) -> tuple[np.ndarray, np.ndarray]:
    """One request's answer, gradient included."""

    async def scenario() -> tuple[np.ndarray, np.ndarray | None]:
        batcher = MicroBatcher(Redness(), **options)
        rows = len(images)
        return await batcher.score(images, ["abc"] * rows, np.ones(rows, dtype=bool), 1, "w")

    values, gradient = asyncio.run(scenario())
    assert gradient is not None
    return values, gradient


def test_float64_is_answered_in_float64() -> None:
    images = np.random.default_rng(0).random((3, 2, 3, 4, 4))
    values, gradient = answered(images)
    here, slope = Redness().score_batch(
        torch.from_numpy(images), ["abc"] * 3, torch.ones(3, dtype=torch.bool)
    )
    assert values.dtype == gradient.dtype == np.float64
    np.testing.assert_allclose(values, here.numpy(), rtol=0, atol=1e-15)
    np.testing.assert_allclose(gradient, slope.numpy(), rtol=0, atol=1e-15)


def test_half_precision_images_get_gradients_that_half_precision_could_not_hold() -> None:
    images = pictures(1, px=256).astype(np.float16)
    images[..., 0, 0] = 1e-3
    values, gradient = answered(images)
    assert values.dtype == gradient.dtype == np.float32
    smallest = np.abs(gradient[0, :, 0, 0, 0])
    np.testing.assert_allclose(smallest, 3 * 2 * images[0, :, 0, 0, 0].astype(np.float32) / 256**2, rtol=1e-5)
    assert (np.abs(smallest.astype(np.float16) / smallest - 1) > 0.1).all()


def test_images_of_different_precision_are_not_mixed() -> None:
    reward = Redness()

    async def scenario() -> None:
        batcher = MicroBatcher(reward)
        await asyncio.gather(
            *(
                batcher.score(pictures(1).astype(kind), ["x"], flags(False), 1, f"{number}")
                for number, kind in enumerate((np.float32, np.float64, np.float32))
            )
        )

    asyncio.run(scenario())
    assert reward.rows_per_call == [2, 1]


class Projection(torch.nn.Module):
    """A random linear map of the pictures, which autocast computes in 16 bits."""

    card = CARD

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(48, 64), torch.nn.GELU(), torch.nn.Linear(64, 1))
        for number, parameter in enumerate(self.parameters()):
            torch.nn.init.normal_(parameter, 0, 0.2, torch.Generator().manual_seed(number))
        self.requires_grad_(False)

    def score_batch(self, images, prompts, wants_gradient):
        return score_and_gradient(
            lambda pictures, _: self.layers(pictures.flatten(2)).squeeze(-1), images, prompts, wants_gradient
        )


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_16_bits_are_for_the_network_only(precision: str) -> None:
    async def scenario(precision: str) -> tuple[np.ndarray, np.ndarray | None]:
        batcher = MicroBatcher(Projection(), precision=precision)
        return await batcher.score(pictures(2), ["x"] * 2, flags(True, True), 1, "w")

    values, gradient = asyncio.run(scenario(precision))
    exact_values, exact_gradient = asyncio.run(scenario("float32"))
    assert gradient is not None
    assert exact_gradient is not None
    assert values.dtype == gradient.dtype == np.float32
    assert (values != exact_values).any(), "it was computed in 16 bits"
    np.testing.assert_allclose(values, exact_values, atol=0.05)
    np.testing.assert_allclose(gradient, exact_gradient, atol=0.02 * np.abs(exact_gradient).max())


def test_every_call_is_told_to_the_one_who_watches() -> None:
    reward = Redness()
    seen: list[Call] = []

    async def scenario() -> None:
        batcher = MicroBatcher(reward, watch=seen.append)
        reward.gate.clear()
        first = asyncio.create_task(batcher.score(pictures(1), ["x"], flags(False), 1, "a"))
        await asyncio.sleep(0.01)
        more = [
            asyncio.create_task(batcher.score(pictures(2), ["x"] * 2, flags(False, False), 2, caller))
            for caller in ("b", "c")
        ]
        await asyncio.sleep(0.02)
        reward.gate.set()
        await asyncio.gather(first, *more)

    asyncio.run(scenario())
    assert [(call.rows, call.num_scenes, call.num_callers) for call in seen] == [(1, 1, 1), (4, 4, 2)]
    assert all(wait_s >= 0.015 for wait_s in seen[1].waits_s)
    assert all(
        wait_s <= latency_s
        for call in seen
        for wait_s, latency_s in zip(call.waits_s, call.latencies_s, strict=True)
    )
