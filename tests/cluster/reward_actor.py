"""A program: a reward actor on Ray that answers, drops what nobody waits for, and dies under a job. Prints JSON.

A process of its own, since a private cluster sets the environment that Ray reads when it is imported.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from reward_models.actor import RemoteReward, RewardActor, RewardOptions, RewardUnavailable, ready_card
from reward_models.contracts import NotFinite, RewardModel, score_and_gradient
from reward_models.shared_buffer import SharedBuffer
from service.jobs.admission import admit
from service.jobs.objects import open_object_store
from service.jobs.store import JobStore
from service.settings import Settings
from workers.networks import load_networks
from workers.up import private_ray
from workers.weights import load_reward
from workers.worker import Worker

if TYPE_CHECKING:
    from torch import Tensor

REWARD, REFEREE = "embedded-multiview", "embedded-alignment"
STEPS, KILLED_AT = 56, 4
PATIENCE_S = 600.0


class Float64(torch.nn.Module):
    """A reward that computes in float64 whatever it is asked in."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.card = model.double(), model.card

    def score_batch(self, images: Tensor, prompts: list[str], wants: Tensor) -> tuple[Tensor, Tensor]:
        return score_and_gradient(
            lambda one, texts: self.model.score(one.double(), texts), images, prompts, wants
        )


class Slow(Float64):
    """The same, and it takes a second."""

    def score_batch(self, images: Tensor, prompts: list[str], wants: Tensor) -> tuple[Tensor, Tensor]:
        time.sleep(1.0)
        return super().score_batch(images, prompts, wants)


def gradients_differ_by() -> dict[str, Any]:
    """Ask one reward here and in an actor, in float64, by each way for the pictures; the largest differences."""
    import ray

    def load() -> RewardModel:
        return Float64(load_reward(REWARD))

    handle: Any = ray.remote(RewardActor).options(num_cpus=0.1).remote(load, RewardOptions())
    card = ready_card(handle)
    lends, sends, stranger = (
        RemoteReward(handle, card, "program", shares=shares) for shares in (True, False, True)
    )
    foreign = SharedBuffer()
    foreign._name = "of-another-machine"  # as if this process were there
    stranger._buffers.append(foreign)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(3, 4, 3, 32, 32, generator=generator, dtype=torch.float64)
    prompts, wants = ["a red cube", "a green egg", "a chair"], torch.tensor([True, False, True])
    here = load().score_batch(images, prompts, wants)
    seen: dict[str, Any] = {"largest_gradient": float(here[1].abs().max())}
    for name, remote in (("lends", lends), ("sends", sends), ("stranger", stranger)):
        there = remote.score_batch(images, prompts, wants)
        assert there[1].dtype == torch.float64
        seen[name] = {
            "values": float((here[0] - there[0]).abs().max()),
            "gradient": float((here[1] - there[1]).abs().max()),
            "shares": remote._shares,
        }
    try:
        lends.score_batch(images * torch.nan, prompts, wants)
    except NotFinite as error:
        seen["refusal"] = str(error)
    ray.kill(handle)
    began = time.monotonic()
    try:
        lends.score_batch(images, prompts, wants)
    except RewardUnavailable as error:
        seen["given_up"], seen["given_up_s"] = str(error), time.monotonic() - began
    return seen


def canceled_and_late() -> dict[str, Any]:
    """Give one request up and let another's deadline pass while a third is computed; the actor's counts.

    And the buffers of a caller who gave up: its answer may still be written there.
    """
    import ray
    from ray.exceptions import GetTimeoutError

    actor = ray.remote(RewardActor).options(num_cpus=0.1, max_concurrency=10)
    handle: Any = actor.remote(lambda: Slow(load_reward(REWARD)), RewardOptions())
    images = torch.rand(1, 4, 3, 32, 32).numpy()
    message = (images, ["a red cube"], torch.tensor([False]).numpy(), 1)
    ready_card(handle)
    first = handle.score.remote(*message, "a", 60.0)
    threading.Event().wait(0.3)
    given_up, late = handle.score.remote(*message, "b", 60.0), handle.score.remote(*message, "c", 0.1)
    threading.Event().wait(0.1)
    ray.cancel(given_up)
    ray.get(first)
    try:
        ray.get(late)
        told = "answered"
    except TimeoutError as error:
        told = str(error)
    stats: dict[str, Any] = ray.get(handle.stats.remote())
    hasty = RemoteReward(handle, ready_card(handle), "d", timeout_s=0.1)
    try:
        hasty._try(torch.from_numpy(images), *message[1:])
    except GetTimeoutError:
        buffers = len(hasty._buffers)
    ray.kill(handle)
    return {"late": told, "calls": stats["calls"], "dropped": stats["dropped"], "buffers": buffers}


class Recorded(RemoteReward):
    """A remote reward that keeps what it answered, and kills its actor before one call."""

    def __init__(self, handle: Any, card: Any, killed_at: int | None) -> None:
        super().__init__(handle, card, "worker")
        self.handle, self.killed_at = handle, killed_at
        self.scores: list[list[float]] = []

    def score_batch(
        self, images: Tensor, prompts: list[str], wants_gradient: Tensor, num_scenes: int = 1
    ) -> tuple[Tensor, Tensor]:
        import ray

        if len(self.scores) == self.killed_at:
            self.killed_at = None
            os.kill(ray.get(self.handle.stats.remote())["pid"], signal.SIGKILL)
        answer = super().score_batch(images, prompts, wants_gradient, num_scenes)
        self.scores.append(answer[0].flatten().tolist())
        return answer


def run_job(settings: Settings, rewards: dict[str, RemoteReward]) -> dict[str, Any]:
    """Let a worker do one job with these rewards; the job's document."""
    store, objects = JobStore(settings.database_url), open_object_store(settings.objects_url)
    worker = Worker("w", store, objects, lambda: load_networks(settings, rewards), settings)
    thread = threading.Thread(target=worker.run)
    thread.start()
    deadline = time.monotonic() + PATIENCE_S
    while worker.state == "starting" and time.monotonic() < deadline:
        threading.Event().wait(0.05)
    body = {"prompt": "a red cube", "method": "dreamdpo", "steps": STEPS, "seed": 5}
    body["outputs"] = {"thumbnail": False, "report": False}
    body["mesh"] = {"target_faces": 500, "texture_px": 64}
    document, _ = store.submit(admit(body, store.capabilities(), settings).spec)
    while (job := store.get(document["id"]) or {})["status"] in ("queued", "running"):
        assert time.monotonic() < deadline, job
        threading.Event().wait(0.1)
    worker.drain()
    thread.join()
    return job


def run(folder: Path) -> dict[str, Any]:
    """Do everything on one private cluster."""
    with private_ray():
        import ray

        from workers.pool import start_reward

        seen: dict[str, Any] = {"float64": gradients_differ_by(), "dropped": canceled_and_late()}
        handle, other = (start_reward(Settings(data_dir=folder), name) for name in (REWARD, REFEREE))
        card = ready_card(handle)
        referee = RemoteReward(other, ready_card(other), "worker")
        for name, killed_at in (("calm", None), ("killed", KILLED_AT)):
            # No checkpoint is due, so that the worker asks the reward for its steps only, and once at the end.
            settings = Settings(data_dir=folder / name, torch_threads=1, checkpoint_interval_s=3_600)
            reward = Recorded(handle, card, killed_at)
            before = ray.get(handle.stats.remote())["pid"]
            job = run_job(settings, {REWARD: reward, REFEREE: referee})
            ready_card(handle)
            moved = ray.get(handle.stats.remote())["pid"] != before
            seen[name] = {"job": job, "scores": reward.scores, "restarted": moved}
    return seen


if __name__ == "__main__":
    print(json.dumps(run(Path(sys.argv[1]))))
