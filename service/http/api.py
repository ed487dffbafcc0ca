"""The HTTP API: `build_api` puts the routes, the errors and the documentation together."""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Depends, FastAPI
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response
from pydantic.json_schema import models_json_schema

from service import webhook_delivery
from service.background import Background, Chore
from service.http import (
    artifacts,
    batches,
    capabilities,
    estimates,
    job_actions,
    jobs,
    keys,
    stream,
    usage,
    webhooks,
)
from service.http.auth import authenticate, describe_security
from service.http.errors import ProblemDocument, install_problem_handlers, problems, store_down
from service.http.group_commit import GroupCommit
from service.http.rates import RateLimit
from service.http.requests import Objects, RequestId, ServiceSettings, Store
from service.jobs.batch_input import BatchRequest
from service.jobs.batches import ADVANCE_EVERY_S, BatchStore
from service.jobs.errors import StoreUnavailable
from service.jobs.keys import NewKey
from service.jobs.spec import JobRequest
from service.jobs.sweeping import SWEEP_EVERY_S, Sweeper
from service.metrics import CONTENT_TYPE, render_metrics

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from contextlib import AbstractAsyncContextManager

    from service.jobs.objects import ObjectStore
    from service.jobs.store import JobStore
    from service.settings import Settings

__all__ = ["build_api"]

ABOUT = """Text to 3D objects that people prefer. POST a prompt to `/generate`, follow
`/v1/jobs/{id}/events`, fetch the mesh from `/v1/artifacts/{id}/content`.

Errors are `application/problem+json` (RFC 9457): `code` for programs, `detail` and `suggestion` for people,
`errors` with a JSON pointer to each wrong field, `request_id` to find the request in the service's log."""

RESOURCES = (jobs, job_actions, estimates, stream, artifacts, batches, capabilities, webhooks, usage, keys)
"""The modules of routes, in the order of the documentation."""
probes = APIRouter(tags=["operation"])


def build_api(store: JobStore, objects: ObjectStore, settings: Settings) -> FastAPI:
    """Build the application over one job store and one object store; it writes rows and calls no worker."""
    api = FastAPI(
        title="Dreamserve",
        version=version("dreamserve"),
        description=ABOUT,
        redoc_url=None,
        lifespan=_beside(
            [
                *webhook_delivery.chores(store.database, settings),
                Chore(Sweeper(store.database, objects).sweep, SWEEP_EVERY_S),
                Chore(BatchStore(store.database, max_queued=settings.max_queued).advance, ADVANCE_EVERY_S),
            ]
        ),
    )
    api.state.store, api.state.objects, api.state.settings = store, objects, settings
    api.state.submissions = GroupCommit(partial(jobs.submit_posts, store, settings))
    api.state.open_streams = 0
    api.state.rates = RateLimit(settings.rate_limit_per_s)
    api.add_middleware(RequestId)
    install_problem_handlers(api)
    for resource in RESOURCES:
        api.include_router(resource.router, dependencies=[Depends(authenticate)])
    api.include_router(probes)
    _describe_bodies(api)
    return api


@probes.get("/healthz")
async def healthz() -> dict[str, str]:
    """Say that this process answers; touches nothing else."""
    return {"service": "dreamserve", "status": "ok"}


@probes.get("/readyz", responses=problems(503))
def readyz(store: Store, objects: Objects) -> dict[str, Any]:
    """Say whether jobs can be taken; a 503 names each store that cannot be reached.

    Without live `workers` they are taken too, as workers come when there is work; `known_from` says by what they are
    judged until then (see `/v1/methods`).
    """
    failed = []
    for check in (store.ping, objects.check):
        try:
            check()
        except StoreUnavailable as error:
            failed.append(error.dependency)
    if failed:
        raise store_down(failed)
    known = store.known_capabilities()
    workers = 0 if known is None else known.num_live
    return {"service": "dreamserve", "status": "ready", "workers": workers, **capabilities.how_known(known)}


@probes.get(
    "/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}, **problems(503)}
)
def metrics(store: Store, settings: ServiceSettings) -> Response:
    """Tell Prometheus all that the store knows, the same on every replica.

    It wants no key, as scrapers seldom have one: it names no job, no prompt and no owner.
    """
    return Response(
        render_metrics(store, slots_per_worker=settings.slots_per_worker), media_type=CONTENT_TYPE
    )


def _beside(chores: Sequence[Chore]) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    """Run chores in the background while the application is served."""

    @asynccontextmanager
    async def lifespan(_api: FastAPI) -> AsyncIterator[None]:
        background = Background(chores)
        background.start()
        try:
            yield
        finally:
            await run_in_threadpool(background.stop)

    return lifespan


def _describe_bodies(api: FastAPI) -> None:
    """Add the schemas to OpenAPI that the framework cannot see: we read bodies and write problems ourselves."""
    generate = api.openapi

    def openapi() -> dict[str, Any]:
        if api.openapi_schema is None:
            document = generate()
            _, schemas = models_json_schema(
                [
                    (JobRequest, "validation"),
                    (BatchRequest, "validation"),
                    (job_actions.CancelRequest, "validation"),
                    (webhooks.WebhookRequest, "validation"),
                    (webhooks.WebhookChange, "validation"),
                    (NewKey, "validation"),
                    (ProblemDocument, "serialization"),
                ],
                ref_template="#/components/schemas/{model}",
            )
            document.setdefault("components", {}).setdefault("schemas", {}).update(schemas["$defs"])
            describe_security(document)
            _correct_refusals(document)
            api.openapi_schema = document
        return api.openapi_schema

    api.openapi = openapi  # type: ignore[method-assign]


def _correct_refusals(document: dict[str, Any]) -> None:
    """Put our problems where the framework describes its own 422, which no route of ours answers."""
    ours = {str(status): answer for status, answer in problems(422).items()}
    for path in document["paths"].values():
        for operation in path.values():
            if "application/json" in operation["responses"].get("422", {}).get("content", {}):
                operation["responses"] |= ours
    for name in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(name, None)
