"""The HTTP API: `build_api` puts the routes, the errors and the documentation together."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, FastAPI
from fastapi.responses import Response
from pydantic.json_schema import models_json_schema

from service.http import artifacts, capabilities, jobs, stream
from service.http.errors import ProblemDocument, install_problem_handlers, problems, store_down
from service.http.requests import Objects, RequestId, ServiceSettings, Store
from service.jobs.errors import StoreUnavailable
from service.jobs.spec import JobRequest
from service.metrics import CONTENT_TYPE, render_metrics

if TYPE_CHECKING:
    from service.jobs.objects import ObjectStore
    from service.jobs.store import JobStore
    from service.settings import Settings

__all__ = ["build_api"]

ABOUT = """Text to 3D objects that people prefer. POST a prompt to `/generate`, follow
`/v1/jobs/{id}/events`, fetch the mesh from `/v1/artifacts/{id}/content`.

Errors are `application/problem+json` (RFC 9457): `code` for programs, `detail` and `suggestion` for people,
`errors` with a JSON pointer to each wrong field, `request_id` to find the request in the service's log."""

probes = APIRouter(tags=["operation"])


def build_api(store: JobStore, objects: ObjectStore, settings: Settings) -> FastAPI:
    """Build the application over one job store and one object store; it writes rows and calls no worker."""
    api = FastAPI(title="Dreamserve", version=version("dreamserve"), description=ABOUT, redoc_url=None)
    api.state.store, api.state.objects, api.state.settings = store, objects, settings
    api.state.open_streams = 0
    api.add_middleware(RequestId)
    install_problem_handlers(api)
    for router in (jobs.router, stream.router, artifacts.router, capabilities.router, probes):
        api.include_router(router)
    _describe_bodies(api)
    return api


@probes.get("/healthz")
async def healthz() -> dict[str, str]:
    """Say that this process answers; touches nothing else."""
    return {"service": "dreamserve", "status": "ok"}


@probes.get("/readyz", responses=problems(503))
def readyz(store: Store, objects: Objects) -> dict[str, str]:
    """Say whether jobs can be taken; a 503 names each store that cannot be reached."""
    failed = []
    for check in (store.ping, objects.check):
        try:
            check()
        except StoreUnavailable as error:
            failed.append(error.dependency)
    if failed:
        raise store_down(failed)
    return {"service": "dreamserve", "status": "ready"}


@probes.get(
    "/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}, **problems(503)}
)
def metrics(store: Store, settings: ServiceSettings) -> Response:
    """Tell Prometheus all that the store knows, the same on every replica."""
    return Response(
        render_metrics(store, slots_per_worker=settings.slots_per_worker), media_type=CONTENT_TYPE
    )


def _describe_bodies(api: FastAPI) -> None:
    """Add the schemas to OpenAPI that the framework cannot see: we read bodies and write problems ourselves."""
    generate = api.openapi

    def openapi() -> dict[str, Any]:
        if api.openapi_schema is None:
            document = generate()
            _, schemas = models_json_schema(
                [(JobRequest, "validation"), (ProblemDocument, "serialization")],
                ref_template="#/components/schemas/{model}",
            )
            document.setdefault("components", {}).setdefault("schemas", {}).update(schemas["$defs"])
            api.openapi_schema = document
        return api.openapi_schema

    api.openapi = openapi  # type: ignore[method-assign]
