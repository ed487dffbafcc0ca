"""The worker pool on Ray: actors that hold workers and rewards, and one that keeps as many alive as are wanted.

The Ray classes hold no logic: they build objects and call plain functions. A worker that dies is never restarted
by Ray (`max_restarts=0`): the scaler ends its leases at once and starts one with a new name, so that
a name in a job's `attempts` is one process.
"""

from __future__ import annotations

import functools
import logging
import math
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
    from service.jobs.store import JobStore
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
    "wanted_workers",
]

log = logging.getLogger(__name__)

NAMESPACE = "dreamserve"
"""Of all named actors."""
NAME_PREFIX = "worker-"
TEND_EVERY_S = 0.5
ENDED = "ended"
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
        rewards = remote_rewards(settings, name) if settings.reward_placement == "actor" else None
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
        return self._worker.state if self._life.is_alive() else ENDED

    def end_when_idle(self) -> None:
        self._worker.end_when_idle()

    def drain(self) -> None:
        self._worker.drain()
        self._life.join()


def remote_rewards(settings: Settings, caller: str) -> dict[str, RemoteReward]:
    """Find the shared reward actors of this cluster, and wait until they are ready.

    A published one that cannot load its weights is left out: jobs that name it fail, saying why, and no others.
    """
    from reward_models.actor import RemoteReward, ready_card
    from workers.weights import REWARD_NAMES

    found = {}
    for name in shared_rewards(settings):
        try:
            handle: Any = ray.get_actor(reward_actor_name(name), namespace=NAMESPACE)
            found[name] = RemoteReward(handle, ready_card(handle), caller)
        except (RayActorError, ValueError) as error:  # Ray's ValueError: there is no such actor
            if name in REWARD_NAMES:
                raise
            log.error("the shared reward '%s' did not start: %s", name, error)
    return found


def shared_rewards(settings: Settings) -> tuple[str, ...]:
    """Name the rewards that run in shared actors; raises ValueError where the settings name one that is not there."""
    from workers.survey import survey
    from workers.weights import REWARD_NAMES

    there = (*REWARD_NAMES, *survey(settings.weights_folder).rewards)
    if unknown := set(settings.shared_rewards or ()) - set(there):
        raise ValueError(
            f"DREAMSERVE_SHARED_REWARDS names {', '.join(sorted(unknown))}, but this server has only "
            f"{', '.join(there)}; `dreamserve weights list` says which files the others need"
        )
    return there if settings.shared_rewards is None else settings.shared_rewards


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

    def state(self) -> str | None:
        """`starting | idle | busy | draining`, `ENDED` after `end_when_idle`, None when it died."""
        ...

    def end_when_idle(self) -> None: ...
    def drain(self, timeout_s: float) -> bool: ...
    def kill(self) -> None: ...


class Pool:
    """Keep as many workers alive as `wanted` says; `tend` is to be called again and again.

    A worker that is too many ends by itself, and only when it has nothing to do.
    """

    def __init__(
        self,
        wanted: Callable[[], int],
        start: Callable[[str], WorkerHandle],
        lost: Callable[[str], object],
        living: Iterable[WorkerHandle] = (),
        *,
        idle_s: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`start` makes a worker of a given name, `lost` is told the name of one that died.

        `living` are workers that another pool has started, before it died itself. A spare worker may be without
        work for `idle_s`.
        """
        self._wanted = wanted
        self._idle_s = idle_s
        self._start = start
        self._lost = lost
        self._clock = clock
        self._workers = {handle.name: (handle, clock()) for handle in living}
        self._idle_since: dict[str, float] = {}
        self._leaving: set[str] = set()
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
        """Notice the dead, end their leases, start what is missing, send home who is spare."""
        for name, (handle, born) in list(self._workers.items()):
            self._look_at(name, handle, born)
        self._tell()
        wanted = self._wanted()
        self._send_home(wanted)
        while len(self._workers) - len(self._leaving) < wanted and self._clock() >= self._not_before:
            name = f"{NAME_PREFIX}{uuid.uuid4().hex[:8]}"
            self._workers[name] = (self._start(name), self._clock())

    def _look_at(self, name: str, handle: WorkerHandle, born: float) -> None:
        state, now = handle.state(), self._clock()
        if state == "idle":
            self._idle_since.setdefault(name, now)
        else:
            self._idle_since.pop(name, None)
        if state not in (None, ENDED):
            return
        del self._workers[name]
        if state == ENDED:
            log.info("worker %s has ended, as nothing is to be done", name)
            handle.kill()
        else:
            log.warning("worker %s died", name)
            self._untold.append(name)
            self._pause(now - born)
        self._leaving.discard(name)

    def _send_home(self, wanted: int) -> None:
        """Ask spare workers that have been idle for long to end, the longest idle first."""
        rested = [name for name, since in self._idle_since.items() if self._clock() - since >= self._idle_s]
        spare = len(self._workers) - len(self._leaving) - wanted
        able = [
            name for name in sorted(rested, key=self._idle_since.__getitem__) if name not in self._leaving
        ]
        for name in able[: max(0, spare)]:
            self._workers[name][0].end_when_idle()
            self._leaving.add(name)

    def drain(self, timeout_s: float) -> None:
        """End all workers: in good order those that manage within `timeout_s`, the others by force."""
        self._wanted = lambda: 0
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
        self._pool = Pool(
            functools.partial(wanted_workers, settings, store),
            functools.partial(_start_worker, settings),
            store.worker_lost,
            _living_workers(),
            idle_s=settings.worker_idle_s,
        )
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


def wanted_workers(settings: Settings, store: JobStore) -> int:
    """Count the workers that there should be: for all jobs that could run now, within the operator's bounds."""
    if settings.min_workers is None or settings.min_workers >= settings.workers:
        return settings.workers
    workers = math.ceil(store.wanted_slots() / settings.slots_per_worker)
    return max(settings.min_workers, min(workers, settings.workers))


class _RayWorker:
    """A `WorkerHandle` on a Ray actor."""

    def __init__(self, name: str, handle: Any) -> None:
        self.name = name
        self._handle = handle

    def state(self) -> str | None:
        try:
            found: str = ray.get(self._handle.ping.remote(), timeout=ANSWER_S)
        except RayActorError:
            return None
        except GetTimeoutError:
            log.debug("worker %s is slow to answer, or still starting", self.name)
            return "starting"
        return found

    def end_when_idle(self) -> None:
        self._handle.end_when_idle.remote()

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
        num_gpus=settings.worker_gpus,
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
        get_if_exists=True,  # of a start that was broken off
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
    if settings.reward_placement == "actor":
        for name in shared_rewards(settings):
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
