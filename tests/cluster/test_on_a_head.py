"""As on Kubernetes: a Ray head that somebody else runs gets the overlay's Serve configuration, then `dreamserve pool`.

Then a real Prometheus scrapes it as the monitors say: what dashboards and alerts read exists, and moves.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import yaml

from tests.cluster.conftest import descendants
from tests.manifests.metric_names import names_in
from tests.manifests.monitoring import alerts_of, dashboards_of, queries_of
from tests.manifests.rendering import K8S, of_kind, render

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.cluster.conftest import Up

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]

PATIENCE_S = 300.0
"""Each step takes seconds on an idle machine."""
TOKEN = "t" * 64
NOT_HERE = ("ray_node_gpus", "ray_node_gram", "ray_node_gpu_", "autoscaler_")
"""No GPU, and no autoscaler but KubeRay's."""
LABELED_EVENTS = (
    "dreamserve_attempts_failed_total",
    "dreamserve_webhook_deliveries_total",
    "dreamserve_referee_divergence_ratio",
    "ray_serve_num_http_error_requests_total",
)
"""They have series from their first event on, of which there is none in a quiet minute."""
MOVING = (
    "dreamserve_jobs_submitted_total",
    "dreamserve_jobs_finished_total",
    "dreamserve_optimizer_steps_total",
    "dreamserve_worker_seconds_total",
    "dreamserve_run_time_seconds_bucket",
    "dreamserve_artifact_bytes_total",
    "dreamserve_reward_score_bucket",
    "ray_dreamserve_reward_requests_total",
    "ray_serve_num_http_requests_total",
)


def wait_for(what: Callable[[], Any]) -> Any:
    """Ask again and again until there is an answer."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        with contextlib.suppress(httpx.HTTPError):
            if answer := what():
                return answer
        assert time.monotonic() < deadline, f"nothing after {PATIENCE_S} s"
        threading.Event().wait(0.5)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def program(
    command: list[str], environment: dict[str, str], output: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program that ends with the test, and all that it has started."""
    with output.open("wb") as log:
        process = subprocess.Popen(
            command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        yield process
    finally:
        children = descendants(process.pid)
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for pid in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


class Head:
    """A Ray head with the environment of a pod."""

    process: subprocess.Popen[bytes]

    def __init__(self, folder: Path, ray_folder: str) -> None:
        self.folder = folder
        self.gcs, self.dashboard, self.metrics, self.http = (free_port() for _ in range(4))
        self.environment = os.environ | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": TOKEN,
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "RAY_worker_niceness": "0",
            "DREAMSERVE_DATA_DIR": str(folder),
            "DREAMSERVE_AUTH": "on",
            "DREAMSERVE_TORCH_THREADS": "1",
        }
        options = {
            "port": self.gcs,
            "node-ip-address": "127.0.0.1",
            "dashboard-port": self.dashboard,
            "dashboard-agent-listen-port": free_port(),
            "metrics-export-port": self.metrics,
            "ray-client-server-port": free_port(),
            "num-cpus": 4,
            "num-gpus": 0,
            "object-store-memory": 128 * 2**20,
            "temp-dir": ray_folder,
        }
        given = [f"--{name}={value}" for name, value in options.items()]
        self.command = ["ray", "start", "--head", "--block", *given]

    def deploy(self) -> None:
        """Do as KubeRay: put the overlay's Serve configuration, but for the port."""
        (service,) = of_kind(render(K8S / "overlays/local-cpu"), "RayService")
        config = yaml.safe_load(service["spec"]["serveConfigV2"])
        config["http_options"] |= {"host": "127.0.0.1", "port": self.http}
        url = f"http://127.0.0.1:{self.dashboard}/api/serve/applications/"
        headers = {"Authorization": f"Bearer {TOKEN}"}
        wait_for(lambda: httpx.get(url, headers=headers, timeout=30).is_success)
        httpx.put(url, json=config, headers=headers, timeout=60).raise_for_status()

    def dreamserve(self, *arguments: str, ray_version: str = "") -> subprocess.CompletedProcess[str]:
        """Run the command line in the head's pod, perhaps of an image with another Ray."""
        program = ["-m", "workers.main"]
        if ray_version:
            other = f"import ray; ray.__version__ = {ray_version!r}; import workers.main; workers.main.main()"
            program = ["-c", other]
        command = [sys.executable, *program, *arguments]
        return subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=PATIENCE_S
        )


@pytest.fixture
def head(tmp_path: Path) -> Iterator[Head]:
    with tempfile.TemporaryDirectory(
        prefix="ray", ignore_cleanup_errors=True
    ) as folder:  # short: it holds sockets
        head = Head(tmp_path / "data", folder)
        with program(head.command, head.environment, tmp_path / "ray.log") as head.process:
            yield head


@pytest.fixture
def prometheus(head: Head, tmp_path: Path) -> Iterator[httpx.Client]:
    """A Prometheus that scrapes the frontend and Ray's exporter every second."""
    targets = {"store": head.http, "ray": head.metrics}
    jobs = [
        {"job_name": name, "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]}
        for name, port in targets.items()
    ]
    config = tmp_path / "prometheus.yml"
    config.write_text(yaml.safe_dump({"global": {"scrape_interval": "1s"}, "scrape_configs": jobs}))
    port = free_port()
    command = ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={tmp_path / 'tsdb'}"]
    command.append(f"--web.listen-address=127.0.0.1:{port}")
    with (
        program(command, head.environment, tmp_path / "prometheus.log"),
        httpx.Client(base_url=f"http://127.0.0.1:{port}") as http,
    ):
        yield http


def values(prometheus: httpx.Client, name: str, at: float | None = None) -> list[float]:
    """All values of a metric, in some order."""
    when = {"time": str(at)} if at else {}
    answer = prometheus.get("/api/v1/query", params={"query": f"sort({name})", **when}).raise_for_status()
    return [float(one["value"][1]) for one in answer.json()["data"]["result"]]


def test_a_head_gets_frontend_and_pool_and_prometheus_sees_all_that_is_shown(
    head: Head, prometheus: httpx.Client
) -> None:
    head.deploy()
    url = f"http://127.0.0.1:{head.http}"
    wait_for(lambda: httpx.get(f"{url}/readyz").status_code == 200)
    assert httpx.get(f"{url}/v1/jobs").status_code == 401

    first = head.dreamserve("pool", "--address", f"127.0.0.1:{head.gcs}")
    assert (first.returncode, first.stderr.splitlines()[-1]) == (0, "The pool is started.")
    again = head.dreamserve("pool", "--address", f"127.0.0.1:{head.gcs}")
    assert (again.returncode, again.stderr.splitlines()[-1]) == (0, "The pool was there already.")
    _doctor_knows(head, url)

    key = head.dreamserve("keys", "create", "--name", "first").stdout.strip()
    wait_for(lambda: values(prometheus, "dreamserve_jobs_submitted_total") == [0])
    before = time.time()
    job = {"prompt": "a red cube", "steps": 20, "outputs": {"thumbnail": False}}
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=30) as http:
        job_id = http.post("/generate", json=job).raise_for_status().json()["id"]
        wait_for(lambda: _has_succeeded(http.get(f"/v1/jobs/{job_id}").json()))

    _moves(prometheus, before)
    objects = render(K8S / "overlays/production")
    queries = [query for board in dashboards_of(objects).values() for query in queries_of(board)]
    queries += [alert["expr"] for alert in alerts_of(objects)]
    wanted = {name for query in queries for name in names_in(query)}
    here = {name for name in wanted if not name.startswith(NOT_HERE)} - set(LABELED_EVENTS)
    assert len(here) > 40
    wait_for(lambda: _all_are_there(here, prometheus))


def test_a_service_joins_a_cluster_and_leaves_it_as_it_was(head: Head, up: Callable[..., Up]) -> None:
    head.environment |= {"RAY_ADDRESS": f"127.0.0.1:{head.gcs}", "DREAMSERVE_AUTH": "off"}
    head.environment |= {"DREAMSERVE_SHARED_REWARDS": '["embedded-multiview"]'}
    wait_for(lambda: head.dreamserve("doctor").returncode == 0)
    wrong = head.dreamserve("up", "--cluster", "--port", "0", ray_version="2.59.0")
    assert wrong.returncode == 2
    assert "Version mismatch: The cluster was started with: Ray: 2.60.0" in wrong.stderr

    def ours() -> list[str]:
        kinds = ("WorkerActor", "PoolScaler", "RewardActor", "ServeReplica", "ProxyActor")
        lines = [line for line in descendants(head.process.pid).values() if line.startswith("ray::")]
        return sorted(kind for kind in kinds for line in lines if kind in line)

    service = up("data", "--cluster", **head.environment)
    wait_for(lambda: len(ours()) == 5)
    assert not [line for line in descendants(service.process.pid).values() if line.startswith("ray::")]
    service.succeeded(service.submit(steps=1, method="sds"))
    status, seconds = service.terminate()
    assert (status, seconds < 30) == (0, True), service.errors.read_text()
    assert head.process.poll() is None, "the cluster goes on"
    wait_for(lambda: not ours())


def _doctor_knows(head: Head, url: str) -> None:
    cluster = ("--address", f"127.0.0.1:{head.gcs}")
    sound = head.dreamserve("doctor", "--json", "--url", url, *cluster)
    checks = {one["name"]: one for one in json.loads(sound.stdout)["checks"]}
    assert sound.returncode == 0, checks
    assert {one["status"] for one in checks.values()} == {"ok"}
    assert "1 node(s), 4 CPUs, 0 GPUs; the pool runs" in checks["ray"]["found"]
    wrong = head.dreamserve("doctor", *cluster, ray_version="2.59.0")
    assert wrong.returncode == 1
    told = next(line for line in wrong.stdout.splitlines() if line.startswith("fail    ray"))
    assert "The cluster was started with: Ray: 2.60.0" in told
    assert "was started with: Ray: 2.59.0" in told


def _has_succeeded(job: dict[str, Any]) -> bool:
    assert job["status"] != "failed", json.dumps(job["error"])
    return bool(job["status"] == "succeeded")


def _moves(prometheus: httpx.Client, before: float) -> None:
    for name in MOVING:
        wait_for(lambda name=name: sum(values(prometheus, name)) > sum(values(prometheus, name, before)))


def _all_are_there(names: set[str], prometheus: httpx.Client) -> bool:
    missing = sorted(name for name in names if not values(prometheus, name))
    print("missing:", missing)  # pytest shows it if this stays so
    return not missing
