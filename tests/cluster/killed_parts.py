"""A program: parts of a running service are killed one after another, while jobs run: Serve's, then the pool's scaler.

Prints what it saw as JSON. A process of its own, like `autoscaling.py`; its workers are as small as those there, with a
brake, so that a job lasts while a part is away on any machine.
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

import httpx
import sqlalchemy as sa

from service.client import Client
from service.jobs import tables
from service.jobs.objects import open_object_store
from service.jobs.store import JobStore
from service.settings import Settings
from tests.cluster.autoscaling import (
    PATIENCE_S,
    PoolScaler,
    WorkerActor,
    step_of,
    wait_until,
)  # first: sets Ray's env
from tests.cluster.conftest import descendants
from workers.fields.voxel import VoxelField
from workers.up import free_port, private_ray, start_frontend, wait_until_ready

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from service.client_core import Call
    from workers.networks import Networks
    from workers.worker import Worker

SERVE = {"replica": "ServeReplica", "proxy": "ProxyActor", "controller": "ServeController"}
SCALER, WORKER = "BrakedScaler", "BrakedWorker"
BRAKE_S = 0.1
SHORT, LONG = 60, 200
"""Steps of a job beside one of Serve's restarts, and beside the leader lease of a scaler: 20 s at the least."""


class BrakedField(VoxelField):
    def prepare(self, step: int, steps_total: int) -> bool:
        time.sleep(BRAKE_S)
        return super().prepare(step, steps_total)


def braked_networks() -> Networks:
    from tests.unit.workers.small_workers import small_networks, with_referee

    return with_referee(small_networks(lambda device: BrakedField(coarse=6, fine=8, device=device)))


def braked_worker(settings: Settings, name: str, _rewards: object = None) -> Worker:
    from workers.worker import Worker

    store, objects = JobStore(settings.database_url), open_object_store(settings.objects_url)
    return Worker(name, store, objects, braked_networks, settings)


class BrakedWorker(WorkerActor):
    build = staticmethod(braked_worker)


class BrakedScaler(PoolScaler):
    worker = BrakedWorker


def processes(kind: str) -> set[int]:
    """The processes of this cluster's actors of a class."""
    lines = descendants(os.getpid()).items()
    return {pid for pid, line in lines if line.startswith("ray::") and kind in line}


class Follower(Client):
    """A client that follows one job in a thread, and knows nothing of what happens to the service."""

    def __init__(self, url: str, job_id: str) -> None:
        super().__init__(url)
        self.ids: list[int] = []
        self.error: str | None = None
        self.streams = 0
        self._job_id = job_id
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stream(self, call: Call) -> AbstractContextManager[httpx.Response]:
        self.streams += 1
        return super().stream(call)

    def _run(self) -> None:
        try:
            for event in self.job(self._job_id).events(timeout_s=PATIENCE_S):
                self.ids.append(event.id)
        except Exception as error:
            self.error = repr(error)

    def told(self) -> dict[str, Any]:
        """What it has seen by the end."""
        self._thread.join()
        self.close()
        return {"events": self.ids, "error": self.error, "streams": self.streams}


class Service:
    """A service on a Ray cluster of its own, and its clients."""

    def __init__(self, settings: Settings, port: int) -> None:
        self.store = JobStore(settings.database_url)
        self.url = f"http://127.0.0.1:{port}"
        self.most_workers = 0

    def submit(self, steps: int) -> str:
        with Client(self.url) as client:
            return client.generate(
                "red",
                method="sds",
                steps=steps,
                outputs={"thumbnail": False},
                mesh={"target_faces": 500, "texture_px": 64},
            ).id

    def job(self, job_id: str) -> dict[str, Any]:
        return self.store.get(job_id) or {}

    def leader(self) -> str | None:
        """Who holds the scaler's lease; nobody once it has run out."""
        leaders = tables.leaders
        with self.store.database.reading() as tx:
            held = sa.select(leaders.c.holder).where(leaders.c.lease_until > tx.now)
            return tx.execute(held).scalar_one_or_none()

    def kill(self, kind: str, steps: int, is_back: Callable[[], bool] = lambda: True) -> dict[str, Any]:
        """Kill the actor of a class under a running job; what became of the job, and when `is_back` held again."""
        job_id = self.submit(steps)
        follower = Follower(self.url, job_id)
        wait_until(lambda: step_of(self.job(job_id)) >= 5 and bool(follower.ids))
        (pid,) = processes(kind)
        before = step_of(self.job(job_id))
        os.kill(pid, signal.SIGKILL)
        killed_at = time.monotonic()

        def restarted() -> bool:
            return self.answers() and bool(processes(kind) - {pid}) and is_back()

        wait_until(restarted)
        away_s = time.monotonic() - killed_at
        steps_meanwhile = step_of(self.job(job_id)) - before
        wait_until(lambda: self.has_ended(job_id))
        return {
            "status": self.job(job_id)["status"],
            "attempts": self.job(job_id)["attempts"],
            "steps_meanwhile": steps_meanwhile,
            "away_s": away_s,
            "events": [one["id"] for one in self.store.events(job_id)],
            "follower": follower.told(),
        }

    def has_ended(self, job_id: str) -> bool:
        """Whether a job has ended; counts the workers meanwhile."""
        self.most_workers = max(self.most_workers, len(processes(WORKER)))
        return self.job(job_id)["status"] not in ("queued", "running")

    def answers(self) -> bool:
        """Whether the frontend answers, perhaps after a while."""
        try:
            return httpx.get(f"{self.url}/healthz", timeout=PATIENCE_S).status_code == 200
        except httpx.TransportError:
            return False


def run(folder: Path) -> dict[str, Any]:
    """Kill everything once."""
    given = {"slots_per_worker": 1, "reward_placement": "local", "report_interval_s": 0.2, "torch_threads": 1}
    settings = Settings(data_dir=folder, workers=1, auth="off", **given)
    port = free_port("127.0.0.1", 0)
    with private_ray():
        import ray

        from workers.pool import start_pool

        start_frontend(settings, "127.0.0.1", port)
        scaler = start_pool(settings, BrakedScaler)
        service = Service(settings, port)
        assert wait_until_ready(service.url, threading.Event()) is None
        killed = {name: service.kill(kind, SHORT) for name, kind in SERVE.items()}
        leader, workers = service.leader(), ray.get(scaler.names.remote())
        killed["scaler"] = service.kill(SCALER, LONG, lambda: service.leader() not in (None, leader))
        adopted = ray.get(scaler.names.remote())
        ray.get(scaler.drain.remote(10.0))
    return {"killed": killed, "workers": [workers, adopted], "most_workers": service.most_workers}


if __name__ == "__main__":
    print(json.dumps(run(Path(sys.argv[1]))))
