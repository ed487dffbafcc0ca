"""A program: the head of a Ray cluster dies and comes back, by what Redis has kept, while a job runs.

Prints what it saw as JSON. A process of its own, like `autoscaling.py`, whose small workers it uses.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.cluster.autoscaling import (
    SmallScaler,
    free_port,
    relatives,
    step_of,
    wait_until,
)  # first: sets Ray's env

if TYPE_CHECKING:
    from collections.abc import Iterator

OUTAGE_S = 4.0
STEPS = 500


@contextlib.contextmanager
def redis(folder: Path) -> Iterator[int]:
    """Run a Redis that keeps everything in memory; its port."""
    port = free_port()
    given = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    server = subprocess.Popen(["redis-server", *given], stdout=subprocess.DEVNULL)
    try:
        yield port
    finally:
        server.kill()
        server.wait()


@contextlib.contextmanager
def ray_on(redis_port: int, folder: Path) -> Iterator[None]:
    """Start a head without a supervisor, and connect to it; all its processes end with the block."""
    import ray

    gcs = free_port()
    ours = {"RAY_REDIS_ADDRESS": f"127.0.0.1:{redis_port}", "RAY_gcs_rpc_server_reconnect_timeout_s": "60"}
    options = {
        "port": gcs,
        "node-ip-address": "127.0.0.1",
        "num-cpus": 2,
        "object-store-memory": 80 * 2**20,
        "include-dashboard": "false",
        "temp-dir": folder,
    }
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head"]
    command += [f"--{name}={value}" for name, value in options.items()]
    try:
        subprocess.run(command, env=os.environ | ours, check=True, stdout=sys.stderr, timeout=120)
        ray.init(address=f"127.0.0.1:{gcs}", log_to_driver=False)
        yield
    finally:
        ray.shutdown()
        for pid in relatives():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def kill_gcs() -> tuple[list[str], dict[str, str]]:
    """Kill the process that knows the cluster; command and environment to start it anew."""
    for pid in relatives():
        process = Path(f"/proc/{pid}")
        command = (process / "cmdline").read_text().split("\0")[:-1]
        if command and command[0].endswith("gcs_server"):
            environment = dict(
                one.split("=", 1) for one in (process / "environ").read_text().split("\0") if one
            )
            os.kill(pid, signal.SIGKILL)
            return command, environment
    raise AssertionError("there is no gcs_server")


def run(folder: Path) -> dict[str, Any]:
    import ray

    from service.jobs.admission import admit
    from service.jobs.store import JobStore
    from service.settings import Settings
    from workers.pool import start_pool

    given = {"slots_per_worker": 1, "reward_placement": "local", "report_interval_s": 0.2, "torch_threads": 1}
    settings = Settings(data_dir=folder, workers=1, **given)
    store = JobStore(settings.database_url)
    small = {
        "method": "sds",
        "outputs": {"thumbnail": False},
        "mesh": {"target_faces": 500, "texture_px": 64},
    }

    def submit(steps: int) -> str:
        spec = admit({"prompt": "red", "steps": steps} | small, store.capabilities(), settings).spec
        return str(store.submit(spec)[0]["id"])

    def job(job_id: str) -> dict[str, Any]:
        return store.get(job_id) or {}

    with contextlib.ExitStack() as stack:
        short = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True))
        )
        stack.enter_context(ray_on(stack.enter_context(redis(short)), short / "t"))
        scaler = start_pool(settings, SmallScaler)
        running = submit(STEPS)
        wait_until(lambda: step_of(job(running)) >= 20)
        command, environment = kill_gcs()
        before = step_of(job(running))
        threading.Event().wait(OUTAGE_S)
        during = step_of(job(running))
        with (folder / "gcs.log").open("wb") as log:
            subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        back_at = time.monotonic()
        workers = ray.get(scaler.names.remote(), timeout=60)
        back_s = time.monotonic() - back_at
        wait_until(lambda: job(running)["status"] not in ("queued", "running"))
        later = submit(1)
        wait_until(lambda: job(later)["status"] not in ("queued", "running"))
        ray.get(scaler.drain.remote(10.0))
    return {
        "steps": [before, during],
        "back_s": back_s,
        "workers": workers,
        "jobs": [job(running), job(later)],
    }


if __name__ == "__main__":
    print(json.dumps(run(Path(sys.argv[1]))))
