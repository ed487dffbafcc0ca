"""The worker pool on Ray: actors that hold workers and rewards, and one that keeps as many alive as are wanted.

The Ray classes hold no logic: they build objects and call plain functions. A worker that dies is never restarted
by Ray (`max_restarts=0`): the scaler ends its leases at once and starts one with a new name, so that
a name in a job's `attempts` is one process.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import socket
import threading
import time
import uuid
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayActorError

from service.jobs.errors import StoreUnavailable
from workers.keeping import ENDED, NAME_PREFIX, LedPool, Pool, wanted_workers
from workers.starting import note_trouble, trouble_noted

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from reward_models.actor import RemoteReward
    from service.settings import Settings
    from workers.worker import Worker

__all__ = [
    "NAMESPACE",
    "SCALER_NAME",
    "PoolScaler",
    "WorkerActor",
    "build_worker",
    "end_pool",
    "reward_actor_name",
    "start_pool",
    "start_reward",
]

log = logging.getLogger(__name__)

NAMESPACE = "dreamserve"
"""Of all named actors."""
SCALER_NAME = "pool-scaler"
TEND_EVERY_S = 0.5
LOOK_AT_NODE_EVERY_S = 1.0
WAIT_S, TELL_EVERY_S = 60.0, 60.0
"""How long a worker may take to begin to run before that is told, and how often it is told then."""
FAREWELL_S = 5.0
"""What a worker that has left its jobs gives the scaler to see that it ended in good order."""


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

    build = staticmethod(build_worker)

    def __init__(self, settings: Settings, name: str) -> None:
        from service.jobs.store import JobStore
        from workers.watchdog import Watchdog, give_up

        write_log(settings)
        store = JobStore(settings.database_url)
        with trouble_noted(store):
            rewards = remote_rewards(settings, name) if settings.reward_placement == "actor" else None
            self._worker = self.build(settings, name, rewards)
        Watchdog(lambda: self._worker.attempts, functools.partial(give_up, store)).start()
        self._life = threading.Thread(target=self._live, name="life", daemon=True)
        self._life.start()
        threading.Thread(target=self._leave_with_node, name="node", daemon=True).start()

    def _live(self) -> None:
        try:
            self._worker.run()
        except BaseException:
            log.exception("worker %s cannot go on", self._worker.name)
            os._exit(1)  # the scaler sees a dead actor, whatever was the matter

    def _leave_with_node(self) -> None:
        """Drain when the node is to go: reclaimed by its cloud, idle for the autoscaler, or told to by an operator."""
        here = ray.get_runtime_context().get_node_id()
        while here not in draining_nodes():
            if not self._life.is_alive():
                return
            time.sleep(LOOK_AT_NODE_EVERY_S)
        log.warning("worker %s leaves with its node, which is being drained", self._worker.name)
        self._worker.drain()
        self._life.join()
        time.sleep(FAREWELL_S)  # until the scaler has noticed
        os._exit(0)

    def ping(self) -> str:
        return self._worker.state if self._life.is_alive() else ENDED

    def end_when_idle(self) -> None:
        self._worker.end_when_idle()

    def drain(self) -> None:
        self._worker.drain()
        self._life.join()


def draining_nodes() -> Collection[str]:
    """List the nodes that Ray will end soon; none while the cluster's head does not answer."""
    try:
        # No public function tells this; Ray's own libraries ask here too.
        found: Collection[str] = ray._private.state.state.get_draining_nodes()
    except Exception as error:
        log.debug("cannot ask which nodes are being drained: %s", error)
        return ()
    return found


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


class PoolScaler:
    """Tend the pool as a Ray actor, from a thread of its own, while it holds the leader lease in the database.

    An upgrade runs two clusters for a while, and Ray may start a second scaler before the first has ended.
    """

    worker = WorkerActor

    def __init__(self, settings: Settings) -> None:
        from service.jobs.leadership import Leadership
        from service.jobs.store import JobStore

        write_log(settings)
        store = JobStore(settings.database_url)
        me = f"{socket.gethostname()[:100]}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        leadership = Leadership(store.database, SCALER_NAME, me)
        pool = Pool(
            functools.partial(wanted_workers, settings, store),
            functools.partial(_start_worker, self.worker, settings),
            store.worker_lost,
            idle_s=settings.worker_idle_s,
            at_most=settings.workers,
            may_act=lambda: leadership.is_held,
        )
        self._led = LedPool(pool, leadership, _living_workers)
        self._settings, self._store = settings, store
        self._told_at = float("-inf")
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tend", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._led.tend()
                self._tell_who_waits()
            except StoreUnavailable as error:
                log.warning("cannot tend the pool: %s", error)
            except Exception:
                log.exception("tending the pool failed; trying again")
            self._stopping.wait(TEND_EVERY_S)

    def _tell_who_waits(self) -> None:
        """Note for /readyz that Ray has no place for a worker: no GPU, say, or no node with this Ray."""
        waited_s, now = self._led.pool.waiting_s, time.monotonic()
        if waited_s < WAIT_S or now - self._told_at < TELL_EVERY_S:
            return
        self._told_at = now
        has: Any = ray.cluster_resources()  # type: ignore[no-untyped-call]
        told = lacking_place(self._settings.worker_gpus, has, waited_s)
        log.warning("%s", told)
        note_trouble(self._store, "pool", told)

    def names(self) -> tuple[str, ...]:
        return self._led.pool.names

    def is_troubled(self) -> bool:
        return self._led.pool.is_troubled

    def drain(self, timeout_s: float) -> None:
        self._stopping.set()
        self._thread.join()
        self._led.drain(timeout_s)


def lacking_place(gpus: float, has: Mapping[str, float], waited_s: float) -> str:
    """Say what a worker that wants so many GPUs waits for, on a cluster that has these resources."""
    wish = f"{gpus:g} GPU(s) and a little CPU" if gpus else "a little CPU"
    return (
        f"for {waited_s:.0f} s a worker has not begun to run: it wants {wish}, and the nodes of the Ray cluster have "
        f"{has.get('GPU', 0.0):g} GPU(s) and {has.get('CPU', 0.0):g} CPU(s), free or not. Add a node that has this "
        f"(its image needs the same Ray, {ray.__version__}, and the same Python, else it cannot join), or lower "
        "DREAMSERVE_WORKER_GPUS. If there is one: does it still fetch the image, or load shared rewards?"
    )


class _RayWorker:
    """A `WorkerHandle` on a Ray actor."""

    def __init__(self, name: str, handle: Any) -> None:
        self.name = name
        self._handle = handle
        self._said = "starting"
        self._asked: Any = None
        self._answered_at: float | None = None

    @property
    def has_answered(self) -> bool:
        """Whether it ever has."""
        return self._answered_at is not None

    @property
    def silent_s(self) -> float:
        """Seconds since its last answer; 0 before the first, as it may have no node yet."""
        return 0.0 if self._answered_at is None else time.monotonic() - self._answered_at

    def state(self) -> str | None:
        """Read the answer to the last question and ask the next, without waiting.

        A worker may have no node yet, or be frozen, and others must not wait for that.
        """
        answered = self._asked is not None and ray.wait([self._asked], timeout=0)[0]
        try:
            if answered:
                self._said, self._answered_at = ray.get(self._asked), time.monotonic()
            if answered or self._asked is None:
                self._asked = self._handle.ping.remote()
        except ActorUnavailableError:  # out of reach for now: its leases run out if it does not come back
            self._asked = None
        except RayActorError:
            return None
        return self._said

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


def _start_worker(kind: type[WorkerActor], settings: Settings, name: str) -> _RayWorker:
    # Detached: workers outlive a scaler that dies, and the next one takes them over.
    actor = ray.remote(kind).options(
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


def end_pool(settings: Settings) -> None:
    """End scaler and shared rewards on the connected cluster; workers are to be drained before."""
    names = [SCALER_NAME]
    if settings.reward_placement == "actor":
        names += map(reward_actor_name, shared_rewards(settings))
    for name in names:
        with contextlib.suppress(ValueError):  # Ray's: there is no such actor
            ray.kill(ray.get_actor(name, namespace=NAMESPACE))


def start_pool(settings: Settings, kind: type[PoolScaler] = PoolScaler) -> Any:
    """Start the shared rewards and a scaler on the connected cluster; the scaler's handle."""
    if settings.reward_placement == "actor":
        for name in shared_rewards(settings):
            start_reward(settings, name)
    scaler = ray.remote(kind).options(
        name=SCALER_NAME,
        namespace=NAMESPACE,
        lifetime="detached",
        num_cpus=0.1,
        max_restarts=-1,
        max_concurrency=2,
    )
    return scaler.remote(settings)
