"""The HTTP API: `build_api` puts the routes, the errors and the documentation together."""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import version
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Depends, FastAPI
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response

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
from service.http.answers.base import answer
from service.http.answers.operation import Health, Readiness
from service.http.auth import authenticate
from service.http.errors import install_problem_handlers, problems, store_down
from service.http.group_commit import GroupCommit
from service.http.openapi import ABOUT, install_document
from service.http.rates import RateLimit
from service.http.requests import Objects, RequestId, ServiceSettings, Store
from service.jobs import leasing
from service.jobs.batches import ADVANCE_EVERY_S, BatchStore
from service.jobs.documents import rfc3339
from service.jobs.errors import StoreUnavailable
from service.jobs.sweeping import SWEEP_EVERY_S, Sweeper
from service.metrics import CONTENT_TYPE, render_metrics

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from contextlib import AbstractAsyncContextManager

    from service.jobs.objects import ObjectStore
    from service.jobs.store import JobStore
    from service.settings import Settings

__all__ = ["build_api"]

logger = logging.getLogger(__name__)

RESOURCES = (jobs, job_actions, estimates, stream, artifacts, batches, capabilities, webhooks, usage, keys)
"""The modules of routes, in the order of the documentation."""
probes = APIRouter(tags=["operation"])


def build_api(store: JobStore, objects: ObjectStore, settings: Settings) -> FastAPI:
    """Build the application over one job store and one object store; it writes rows and calls no worker."""
    api = FastAPI(
        title="Dreamserve",
        version=version("dreamserve"),
        description=ABOUT,
        # The document is built anew for each reader, from what live workers can do (`openapi.py`).
        openapi_url=None,
        # What generated clients call their functions.
        generate_unique_id_function=attrgetter("name"),
        lifespan=_beside(
            [
                *webhook_delivery.chores(store.database, settings),
                Chore(store.sweep, leasing.SWEEP_EVERY_S),
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
    for resource in RESOURCES:
        api.include_router(resource.router, dependencies=[Depends(authenticate)])
    api.include_router(probes)
    routers = [*(resource.router for resource in RESOURCES), probes]
    install_problem_handlers(api, [route for router in routers for route in router.routes])
    install_document(api, store, settings)
    return api


@probes.get("/healthz", responses={200: answer(Health)})
async def healthz() -> dict[str, str]:
    """Say that this process answers; touches nothing else."""
    return {"service": "dreamserve", "status": "ok"}


@probes.get("/readyz", responses={200: answer(Readiness), **problems(503)})
def readyz(store: Store, objects: Objects) -> dict[str, Any]:
    """Say whether jobs can be taken; a 503 names each store that cannot be reached, and says what to do.

    Without live `workers` they are taken too, and wait, as workers come when there is work; `known_from` says by what
    they are judged until then (see `/v1/methods`). `trouble` lists what keeps workers from starting, such as a GPU, a
    secret or weights that are missing, or another Ray: by whom it was told (`worker` or `pool`), when (`at`),
    and what to do. It is empty once a worker has started, and while a pool just has nothing to do.
    """
    down: dict[str, str] = {}
    for check in (store.ping, objects.check):
        try:
            check()
        except StoreUnavailable as error:
            logger.error("not ready: %s", error)
            down[error.dependency] = error.advice
    if down:
        raise store_down(down)
    known = store.known_capabilities()
    workers = 0 if known is None else known.num_live
    return {
        "service": "dreamserve",
        "status": "ready",
        "workers": workers,
        **capabilities.how_known(known),
        "trouble": [
            {"source": one.source, "at": rfc3339(one.at), "detail": one.detail} for one in store.troubles()
        ],
    }


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
