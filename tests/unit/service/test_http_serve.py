"""The frontend as Ray Serve runs it: the same answers, and streams that flow."""

from __future__ import annotations

import json
import socket
import tempfile
import threading
from typing import TYPE_CHECKING

import httpx
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from service.jobs.states import Lease
    from service.jobs.store import JobStore
    from service.settings import Settings

pytestmark = [
    pytest.mark.slow,
    pytest.mark.cluster,
    # Ray's own use of pydantic, and of its sockets.
    pytest.mark.filterwarnings(
        "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning"
    ),
]


@pytest.fixture
def served(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Where Ray Serve answers, over this test's stores."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")  # as `private_ray` has it
    import ray
    from ray import serve

    from service.http.app import build_app

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="ray") as folder:  # short: it holds sockets
        ray.init(address="local", include_dashboard=False, num_cpus=2, log_to_driver=False, _temp_dir=folder)
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(build_app(settings), name="dreamserve", route_prefix="/")
        yield f"http://127.0.0.1:{port}"
        serve.shutdown()
        ray.shutdown()


def test_ray_serve_answers_submits_and_streams(
    served: str, store: JobStore, finish: Callable[[Lease], None], glb: bytes
) -> None:
    assert httpx.get(f"{served}/healthz").json()["status"] == "ok"
    assert httpx.get(f"{served}/readyz").status_code == 200
    refused = httpx.post(f"{served}/generate", json={"prompt": ""})
    assert (refused.status_code, refused.json()["request_id"]) == (422, refused.headers["Request-Id"])
    answer = httpx.post(f"{served}/generate", json={"prompt": "a red cube"})
    assert answer.status_code == 202

    lease = store.claim("worker")
    assert lease is not None
    events = []
    path = f"{served}/v1/jobs/{answer.json()['id']}/events"
    with httpx.stream("GET", path, timeout=30) as stream:
        for line in stream.iter_lines():
            if line.startswith("data: "):
                events.append(json.loads(line.removeprefix("data: "))["type"])
                if events[-1] == "job.started":  # so the stream flows before the job has ended
                    threading.Thread(target=finish, args=[lease]).start()
    assert events[-1] == "job.succeeded"

    artifact = httpx.get(f"{served}{answer.headers['Location']}/artifacts").json()["items"][0]
    content = httpx.get(f"{served}/v1/artifacts/{artifact['id']}/content", headers={"Range": "bytes=4-"})
    assert (content.status_code, content.content) == (206, glb[4:])
