"""A real service in a temporary folder: SQLite, local objects, the FastAPI application, and a worker by hand."""

from __future__ import annotations

import hashlib
import threading
import time
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import uvicorn
from anyio.from_thread import BlockingPortal, start_blocking_portal
from fastapi.routing import APIRoute
from starlette.routing import Match

from service.http.api import RESOURCES, build_api, probes
from service.jobs.objects import ObjectStore, artifact_key, open_object_store
from service.jobs.states import Lease, NewArtifact, Stage
from service.jobs.store import JobStore
from service.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from fastapi import FastAPI
    from pydantic import BaseModel

GLB = b"glTF\2\0\0\0" + bytes(range(256)) * 8
MESH: dict[str, Any] = {
    "faces": 12,
    "vertices": 8,
    "watertight": True,
    "components": 1,
    "non_manifold_edges": 0,
    "size_bytes": len(GLB),
    "texture_px": None,
    "iso_level": 5.0,
    "agreement": 0.97,
    "bounds": [[-0.5, -0.5, -0.5], [0.5, 0.5, 0.5]],
}
CANDIDATE: dict[str, Any] = {
    "index": 0,
    "seed": 7,
    "scores": {"reward": 0.8},
    "referee": None,
    "kept": True,
    "files": ["object.glb"],
    "mesh": MESH,
    "field_sha256": "0" * 64,
}
RESULT: dict[str, Any] = {
    "candidates": [CANDIDATE],
    "mesh": MESH,
    "provenance": {
        "code": "test",
        "preset": None,
        "preset_changes": [],
        "prior": "embedded",
        "method": "dreamdpo",
        "seed": 7,
        "weights": {},
        "torch": "2",
        "determinism": "none",
        "field_sha256": "0" * 64,
    },
    "licenses": [],
}
"""As a worker tells it."""
ROUTES = [route for resource in RESOURCES for route in resource.router.routes] + probes.routes


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings of a service whose data lies in the test's folder, whatever the environment says."""
    for name in ("DATABASE_URL", "OBJECTS_URL", "DATA_DIR", "MAX_QUEUED", "API_KEY"):
        monkeypatch.delenv(f"DREAMSERVE_{name}", raising=False)
    return Settings(data_dir=tmp_path / "data", auth="off")


@pytest.fixture
def store(settings: Settings) -> Iterator[JobStore]:
    store = JobStore(settings.database_url, max_queued=3)
    yield store
    store.close()


@pytest.fixture
def objects(settings: Settings) -> ObjectStore:
    return open_object_store(settings.objects_url)


@pytest.fixture
def api(store: JobStore, objects: ObjectStore, settings: Settings) -> FastAPI:
    return build_api(store, objects, settings)


@pytest.fixture
def url(api: FastAPI) -> Iterator[str]:
    """Where the application answers, behind a real socket."""
    server = uvicorn.Server(
        uvicorn.Config(api, port=0, log_level="warning", timeout_graceful_shutdown=1, ws="none")
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="session")
def portal() -> Iterator[BlockingPortal]:
    """An event loop in a thread, where applications run without a socket."""
    with start_blocking_portal() as portal:
        yield portal


@pytest.fixture
def http(api: FastAPI, portal: BlockingPortal) -> Iterator[httpx.Client]:
    """A client of the application without a socket between: fast, and whole answers only."""
    with httpx.Client(base_url="http://dreamserve", transport=InProcess(api, portal)) as client:
        yield client


class InProcess(httpx.BaseTransport):
    """Answer requests by calling an ASGI application in a portal's event loop."""

    def __init__(self, app: FastAPI, portal: BlockingPortal) -> None:
        self._transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        self._portal = portal

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        answer = self._portal.call(self._answer, request)
        check_documented(request, answer)
        return answer

    async def _answer(self, request: httpx.Request) -> httpx.Response:
        request.read()
        answer = await self._transport.handle_async_request(request)
        content = await answer.aread()
        return httpx.Response(answer.status_code, headers=answer.headers, content=content)


def check_documented(request: httpx.Request, answer: httpx.Response) -> None:
    """Hold a success in JSON against the model that its route's documentation names: all of it, and nothing else."""
    if not (answer.is_success and answer.content) or answer.headers["content-type"] != "application/json":
        return
    asked = {"type": "http", "method": request.method, "path": request.url.path}
    for route in ROUTES:
        if isinstance(route, APIRoute) and route.matches(asked)[0] is Match.FULL:
            model: type[BaseModel] = route.responses[answer.status_code]["model"]
            model.model_validate_json(answer.content, strict=True, extra="forbid")
            return
    assert request.url.path == "/openapi.json", f"no route documents {request.method} {request.url.path}"


@pytest.fixture
def glb() -> bytes:
    """The bytes that `finish` publishes."""
    return GLB


@pytest.fixture
def finish(store: JobStore, objects: ObjectStore) -> Callable[..., None]:
    """Do what a worker does when a job is done: object first, then the row."""

    def finish(lease: Lease, store: JobStore = store) -> None:
        store.report(lease, stage=Stage.UPLOAD, step=lease.spec.steps, steps_total=lease.spec.steps)
        key = artifact_key(lease.job_id, lease.attempt, "object.glb")
        objects.put(key, GLB, content_type="model/gltf-binary")
        sha256 = hashlib.sha256(GLB).hexdigest()
        glb = NewArtifact("glb", "object.glb", "model/gltf-binary", len(GLB), sha256, key)
        store.finish(lease, RESULT, [glb])

    return finish
