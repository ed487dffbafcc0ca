"""What a shared reward costs beside its network, and what batching over callers gains.

Run `python -m tests.bench.reward_actor`; it starts a private Ray for half a minute. Measurements are taken in turns:
`reward_round_trip_ms`: a float32 batch of 4 × 256 × 256 × 3 to an actor, its scores and their gradient back, p50;
`reward_round_trip_over_model_ms`: the same above the p50 of the network alone, in this process; aim ≤ 10;
`reward_round_trip_over_echo`: the same ÷ that of a plain actor which sends the batch back, Ray's own share; aim ≤ 1.15;
`reward_round_trip_score_…`: those three for scores without a gradient;
`reward_round_trip_sent_…`: those three, with the gradient, for an actor on another machine, to which pictures are sent;
`reward_calls_per_s_N`: scores by the shipped reward for N callers who ask as fast as they get answers;
`reward_batched_over_unbatched_N`: the same ÷ that of an actor which takes one request at a time; aim ≥ 1.5 at 8.
"""

from __future__ import annotations

import json
import statistics
import threading
import time
from typing import TYPE_CHECKING, Any

import torch

from reward_models.actor import RemoteReward, RewardActor, RewardOptions, ready_card
from reward_models.contracts import RewardCard, score_and_gradient
from tests.bench.engine import medians
from workers.up import private_ray
from workers.weights import load_reward

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from reward_models.contracts import RewardModel

__all__ = ["measure"]

ROUND_TRIPS, ROUNDS, ROUND_S = 60, 3, 1.5
CALLERS = (1, 4, 8)
REWARD = "embedded-multiview"
PX = 32


class Mean(torch.nn.Module):
    """The mean of an object's pictures: a reward that costs next to nothing."""

    card = RewardCard(
        name="mean",
        value_range=(0.0, 1.0),
        scale="brightness",
        views=4,
        uses_prompt=False,
        differentiable=True,
        license="Apache-2.0",
        weights_sha256=None,
    )

    def score_batch(self, images: Tensor, prompts: list[str], wants: Tensor) -> tuple[Tensor, Tensor]:
        """Score images (G, 4, 3, H, W)."""
        return score_and_gradient(lambda one, _: one.mean((1, 2, 3, 4))[:, None], images, prompts, wants)


class Echo:
    """A plain actor, which sends back what it gets."""

    def echo(self, images: Any) -> Any:
        """Answer at once."""
        return images


def start(load: Callable[[], RewardModel], max_rows: int = 64) -> RemoteReward:
    import ray

    actor = ray.remote(RewardActor).options(num_cpus=0.1, max_concurrency=100)
    handle: Any = actor.remote(load, RewardOptions(max_rows=max_rows))
    return RemoteReward(handle, ready_card(handle), "bench")


def round_trip() -> dict[str, float]:
    """Ask a network that costs nothing, here and in an actor, and a plain actor, in turns."""
    import ray

    network, lent = Mean(), start(Mean)
    sent = RemoteReward(lent._handle, lent.card, "bench", shares=False)
    plain: Any = ray.remote(Echo).options(num_cpus=0.1).remote()
    images = torch.rand(1, 4, 3, 256, 256)

    def asks(model: RewardModel, *, gradient: bool) -> Callable[[], None]:
        wants = torch.tensor([gradient])
        return lambda: model.score_batch(images, ["a red cube"], wants) and None

    def echo() -> None:
        torch.from_numpy(ray.get(plain.echo.remote(images.numpy())).copy())

    ways = {"": (lent, network, True), "score_": (lent, network, False), "sent_": (sent, network, True)}
    bodies = [asks(model, gradient=wanted) for *pair, wanted in ways.values() for model in pair]
    for body in (*bodies, echo):
        body()
    *times, echo_s = medians(*bodies, echo, num_rounds=ROUND_TRIPS)
    found = {}
    for way, there_s, here_s in zip(ways, times[::2], times[1::2], strict=True):
        found |= {
            f"reward_round_trip_{way}ms": 1000 * there_s,
            f"reward_round_trip_{way}over_model_ms": 1000 * (there_s - here_s),
            f"reward_round_trip_{way}over_echo": there_s / echo_s,
        }
    return found


def calls_per_s(remote: RemoteReward, num_callers: int) -> float:
    """Let as many workers ask as fast as they get answers."""
    images, wants = torch.rand(1, 4, 3, PX, PX), torch.tensor([False])
    deadline = time.perf_counter() + ROUND_S
    counts = [0] * num_callers

    def ask(number: int) -> None:
        # A caller of its own: the batcher knows their rhythms by name.
        caller = RemoteReward(remote._handle, remote.card, f"bench-{number}")
        while time.perf_counter() < deadline:
            caller.score_batch(images, ["a red cube"], wants)
            counts[number] += 1

    started = time.perf_counter()
    threads = [threading.Thread(target=ask, args=[number]) for number in range(num_callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - started)


def throughput(load: Callable[[], RewardModel], callers: tuple[int, ...]) -> dict[int, tuple[float, float]]:
    """Calls per second, batched and one by one, by the number of callers; medians of turns."""
    batched, single = start(load), start(load, max_rows=1)
    found: dict[int, tuple[float, float]] = {}
    for count in callers:
        turns = [(calls_per_s(batched, count), calls_per_s(single, count)) for _ in range(ROUNDS)]
        first, second = (statistics.median(each) for each in zip(*turns, strict=True))
        found[count] = (first, second)
    return found


def measure() -> dict[str, float]:
    """Measure on a private Ray, whose actors have one thread each."""
    torch.set_num_threads(1)
    with private_ray():
        result = round_trip()
        for count, (batched, single) in throughput(lambda: load_reward(REWARD), CALLERS).items():
            result[f"reward_calls_per_s_{count}"] = batched
            result[f"reward_batched_over_unbatched_{count}"] = batched / single
    return result


if __name__ == "__main__":
    print(json.dumps({name: round(value, 3) for name, value in measure().items()}, indent=2))
