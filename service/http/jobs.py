"""Jobs over HTTP: submit, list, look."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import time
from typing import TYPE_CHECKING, Annotated, Any, Final

from fastapi import APIRouter, Header, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response

from service.http.auth import Identity  # noqa: TC001 - FastAPI reads the annotations
from service.http.errors import invalid, problems, unknown
from service.http.requests import JobId, ServiceSettings, Store, read_json
from service.jobs.admission import admit
from service.jobs.spec import METHOD_NAMES
from service.jobs.states import FINAL, JobState

if TYPE_CHECKING:
    from service.jobs.store import JobStore
    from service.settings import Settings

__all__ = ["JOB_ANSWER", "REQUEST_BODY", "IdempotencyKey", "hash_body", "router"]

router = APIRouter(tags=["jobs"])

MAX_WAIT_S: Final = 60
"""Longest `Prefer: wait`, below what proxies commonly allow a request."""
WAIT_POLL_S: Final = 0.25
METADATA_PARAMETER: Final = re.compile(r"metadata\[([A-Za-z0-9_.-]{1,64})\]")

JOB_ANSWER: Final[dict[str, Any]] = {"content": {"application/json": {"schema": {"type": "object"}}}}
REQUEST_BODY: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/JobRequest"}}},
    }
}

IdempotencyKey = Annotated[
    str | None,
    Header(max_length=255, pattern=r"^[!-~]+$", description="The same key and body: the same job again."),
]
Prefer = Annotated[
    str | None, Header(description="`wait=N`: answer when the job has ended, after N s at most (60).")
]
Cursor = Annotated[
    str | None, Query(pattern=r"^job_[0-9A-Z]{26}$", description="`next_cursor` of the page before.")
]
Limit = Annotated[int, Query(ge=1, le=100, description="Jobs a page.")]
SUBMIT_ANSWERS: Final = {
    202: {**JOB_ANSWER, "description": "Queued; `Location` is the job"},
    200: {**JOB_ANSWER, "description": "Ended within the preferred wait"},
    **problems(400, 413, 415, 422, 429, 503),
}


@router.post("/generate", status_code=202, openapi_extra=REQUEST_BODY, responses=SUBMIT_ANSWERS)
@router.post("/v1/jobs", status_code=202, openapi_extra=REQUEST_BODY, responses=SUBMIT_ANSWERS)
async def submit(
    request: Request,
    store: Store,
    settings: ServiceSettings,
    caller: Identity,
    idempotency_key: IdempotencyKey = None,
    prefer: Prefer = None,
) -> Response:
    """Submit one job; `{"prompt": "…"}` alone is enough. A job answered 202 is never lost."""
    body = await read_json(request)
    job = await run_in_threadpool(_submit, store, settings, caller.owner, body, idempotency_key)
    wait_s = _preferred_wait_s(prefer)
    headers = {"Location": f"/v1/jobs/{job['id']}"}
    if wait_s is not None:
        headers["Preference-Applied"] = f"wait={wait_s}"
        job = await _wait(store, job, wait_s)
    status = 200 if wait_s is not None and job["status"] in FINAL else 202
    return JSONResponse(job, status, headers)


@router.get("/v1/jobs", responses=problems(422, 503))
def list_jobs(
    request: Request,
    store: Store,
    caller: Identity,
    status: JobState | None = None,
    batch_id: Annotated[str | None, Query(pattern=r"^batch_[0-9A-Z]{26}$")] = None,
    method: Annotated[str | None, Query(json_schema_extra={"enum": list(METHOD_NAMES)})] = None,
    cursor: Cursor = None,
    limit: Limit = 50,
) -> dict[str, Any]:
    """List jobs, newest first; `metadata[key]=value` selects by the pairs given at submission."""
    if method is not None and method not in METHOD_NAMES:
        raise invalid("/method", f"no method {method!r}; expected one of {', '.join(METHOD_NAMES)}")
    jobs, next_cursor = store.list_jobs(
        owner=caller.owner,
        status=status,
        batch_id=batch_id,
        method=method,
        metadata=_metadata_filter(request),
        limit=limit,
        cursor=cursor,
    )
    return {"items": jobs, "next_cursor": next_cursor}


@router.get("/v1/jobs/{job_id}", responses=problems(404, 503))
def get_job(job_id: JobId, store: Store, caller: Identity) -> dict[str, Any]:
    """Tell the whole truth about one job."""
    job = store.get(job_id, caller.owner)
    if job is None:
        raise unknown("job", job_id)
    return job


@router.get("/v1/jobs/{job_id}/artifacts", responses=problems(404, 503))
def list_artifacts(job_id: JobId, store: Store, caller: Identity) -> dict[str, Any]:
    """List a job's files."""
    if store.get(job_id, caller.owner) is None:
        raise unknown("job", job_id)
    return {"items": store.artifacts(job_id, caller.owner), "next_cursor": None}


def _submit(
    store: JobStore, settings: Settings, owner: str, body: Any, idempotency_key: str | None
) -> dict[str, Any]:
    body_hash = None
    if idempotency_key is not None:
        # First, since a repeated request gets its first answer even if workers have changed what they can do.
        body_hash = hash_body(body)
        if known := store.submitted_before(idempotency_key, body_hash, owner):
            return known
    admitted = admit(body, store.capabilities(), settings)
    job, _ = store.submit(
        admitted.spec,
        owner=owner,
        idempotency_key=idempotency_key,
        body_hash=body_hash,
        warnings=admitted.warnings,
    )
    return job


def hash_body(body: Any) -> str:
    """Hash what a body says, not how it is written: the order of fields and white space do not count."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode("ascii")).hexdigest()


def _preferred_wait_s(prefer: str | None) -> int | None:
    """Read `wait=N` of a Prefer header; a preference that we do not understand is ignored (RFC 7240)."""
    found = re.search(r"(?:^|[,;\s])wait=(\d{1,9})(?=$|[,;\s])", prefer or "")
    return None if found is None else min(int(found[1]), MAX_WAIT_S)


async def _wait(store: JobStore, job: dict[str, Any], wait_s: int) -> dict[str, Any]:
    until = time.monotonic() + wait_s
    while job["status"] not in FINAL and (left := until - time.monotonic()) > 0:
        await asyncio.sleep(min(WAIT_POLL_S, left))
        found = await run_in_threadpool(store.get, job["id"])
        assert found is not None, "a job that was submitted exists"
        job = found
    return job


def _metadata_filter(request: Request) -> dict[str, str]:
    """Read `metadata[key]=value`; a parameter that nobody knows is refused, as a typo would select everything."""
    wanted = {}
    for name, value in request.query_params.items():
        if found := METADATA_PARAMETER.fullmatch(name):
            if "\0" in value:
                raise invalid(f"/{name}", "no metadata contains the character NUL")
            wanted[found[1]] = value
        elif name not in ("status", "batch_id", "method", "cursor", "limit"):
            expected = "status, batch_id, method, metadata[key], cursor or limit"
            raise invalid(f"/{name}", f"no such parameter; expected {expected}")
    return wanted
