"""A program: a real pool of small workers on a Ray cluster whose autoscaler adds and removes fake GPU nodes.

Prints what it saw as JSON. A process of its own, since it sets the environment that Ray reads when it is imported.
It proves demand → nodes → jobs → idle removal on one machine; neither KubeRay's pods nor real GPUs.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import random
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

TOKEN = secrets.token_hex(32)
ENVIRONMENT = {
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": TOKEN,
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_worker_niceness": "0",
    "RAY_agent_register_timeout_ms": "100000",
    "OMP_NUM_THREADS": "1",
}
os.environ.update(ENVIRONMENT)

import ray  # noqa: E402
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID  # noqa: E402
from ray.core.generated.autoscaler_pb2 import DrainNodeReason  # noqa: E402

from service.jobs.admission import admit  # noqa: E402
from service.jobs.objects import open_object_store  # noqa: E402
from service.jobs.store import JobStore  # noqa: E402
from service.settings import Settings  # noqa: E402
from tests import waiting  # noqa: E402
from workers.pool import PoolScaler, WorkerActor, start_pool  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator

    from workers.worker import Worker

MAX_NODES = 2
JOBS = 6
NODE_IDLE_S = 2.0
LONG_STEPS = 300
PATIENCE_S = 300.0
wait_until = functools.partial(waiting.wait_until, timeout_s=PATIENCE_S, every_s=0.1)


def small_worker(settings: Settings, name: str, _rewards: object = None) -> Worker:
    """A real worker whose networks are an analytic prior and a tiny reward."""
    from tests.unit.workers.small_workers import small_networks, with_referee
    from workers.worker import Worker

    store, objects = JobStore(settings.database_url), open_object_store(settings.objects_url)
    return Worker(name, store, objects, lambda: with_referee(small_networks()), settings)


class SmallWorker(WorkerActor):
    build = staticmethod(small_worker)


class SmallScaler(PoolScaler):
    worker = SmallWorker


def config(gcs: int) -> dict[str, Any]:
    """The autoscaler's configuration: nodes are processes of this machine, each with one GPU that is none."""
    kind = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
    gpu_node = {"resources": {"CPU": 1, "GPU": 1, "object_store_memory": 80 * 2**20}}
    return {
        "cluster_name": "fake",
        "max_workers": MAX_NODES,
        "idle_timeout_minutes": NODE_IDLE_S / 60,
        "upscaling_speed": 1.0,
        "provider": {
            "type": "external",
            "module": kind,
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "gcs_address": f"127.0.0.1:{gcs}",
            "launch_multiple": True,
            "head_node_id": FAKE_HEAD_NODE_ID,
        },
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 1}, "node_config": {}, "max_workers": 0},
            "gpu": {**gpu_node, "node_config": {}, "min_workers": 0, "max_workers": MAX_NODES},
        },
        "auth": {},
        "initialization_commands": [],
        "setup_commands": [],
        "head_setup_commands": [],
        "worker_setup_commands": [],
        "head_start_ray_commands": [],
        "worker_start_ray_commands": [],
        "file_mounts": {},
        "cluster_synced_files": [],
        "file_mounts_sync_continuously": False,
    }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def autoscaling_ray() -> Iterator[None]:
    """Start a head with that autoscaler and connect to it; all its processes end with the block."""
    gcs = free_port()
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        file = Path(folder) / "autoscaler.json"
        file.write_text(json.dumps(config(gcs)))
        environment = os.environ | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "RAY_FAKE_CLUSTER": "1",
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "RAY_enable_autoscaler_v2": "1",
            "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
        }
        options = {
            "port": gcs,
            "node-ip-address": "127.0.0.1",
            "autoscaling-config": file,
            "num-cpus": 1,
            "object-store-memory": 80 * 2**20,
            "include-dashboard": "false",
            "temp-dir": folder,
        }
        given = [f"--{name}={value}" for name, value in options.items()]
        log = Path(folder) / "head.log"
        with log.open("wb") as told:
            command = ["ray", "start", "--head", "--block", *given]
            head = subprocess.Popen(
                command, env=environment, stdout=told, stderr=told, start_new_session=True
            )
        try:
            wait_until(lambda: head.poll() is not None or b"Ray runtime started" in log.read_bytes())
            assert head.poll() is None, log.read_text()
            ray.init(address=f"127.0.0.1:{gcs}", log_to_driver=False)
            yield
        finally:
            ray.shutdown()
            head.kill()
            head.wait()
            for pid in relatives():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def relatives() -> list[int]:
    """The other processes of this cluster, orphans too: they all have its secret."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if TOKEN.encode() in (folder / "environ").read_bytes() and int(folder.name) != os.getpid():
                found.append(int(folder.name))
    return found


def step_of(job: dict[str, Any] | None) -> int:
    assert job is not None
    return job["progress"]["step"] if job["progress"] else 0


def gpu_nodes() -> int:
    return sum(bool(node["Alive"] and node["Resources"].get("GPU")) for node in ray.nodes())


def worker_is_gone(name: str, scaler: Any) -> bool:
    return name not in ray.get(scaler.names.remote())


def drain_node_of(worker: str) -> None:
    """Announce that the node of a worker will be taken away in half a minute, as a cloud does."""
    actors = ray._private.state.state.actor_table(None, None, None).values()
    (node,) = {one["Address"]["NodeID"] for one in actors if one["Name"] == worker}
    gcs = ray._raylet.GcsClient(address=ray.get_runtime_context().gcs_address)
    deadline_ms = int((time.time() + 30) * 1000)
    accepted, why = gcs.drain_node(
        node, DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION"), "spot", deadline_ms
    )
    assert accepted, why


class Sights:
    """The largest numbers of nodes and workers that were seen at any time."""

    def __init__(self, scaler: Any) -> None:
        self.nodes = self.workers = 0
        self._scaler = scaler
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stopping.wait(0.2):
            self.nodes = max(self.nodes, gpu_nodes())
            self.workers = max(self.workers, len(ray.get(self._scaler.names.remote())))

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()


def run(folder: Path, num_runs: int) -> dict[str, Any]:
    settings = Settings(
        data_dir=folder,
        workers=MAX_NODES,
        min_workers=0,
        worker_gpus=1,
        worker_idle_s=0.5,
        slots_per_worker=1,
        reward_placement="local",
        report_interval_s=0.2,
        torch_threads=1,
    )
    store, draw = JobStore(settings.database_url), random.Random(num_runs)
    body = {"prompt": "red", "method": "sds", "outputs": {"thumbnail": False}}
    body["mesh"] = {"target_faces": 500, "texture_px": 64}
    submitted: list[str] = []

    def submit(steps: int) -> None:
        document, _ = store.submit(admit(body | {"steps": steps}, store.capabilities(), settings).spec)
        submitted.append(str(document["id"]))

    def all_done() -> bool:
        return all((store.get(one) or {})["status"] not in ("queued", "running") for one in submitted)

    seconds: dict[str, float] = {}
    began = time.monotonic()

    def lap(name: str) -> None:
        nonlocal began
        seconds[name] = round(time.monotonic() - began, 1)
        began = time.monotonic()

    with autoscaling_ray():
        lap("head")
        scaler = start_pool(settings, SmallScaler)
        sights = Sights(scaler)
        ray.get(scaler.names.remote())
        before = gpu_nodes(), len(ray.get(scaler.names.remote()))
        lap("pool")
        for _ in range(JOBS):
            submit(steps=10)
        wait_until(lambda: gpu_nodes() > 0)
        lap("nodes")
        wait_until(all_done)
        lap("jobs")
        wait_until(lambda: gpu_nodes() == 0)
        nodes_after = gpu_nodes()
        lap("none")
        submit(steps=LONG_STEPS)
        wait_until(lambda: step_of(store.get(submitted[-1])) >= 20)
        preempted = (store.get(submitted[-1]) or {})["attempts"][0]["worker"]
        lap("again")
        drain_node_of(preempted)
        wait_until(lambda: worker_is_gone(preempted, scaler))
        lap("drained")
        wait_until(all_done)
        lap("resumed")
        for _ in range(num_runs):
            for _ in range(draw.randint(1, 4)):
                submit(steps=draw.choice((1, 20, 60)))
                threading.Event().wait(draw.choice((0.0, 0.3, 1.2)))
            wait_until(all_done)
            threading.Event().wait(draw.choice((0.0, 1.0, 3.0)))  # workers, and then nodes, begin to leave
        lap("runs")
        sights.stop()
        ray.get(scaler.drain.remote(10.0))
    return {
        "plan": {"first": JOBS, "long_steps": LONG_STEPS, "max": MAX_NODES},
        "before": before,
        "nodes_after": nodes_after,
        "most_nodes": sights.nodes,
        "most_workers": sights.workers,
        "seconds": seconds,
        "jobs": [store.get(one) for one in submitted],
    }


if __name__ == "__main__":
    print(json.dumps(run(Path(sys.argv[1]), int(sys.argv[2]))))
