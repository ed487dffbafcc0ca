"""What can be done to a job that exists: cancel it, try it again, erase it."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response
from pydantic import AfterValidator, Field, ValidationError

from service.http.answers.base import answer
from service.http.answers.jobs import Job
from service.http.auth import Identity  # noqa: TC001 - FastAPI reads the annotations
from service.http.errors import Problem, problems, unknown
from service.http.jobs import IdempotencyKey, hash_body
from service.http.requests import JobId, Objects, Store, read_json, read_json_if_any
from service.jobs.admission import read_as
from service.jobs.capabilities import embedded_capabilities
from service.jobs.erasing import Eraser
from service.jobs.errors import JobActive, StoreUnavailable
from service.jobs.knobs import Part
from service.jobs.runnable import check_runnable
from service.jobs.spec import JobSpec
from service.jobs.states import FINAL

if TYPE_CHECKING:
    from service.jobs.documents import Document
    from service.jobs.store import JobStore

__all__ = ["CancelRequest", "KeepRequest", "router"]

logger = logging.getLogger(__name__)
router = APIRouter(tags=["jobs"])


class CancelRequest(Part):
    """How to cancel a job; the whole body may be left out."""

    keep_partial: bool = Field(
        False, description="Export a running job's object as it is, and keep it as a partial result."
    )


def _each_once(candidates: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(candidates)) < len(candidates):
        raise ValueError(f"each candidate is kept once, found {list(candidates)}")
    return candidates


class KeepRequest(Part):
    """Which candidates of a job to keep, in place of those that are kept now."""

    candidates: Annotated[
        tuple[Annotated[int, Field(ge=0, le=15)], ...], Field(strict=False), AfterValidator(_each_once)
    ] = Field(
        min_length=1,
        max_length=16,
        json_schema_extra={"uniqueItems": True},
        description="Their indices, as in the result's `candidates`; downloads bring the first by default.",
    )


def _body(model: type[Part], *, required: bool) -> dict[str, Any]:
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    return {"requestBody": {"required": required, "content": {"application/json": {"schema": schema}}}}


@router.post(
    "/v1/jobs/{job_id}/cancel",
    status_code=202,
    openapi_extra=_body(CancelRequest, required=False),
    responses={
        202: answer(Job, "Its worker is being told"),
        200: answer(Job, "Ended"),
        **problems(400, 404, 413, 415, 422, 503),
    },
)
async def cancel_job(request: Request, job_id: JobId, store: Store, caller: Identity) -> Response:
    """End a job: 200 when it has ended, 202 while its worker is being told; harmless to repeat.

    With `{"keep_partial": true}` a job that has begun to optimize ends with its object as it is (`result.partial`);
    a queued one has none. The newest call decides: cancel again without it when the export takes too long.
    """
    wanted = read_as(
        CancelRequest,
        await read_json_if_any(request),
        smallest="The body may be left out.",
        see='The body may be left out, or be {"keep_partial": true}.',
    )
    job = await run_in_threadpool(store.cancel, job_id, caller.owner, keep_partial=wanted.keep_partial)
    if job is None:
        raise unknown("job", job_id)
    return JSONResponse(job, 200 if job["status"] in FINAL else 202)


@router.post(
    "/v1/jobs/{job_id}/retry",
    status_code=202,
    responses={
        202: answer(Job, "Queued; `Location` is the new job"),
        **problems(404, 409, 422, 429, 503),
    },
)
def retry_job(
    job_id: JobId, store: Store, caller: Identity, idempotency_key: IdempotencyKey = None
) -> Response:
    """Make a new job of an ended one's spec, seed included; its `retry_of` names the old one, which does not change."""
    job = _retry(store, caller.owner, job_id, idempotency_key)
    return JSONResponse(job, 202, {"Location": f"/v1/jobs/{job['id']}"})


@router.post(
    "/v1/jobs/{job_id}/keep",
    openapi_extra=_body(KeepRequest, required=True),
    responses={
        200: answer(Job, "The job, whose `result` says what is kept, and that a person said so"),
        **problems(400, 404, 409, 410, 413, 415, 422, 503),
    },
)
async def keep_candidates(request: Request, job_id: JobId, store: Store, caller: Identity) -> Response:
    """Choose which candidates of a job that has succeeded are kept: yours count, whatever the reward said.

    `{"candidates": [2, 0]}` keeps two and gives the job the files of number 2 first. The files of all candidates stay
    until they expire, so that another choice may follow; the same one again changes nothing.
    """
    job = await run_in_threadpool(_keep, store, caller.owner, job_id, await read_json(request))
    return JSONResponse(job)


@router.delete("/v1/jobs/{job_id}", status_code=204, responses=problems(404, 409, 503))
def delete_job(job_id: JobId, store: Store, objects: Objects, caller: Identity) -> Response:
    """Erase an ended job, its events and its artifacts; harmless to repeat.

    The job is gone when this answers. What the object store does not delete at once, it deletes within minutes.
    """
    eraser = Eraser(store.database, objects)
    if not eraser.forget(job_id, caller.owner):
        raise unknown("job", job_id)
    # Not a failure of this request: its rows are gone, and the sweeper will finish.
    with contextlib.suppress(StoreUnavailable):
        eraser.delete_objects(job_id)
    return Response(status_code=204)


def _keep(store: JobStore, owner: str, job_id: str, body: Any) -> Document:
    # Before anything is said of the body, as of a job that never existed.
    if store.get(job_id, owner) is None:
        raise unknown("job", job_id)
    wanted = read_as(
        KeepRequest,
        body,
        smallest='Say which: {"candidates": [1]}.',
        see='The body is {"candidates": [1]}; the result of GET /v1/jobs/{id} lists them.',
    )
    job = store.keep(job_id, wanted.candidates, owner)
    if job is None:
        raise unknown("job", job_id)
    return job


def _retry(store: JobStore, owner: str, job_id: str, idempotency_key: str | None) -> Document:
    body_hash = None
    if idempotency_key is not None:
        body_hash = hash_body({"retry_of": job_id})
        if known := store.submitted_before(idempotency_key, body_hash, owner):
            return known
    old = store.get(job_id, owner)
    if old is None:
        raise unknown("job", job_id)
    if old["status"] not in FINAL:
        raise JobActive(job_id, old["status"], "retried")
    spec = _spec_of(old)
    check_runnable(spec, store.capabilities() or embedded_capabilities())
    job, _ = store.submit(
        spec,
        owner=owner,
        idempotency_key=idempotency_key,
        body_hash=body_hash,
        # Those of the old submission; what a worker had to say, the next one will say itself.
        warnings=[one for one in old["warnings"] if one["code"] == "no-referee"],
        retry_of=job_id,
    )
    return job


def _spec_of(old: Document) -> JobSpec:
    try:
        return JobSpec.model_validate(old["spec"])
    except ValidationError as error:
        logger.warning("cannot retry %s: %s", old["id"], error)
        raise Problem(
            422,
            "invalid-request",
            f"{old['id']} was submitted to another release, whose specification this one cannot read.",
            suggestion="Submit a new job with the fields of its spec that matter to you.",
        ) from None
