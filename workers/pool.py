"""The worker pool on Ray: actors that hold workers and rewards, and one that keeps as many alive as are wanted.

The Ray classes hold no logic: they build objects and call plain functions. A worker that dies is never restarted
by Ray (`max_restarts=0`): the scaler ends its leases at once and starts one with a new name, so that
a name in a job's `attempts` is one process.
"""

from __future__ import annotations

import functools
import logging
import os
import threading
import time
import uuid
from typing import TYPE_CHECKING, Any, Protocol

import ray
from ray.exceptions import GetTimeoutError, RayActorError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from reward_models.actor import RemoteReward
    from service.settings import Settings
    from workers.worker import Worker

__all__ = [
    "NAMESPACE",
    "Pool",
    "PoolScaler",
    "WorkerActor",
    "WorkerHandle",
    "build_worker",
    "reward_actor_name",
    "start_pool",
    "start_reward",
]

log = logging.getLogger(__name__)

NAMESPACE = "dreamserve"
"""Of all named actors."""
NAME_PREFIX = "worker-"
TEND_EVERY_S = 0.5
ANSWER_S = 5.0
"""How long a worker may take to answer a ping before it is merely noted as slow."""
SHORT_LIFE_S, PAUSE_MAX_S = 20.0, 60.0
"""A worker that died younger than this is replaced after a pause, which doubles each time."""
TROUBLED_PAUSE_S = 4.0
"""The pause after three of them in a row."""


# ---- a worker in its process


def build_worker(
    settings: Settings, name: str, remote_rewards: Mapping[str, RemoteReward] | None = None
) -> Worker:
    """Open the stores and make a worker; its networks are loaded when it begins to live."""
    from service.jobs.objects import open_object_store
    from service.jobs.store import JobStore
    from workers.networks import load_networks
    from workers.worker import Worker

    store = JobStore(settings.database_url, retention_s=settings.retention_days * 86_400)
    objects = open_object_store(settings.objects_url)
    return Worker(name, store, objects, functools.partial(load_networks, settings, remote_rewards), settings)


class WorkerActor:
    """One worker as a Ray actor: it lives in a thread of its own, beside which `ping` and `drain` are answered."""

    def __init__(self, settings: Settings, name: str) -> None:
        write_log(settings)
        rewards = remote_rewards(name) if settings.reward_placement == "actor" else None
        self._worker = build_worker(settings, name, rewards)
        self._life = threading.Thread(target=self._live, name="life", daemon=True)
        self._life.start()

    def _live(self) -> None:
        try:
            self._worker.run()
        except BaseException:
            log.exception("worker %s cannot go on", self._worker.name)
            os._exit(1)  # the scaler sees a dead actor, whatever was the matter

    def ping(self) -> str:
        return self._worker.state

    def drain(self) -> None:
        self._worker.drain()
        self._life.join()


def remote_rewards(caller: str) -> dict[str, RemoteReward]:
    """Find the shared reward actors of this cluster."""
    from reward_models.actor import RemoteReward, ready_card
    from workers.weights import REWARD_NAMES

    found = {}
    for name in REWARD_NAMES:
        handle: Any = ray.get_actor(reward_actor_name(name), namespace=NAMESPACE)
        found[name] = RemoteReward(handle, ready_card(handle), caller)
    return found


def reward_actor_name(reward: str) -> str:
    """Name the shared actor of a reward."""
    return f"reward-{reward}"


def write_log(settings: Settings) -> None:
    """Append this process's log to the data folder, where it outlives Ray's own."""
    folder = settings.data_dir / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(folder / "workers.log", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s"))
    for ours in ("service", "workers", "reward_models"):
        logging.getLogger(ours).addHandler(handler)
        logging.getLogger(ours).setLevel(logging.INFO)


# ---- as many workers as are wanted


class WorkerHandle(Protocol):
    """A worker as the pool sees it."""

    name: str

    def is_alive(self) -> bool: ...
    def drain(self, timeout_s: float) -> bool: ...
    def kill(self) -> None: ...


class Pool:
    """Keep `wanted` workers alive; `tend` is to be called again and again."""

    def __init__(
        self,
        wanted: int,
        start: Callable[[str], WorkerHandle],
        lost: Callable[[str], object],
        living: Iterable[WorkerHandle] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`start` makes a worker of a given name, `lost` is told the name of one that died.

        `living` are workers that another pool has started, before it died itself.
        """
        self._wanted = wanted
        self._start = start
        self._lost = lost
        self._clock = clock
        self._workers = {handle.name: (handle, clock()) for handle in living}
        self._untold: list[str] = []
        self._pause_s = 0.0
        self._not_before = clock()

    @property
    def names(self) -> tuple[str, ...]:
        """The workers that were alive when last looked at."""
        return tuple(self._workers)

    @property
    def is_troubled(self) -> bool:
        """Whether several workers in a row have died soon after they were born."""
        return self._pause_s >= TROUBLED_PAUSE_S

    def tend(self) -> None:
        """Notice the dead, end their leases, start what is missing."""
        for name, (handle, born) in list(self._workers.items()):
            if not handle.is_alive():
                log.warning("worker %s died", name)
                del self._workers[name]
                self._untold.append(name)
                self._pause(self._clock() - born)
        self._tell()
        while len(self._workers) < self._wanted and self._clock() >= self._not_before:
            name = f"{NAME_PREFIX}{uuid.uuid4().hex[:8]}"
            self._workers[name] = (self._start(name), self._clock())

    def drain(self, timeout_s: float) -> None:
        """End all workers: in good order those that manage within `timeout_s`, the others by force."""
        self._wanted = 0
        deadline = self._clock() + timeout_s
        threads = [
            threading.Thread(target=self._drain_one, args=(handle, deadline))
            for handle, _ in self._workers.values()
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self._workers.clear()
        self._tell()

    def _drain_one(self, handle: WorkerHandle, deadline: float) -> None:
        if not handle.drain(max(0.1, deadline - self._clock())):
            log.warning("worker %s did not drain in time", handle.name)
            self._untold.append(handle.name)
        handle.kill()

    def _pause(self, lived_s: float) -> None:
        if lived_s >= SHORT_LIFE_S:
            self._pause_s = 0.0
            return
        self._not_before = self._clock() + self._pause_s
        self._pause_s = min(max(1.0, 2 * self._pause_s), PAUSE_MAX_S)

    def _tell(self) -> None:
        for name in list(self._untold):
            try:
                self._lost(name)
            except Exception as error:
                log.warning("cannot end the leases of %s yet: %s", name, error)
            else:
                self._untold.remove(name)


class PoolScaler:
    """Tend the pool as a Ray actor, from a thread of its own."""

    def __init__(self, settings: Settings) -> None:
        from service.jobs.store import JobStore

        write_log(settings)
        store = JobStore(settings.database_url)
        start = functools.partial(_start_worker, settings)
        self._pool = Pool(settings.workers, start, store.worker_lost, _living_workers())
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tend", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._pool.tend()
            except Exception:
                log.exception("tending the pool failed; trying again")
            self._stopping.wait(TEND_EVERY_S)

    def names(self) -> tuple[str, ...]:
        return self._pool.names

    def is_troubled(self) -> bool:
        return self._pool.is_troubled

    def drain(self, timeout_s: float) -> None:
        self._stopping.set()
        self._thread.join()
        self._pool.drain(timeout_s)


class _RayWorker:
    """A `WorkerHandle` on a Ray actor."""

    def __init__(self, name: str, handle: Any) -> None:
        self.name = name
        self._handle = handle

    def is_alive(self) -> bool:
        try:
            ray.get(self._handle.ping.remote(), timeout=ANSWER_S)
        except RayActorError:
            return False
        except GetTimeoutError:
            log.debug("worker %s is slow to answer, or still starting", self.name)
        return True

    def drain(self, timeout_s: float) -> bool:
        try:
            ray.get(self._handle.drain.remote(), timeout=timeout_s)
        except (GetTimeoutError, RayActorError):
            return False
        return True

    def kill(self) -> None:
        ray.kill(self._handle)


def _start_worker(settings: Settings, name: str) -> _RayWorker:
    # Detached: workers outlive a scaler that dies, and the next one takes them over.
    actor = ray.remote(WorkerActor).options(
        name=name,
        namespace=NAMESPACE,
        lifetime="detached",
        num_cpus=0.1,
        max_restarts=0,
        max_task_retries=0,
        max_concurrency=2,
    )
    return _RayWorker(name, actor.remote(settings, name))


def _living_workers() -> list[_RayWorker]:
    """Find the workers of this cluster, whoever has started them."""
    named: list[Any] = ray.util.list_named_actors(all_namespaces=True)
    names = [one["name"] for one in named if one["namespace"] == NAMESPACE]
    return [
        _RayWorker(name, ray.get_actor(name, namespace=NAMESPACE))
        for name in names
        if name.startswith(NAME_PREFIX)
    ]


def start_reward(settings: Settings, name: str) -> Any:
    """Start the shared actor of a reward on the connected cluster, which restarts it for ever; its handle."""
    from reward_models.actor import RewardActor, RewardOptions
    from workers.weights import load_reward

    options = RewardOptions(gpu_share=settings.reward_gpu_share, precision=settings.reward_precision)
    actor = ray.remote(RewardActor).options(
        name=reward_actor_name(name),
        namespace=NAMESPACE,
        lifetime="detached",
        num_cpus=0.1,
        num_gpus=settings.reward_gpu_share,
        max_restarts=-1,
        max_task_retries=0,
        max_concurrency=1_000,
    )
    return actor.remote(functools.partial(load_reward, name, settings.weights_folder), options)


def start_pool(settings: Settings) -> Any:
    """Start the shared rewards and the scaler on the connected cluster; the scaler's handle."""
    from workers.weights import REWARD_NAMES

    if settings.reward_placement == "actor":
        for name in REWARD_NAMES:
            start_reward(settings, name)
    scaler = ray.remote(PoolScaler).options(
        name="pool-scaler",
        namespace=NAMESPACE,
        lifetime="detached",
        num_cpus=0.1,
        max_restarts=-1,
        max_concurrency=2,
    )
    return scaler.remote(settings)
