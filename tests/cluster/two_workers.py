"""A program: two jobs on two workers that share a reward actor, which dies on the way. Prints what it saw as JSON.

A process of its own, since a private cluster sets the environment that Ray reads when it is imported.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from service.jobs.admission import admit
from service.jobs.store import JobStore
from service.settings import Settings
from tests import waiting
from workers.up import private_ray

REWARD = "embedded-multiview"
PATIENCE_S = 600.0


wait_until = functools.partial(waiting.wait_until, timeout_s=PATIENCE_S, every_s=0.05)


def run(data_dir: Path) -> dict[str, Any]:
    settings = Settings(data_dir=data_dir, workers=2, slots_per_worker=1, torch_threads=1)
    store = JobStore(settings.database_url)

    def submit() -> str:
        body = {"prompt": "a red cube", "method": "dreamdpo", "steps": 60, "outputs": {"thumbnail": False}}
        document, _ = store.submit(admit(body, store.capabilities(), settings).spec)
        return str(document["id"])

    job_ids = [submit(), submit()]

    def jobs() -> list[dict[str, Any]]:
        return [store.get(job_id) or {} for job_id in job_ids]

    def at_step(step: int) -> bool:
        return all(job["status"] == "running" and job["progress"]["step"] >= step for job in jobs())

    with private_ray():
        import ray

        from workers.pool import NAMESPACE, reward_actor_name, start_pool

        scaler = start_pool(settings)
        reward: Any = ray.get_actor(reward_actor_name(REWARD), namespace=NAMESPACE)
        wait_until(lambda: at_step(2))
        before = ray.get(reward.stats.remote())
        wait_until(lambda: at_step(30))
        after = ray.get(reward.stats.remote())
        os.kill(after["pid"], signal.SIGKILL)
        wait_until(lambda: all(job["status"] not in ("queued", "running") for job in jobs()))
        ray.get(scaler.drain.remote(20.0))
    calls = {
        scenes: count - before["scenes_per_call"].get(scenes, 0)
        for scenes, count in after["scenes_per_call"].items()
    }
    return {"calls": calls, "jobs": jobs()}


if __name__ == "__main__":
    print(json.dumps(run(Path(sys.argv[1]))))
