"""Jobs over HTTP: submit, list, look."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import re
import time
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple, TypeAlias

from fastapi import APIRouter, Depends, Header, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response

from service.http.answers.base import answer
from service.http.answers.jobs import ArtifactPage, Job, JobPage
from service.http.auth import Identity  # noqa: TC001 - FastAPI reads the annotations
from service.http.errors import invalid, problems, unknown
from service.http.group_commit import GroupCommit
from service.http.requests import JobId, Store, read_json
from service.jobs.admission import admit
from service.jobs.errors import Refused, StoreUnavailable
from service.jobs.spec import METHOD_NAMES
from service.jobs.states import FINAL, JobState
from service.jobs.submission import Submission

if TYPE_CHECKING:
    from collections.abc import Sequence

    from service.jobs.capabilities import Capabilities
    from service.jobs.documents import Document
    from service.jobs.store import JobStore
    from service.settings import Settings

__all__ = ["REQUEST_BODY", "IdempotencyKey", "Post", "hash_body", "router", "submit_posts"]

router = APIRouter(tags=["jobs"])

MAX_WAIT_S: Final = 60
"""Longest `Prefer: wait`, below what proxies commonly allow a request."""
WAIT_POLL_S: Final = 0.25
METADATA_PARAMETER: Final = re.compile(r"metadata\[([A-Za-z0-9_.-]{1,64})\]")

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
    202: answer(Job, "Queued; `Location` is the job"),
    200: answer(Job, "Ended within the preferred wait"),
    **problems(400, 413, 415, 422, 429, 503),
}


class Post(NamedTuple):
    """A request for a job, not yet looked into."""

    body: Any
    owner: str
    idempotency_key: str | None


async def _submissions(request: Request) -> GroupCommit[Post, dict[str, Any]]:
    submissions: GroupCommit[Post, dict[str, Any]] = request.app.state.submissions
    return submissions


Submissions: TypeAlias = Annotated[GroupCommit[Post, dict[str, Any]], Depends(_submissions)]


@router.post("/v1/jobs", status_code=202, openapi_extra=REQUEST_BODY, responses=SUBMIT_ANSWERS)
@router.post(
    "/generate", name="generate", status_code=202, openapi_extra=REQUEST_BODY, responses=SUBMIT_ANSWERS
)
async def submit(
    request: Request,
    store: Store,
    submissions: Submissions,
    caller: Identity,
    idempotency_key: IdempotencyKey = None,
    prefer: Prefer = None,
) -> Response:
    """Submit one job; `{"prompt": "…"}` alone is enough. A job answered 202 is never lost."""
    job = await submissions(Post(await read_json(request), caller.owner, idempotency_key))
    wait_s = _preferred_wait_s(prefer)
    headers = {"Location": f"/v1/jobs/{job['id']}"}
    if wait_s is not None:
        headers["Preference-Applied"] = f"wait={wait_s}"
        job = await _wait(store, job, wait_s)
    status = 200 if wait_s is not None and job["status"] in FINAL else 202
    return JSONResponse(job, status, headers)


@router.get("/v1/jobs", responses={200: answer(JobPage), **problems(422, 503)})
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


@router.get("/v1/jobs/{job_id}", responses={200: answer(Job), **problems(404, 503)})
def get_job(job_id: JobId, store: Store, caller: Identity) -> dict[str, Any]:
    """Tell the whole truth about one job."""
    job = store.get(job_id, caller.owner)
    if job is None:
        raise unknown("job", job_id)
    return job


@router.get("/v1/jobs/{job_id}/artifacts", responses={200: answer(ArtifactPage), **problems(404, 503)})
def list_artifacts(job_id: JobId, store: Store, caller: Identity) -> dict[str, Any]:
    """List a job's files."""
    if store.get(job_id, caller.owner) is None:
        raise unknown("job", job_id)
    return {"items": store.artifacts(job_id, caller.owner), "next_cursor": None}


def submit_posts(store: JobStore, settings: Settings, posts: Sequence[Post]) -> list[Document | Exception]:
    """Queue the jobs that some requests ask for in one transaction; the job of each, or why it has none."""
    capabilities = store.capabilities()
    admitted = [_admitted(store, settings, capabilities, post) for post in posts]
    answers = iter(store.submit_together([one for one in admitted if isinstance(one, Submission)]))
    jobs: list[Document | Exception] = []
    for one in admitted:
        answer = next(answers) if isinstance(one, Submission) else one
        jobs.append(answer[0] if isinstance(answer, tuple) else answer)
    return jobs


def _admitted(
    store: JobStore, settings: Settings, capabilities: Capabilities | None, post: Post
) -> Submission | Document | Exception:
    """Read one request: what to submit, or why not; or the job that it has made before."""
    try:
        body_hash = None if post.idempotency_key is None else hash_body(post.body)
        try:
            spec, warnings = admit(post.body, capabilities, settings)
        except Refused:
            # A repeated request gets its first answer even if workers have changed what they can do.
            if post.idempotency_key is not None and body_hash is not None:
                known = store.submitted_before(post.idempotency_key, body_hash, post.owner)
                if known is not None:
                    return known
            raise
        return Submission(spec, post.owner, post.idempotency_key, body_hash, warnings)
    except Exception as error:
        # Whatever it is, it is this request's alone.
        return error


def hash_body(body: Any) -> str:
    """Hash what a body says, not how it is written: the order of fields and white space do not count."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode("ascii")).hexdigest()


def _preferred_wait_s(prefer: str | None) -> int | None:
    """Read `wait=N` of a Prefer header; a preference that we do not understand is ignored (RFC 7240)."""
    found = re.search(r"(?:^|[,;\s])wait=(\d{1,9})(?=$|[,;\s])", prefer or "")
    return None if found is None else min(int(found[1]), MAX_WAIT_S)


async def _wait(store: JobStore, job: dict[str, Any], wait_s: int) -> dict[str, Any]:
    """Follow a job until it ends; its last known document. It is queued whatever happens: no error may hide that."""
    until = time.monotonic() + wait_s
    while job["status"] not in FINAL and (left := until - time.monotonic()) > 0:
        await asyncio.sleep(min(WAIT_POLL_S, left))
        with contextlib.suppress(StoreUnavailable):
            found = await run_in_threadpool(store.get, job["id"])
            if found is None:  # erased meanwhile
                break
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
