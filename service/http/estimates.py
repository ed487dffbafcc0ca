"""Estimates over HTTP: what a job would be, how long it would wait and run, without making it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool

from service.http.answers.base import answer
from service.http.answers.jobs import Estimate
from service.http.auth import Identity  # noqa: TC001 - FastAPI reads the annotations
from service.http.errors import problems
from service.http.jobs import REQUEST_BODY
from service.http.requests import ServiceSettings, Store, read_json
from service.jobs.admission import admit
from service.jobs.overview import Overview

if TYPE_CHECKING:
    from service.jobs.store import JobStore
    from service.settings import Settings

__all__ = ["router"]

router = APIRouter(tags=["jobs"])


@router.post(
    "/v1/estimates",
    openapi_extra=REQUEST_BODY,
    responses={200: answer(Estimate), **problems(400, 413, 415, 422, 503)},
)
async def estimate(
    request: Request, store: Store, settings: ServiceSettings, caller: Identity
) -> dict[str, Any]:
    """Validate a job request and estimate its seconds and its place in the queue; creates nothing.

    `run_s` and `total_s` (with the wait) are `[low, high]`, or null with the `reason`; `spec` is the request with
    all defaults filled in. The queue's bound and quotas are not looked at: they may have changed when you submit.
    """
    body = await read_json(request)
    return await run_in_threadpool(_estimate, store, settings, body, caller.owner)


def _estimate(store: JobStore, settings: Settings, body: Any, owner: str) -> dict[str, Any]:
    admitted = admit(body, store.capabilities(), settings)
    estimated = Overview(store.database).estimate(admitted.spec, owner)
    return {**estimated, "spec": admitted.spec.model_dump(mode="json"), "warnings": admitted.warnings}
