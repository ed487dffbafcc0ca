"""Two workers share one reward actor: their scenes meet in its calls, and they survive its death."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
import ray

from service.jobs.admission import admit
from service.jobs.store import JobStore
from service.settings import Settings
from workers.pool import NAMESPACE, reward_actor_name, start_pool
from workers.up import private_ray

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

REWARD = "embedded-multiview"


def wait_until(what: Callable[[], bool], timeout_s: float = 600.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < deadline, f"not so after {timeout_s} s"
        threading.Event().wait(0.05)


def test_scenes_of_two_workers_meet_in_one_call_and_outlive_the_actor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_worker_niceness", "0")
    settings = Settings(data_dir=tmp_path, workers=2, slots_per_worker=1, torch_threads=1)
    store = JobStore(settings.database_url)

    def submit(steps: int) -> str:
        body = {"prompt": "a red cube", "method": "dreamdpo", "steps": steps, "outputs": {"thumbnail": False}}
        document, _ = store.submit(admit(body, store.capabilities(), settings).spec)
        return str(document["id"])

    def jobs() -> list[dict[str, Any]]:
        return [store.get(job_id) for job_id in job_ids]

    def at_step(step: int) -> bool:
        return all(job["status"] == "running" and job["progress"]["step"] >= step for job in jobs())

    job_ids = [submit(80), submit(80)]
    with private_ray():
        scaler = start_pool(settings)
        reward: Any = ray.get_actor(reward_actor_name(REWARD), namespace=NAMESPACE)
        wait_until(lambda: at_step(2))
        before = ray.get(reward.stats.remote())
        wait_until(lambda: at_step(40))
        after = ray.get(reward.stats.remote())
        calls = {
            scenes: count - before["scenes_per_call"].get(scenes, 0)
            for scenes, count in after["scenes_per_call"].items()
        }
        shared = sum(count for scenes, count in calls.items() if scenes >= 2)
        assert shared > 0.5 * sum(calls.values()), calls
        assert {job["attempts"][0]["worker"] for job in jobs()} == set(ray.get(scaler.names.remote()))

        os.kill(after["pid"], signal.SIGKILL)
        wait_until(lambda: all(job["status"] == "succeeded" for job in jobs()))
        assert [len(job["attempts"]) for job in jobs()] == [1, 1], "the workers asked again"
        ray.get(scaler.drain.remote(20.0))
    store.close()
