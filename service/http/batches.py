"""Batches over HTTP: make one of lines or of a document, look, steer, read results while it runs."""

from __future__ import annotations

import contextlib
import hashlib
import json
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

from fastapi import APIRouter, Depends, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response, StreamingResponse

from service.http.answers.base import answer
from service.http.answers.batches import Batch, BatchPage, BatchResultPage
from service.http.answers.jobs import EventPage
from service.http.auth import Identity  # noqa: TC001 - FastAPI reads the annotations
from service.http.errors import Problem, invalid, problems, unknown
from service.http.jobs import IdempotencyKey, hash_body
from service.http.requests import BatchId, ServiceSettings, Store, read_json
from service.http.stream import EventId, EventLog, LastEventId, PageSize, answer_log
from service.jobs.admission import admit
from service.jobs.batch_input import MAX_ITEMS, MAX_PARALLEL, plan_of, split_request
from service.jobs.batch_intake import Intake
from service.jobs.batch_items import ItemState  # noqa: TC001 - FastAPI reads the annotations
from service.jobs.batch_progress import ENDED, BatchState
from service.jobs.batches import BatchStore
from service.jobs.capabilities import embedded_capabilities
from service.jobs.errors import StoreUnavailable
from service.jobs.strict_json import parse_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from service.jobs.documents import Document

__all__ = ["Batches", "router"]

router = APIRouter(tags=["batches"])
_T = TypeVar("_T")

LINES_TYPES: Final = ("application/jsonl", "application/x-ndjson", "application/x-jsonlines")
MAX_DOCUMENT_BYTES: Final = 4 * 1024 * 1024
"""Of a batch in one JSON document, which is held in memory as a whole."""
MAX_UPLOAD_BYTES: Final = 256 * 1024 * 1024
"""Of an upload of lines: 100,000 of 2.6 KB each, of which no more than a chunk is in memory."""
MAX_PARAMETER: Final = 16 * 1024
"""Characters of an option in the URL: servers and proxies cut longer ones."""
RESULTS_AT_ONCE: Final = 500
"""Results that a stream reads in one transaction."""

_LINES_SCHEMA: Final = {
    "type": "string",
    "description": 'One BatchLine a line: {"custom_id": "…", "body": {"prompt": "…"}}. Options go into the URL: '
    "`max_parallel`, and as JSON objects `defaults`, `sweep` and `metadata`, each as in BatchRequest.",
}
REQUEST_BODY: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": {"$ref": "#/components/schemas/BatchRequest"}},
            **{name: {"schema": _LINES_SCHEMA} for name in LINES_TYPES},
        },
    }
}


async def _batches(store: Store, settings: ServiceSettings) -> BatchStore:
    return BatchStore(store.database, max_queued=settings.max_queued)


Batches = Annotated[BatchStore, Depends(_batches)]
# Told by `_LINES_SCHEMA`: a parameter of the document would be one of the JSON body too, where these are refused.
Option = Annotated[str | None, Query(max_length=MAX_PARAMETER, include_in_schema=False)]
MaxParallel = Annotated[int | None, Query(ge=1, le=MAX_PARALLEL, include_in_schema=False)]
Limit = Annotated[int, Query(ge=1, le=100, description="Batches a page.")]
Cursor = Annotated[
    str | None, Query(pattern=r"^batch_[0-9A-Z]{26}$", description="`next_cursor` of the page before.")
]
ResultsLimit = Annotated[int, Query(ge=1, le=1_000, description="JSON only: results a page.")]
ResultsCursor = Annotated[
    int, Query(ge=-1, le=MAX_ITEMS, description="Only results behind this number: `next_cursor`.")
]
STEERED: Final[dict[int | str, dict[str, Any]]] = {
    200: answer(Batch),
    **problems(404, 409, 503),
}


@router.post(
    "/v1/batches",
    status_code=202,
    openapi_extra=REQUEST_BODY,
    responses={
        202: answer(Batch, "Accepted; `Location` is the batch"),
        **problems(400, 409, 413, 415, 422, 429, 503),
    },
)
async def submit_batch(
    request: Request,
    store: Store,
    batches: Batches,
    settings: ServiceSettings,
    caller: Identity,
    idempotency_key: IdempotencyKey = None,
    defaults: Option = None,
    sweep: Option = None,
    metadata: Option = None,
    max_parallel: MaxParallel = None,
) -> Response:
    """Make a batch of a JSON document with `items`, or of an upload of lines with its options in the URL.

    Lines that are not valid are kept, with what is wrong, and do not keep the others from running; a batch without a
    valid line, or with one custom_id on two lines, is refused. Up to 100,000 jobs, sweep included.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    document: Any = None
    if media_type in LINES_TYPES:
        texts = {"defaults": defaults, "sweep": sweep, "metadata": metadata}
        options = _options_in_url(request, texts, max_parallel)
    else:
        _options_in_url(request, {}, None)
        document = await _read_document(request)
        options, items = split_request(document)
    can = await run_in_threadpool(store.capabilities) or embedded_capabilities()
    checked = partial(admit, capabilities=can, settings=settings)
    intake = await run_in_threadpool(Intake, batches, caller.owner, plan_of(options), checked)
    try:
        if document is None:
            body_hash = await _upload(request, intake, options)
        else:
            body_hash = hash_body(document)
            await run_in_threadpool(intake.take_all, items)
        batch, _ = await run_in_threadpool(intake.accept, idempotency_key, body_hash)
    finally:
        await run_in_threadpool(intake.close)
    with contextlib.suppress(StoreUnavailable):  # it is accepted: what is put off here, a chore does
        await run_in_threadpool(batches.advance)
    return JSONResponse(batch, 202, {"Location": f"/v1/batches/{batch['id']}"})


@router.get("/v1/batches", responses={200: answer(BatchPage), **problems(422, 503)})
def list_batches(
    batches: Batches, caller: Identity, cursor: Cursor = None, limit: Limit = 50
) -> dict[str, Any]:
    """List batches, newest first."""
    found, next_cursor = batches.list_batches(caller.owner, limit=limit, cursor=cursor)
    return {"items": found, "next_cursor": next_cursor}


@router.get("/v1/batches/{batch_id}", responses={200: answer(Batch), **problems(404, 503)})
def get_batch(batch_id: BatchId, batches: Batches, caller: Identity) -> dict[str, Any]:
    """Tell how far a batch is; its counts always add up to `total`."""
    return _found(batch_id, batches.get(batch_id, caller.owner))


@router.post("/v1/batches/{batch_id}/pause", responses=STEERED)
def pause_batch(batch_id: BatchId, batches: Batches, caller: Identity) -> dict[str, Any]:
    """Start no more jobs of a batch; what runs runs on. Waiting jobs' deadlines stand still."""
    return _found(batch_id, batches.pause(batch_id, caller.owner))


@router.post("/v1/batches/{batch_id}/resume", responses=STEERED)
def resume_batch(batch_id: BatchId, batches: Batches, caller: Identity) -> dict[str, Any]:
    """Go on with a paused batch."""
    return _found(batch_id, batches.resume(batch_id, caller.owner))


@router.post(
    "/v1/batches/{batch_id}/cancel",
    status_code=202,
    responses={
        202: answer(Batch, "Its running jobs are being told"),
        200: answer(Batch, "Ended"),
        **problems(404, 503),
    },
)
def cancel_batch(batch_id: BatchId, batches: Batches, caller: Identity) -> Response:
    """End a batch: 200 when it has ended, 202 while running jobs are being told; harmless to repeat."""
    batch = _found(batch_id, batches.cancel(batch_id, caller.owner))
    return JSONResponse(batch, 202 if batch["status"] == BatchState.CANCELING else 200)


@router.post(
    "/v1/batches/{batch_id}/retry-failed",
    status_code=202,
    responses={202: answer(Batch), **problems(404, 409, 503)},
)
def retry_failed(batch_id: BatchId, batches: Batches, caller: Identity) -> dict[str, Any]:
    """Make a new job, with `retry_of`, for each line whose job has failed; its counts are of the newest ones."""
    batch = _found(batch_id, batches.retry_failed(batch_id, caller.owner))
    batches.advance()
    return batch


@router.get(
    "/v1/batches/{batch_id}/results",
    response_class=Response,
    responses={
        200: answer(BatchResultPage) | {"content": {"application/jsonl": {"schema": {"type": "string"}}}},
        **problems(404, 422, 503),
    },
)
def batch_results(
    request: Request,
    batch_id: BatchId,
    batches: Batches,
    caller: Identity,
    status: ItemState | None = None,
    cursor: ResultsCursor = -1,
    limit: ResultsLimit = 100,
) -> Response:
    """Read what became of each line, also while the batch runs: a page, or with `Accept: application/jsonl` all."""
    read = partial(batches.results, batch_id, caller.owner, state=status)
    if any(name in request.headers.get("accept", "") for name in LINES_TYPES):
        first = _found(batch_id, read(after=cursor, limit=RESULTS_AT_ONCE))
        return StreamingResponse(_result_lines(read, first), media_type=LINES_TYPES[0])
    items, last = _found(batch_id, read(after=cursor, limit=limit))
    return JSONResponse({"items": items, "next_cursor": None if last is None else str(last)})


@router.get(
    "/v1/batches/{batch_id}/events",
    response_class=Response,
    responses={
        200: answer(EventPage) | {"content": {"text/event-stream": {}}},
        204: {"description": "The batch has ended and the log holds nothing after this id"},
        **problems(404, 422, 429, 503),
    },
)
async def batch_events(
    request: Request,
    batch_id: BatchId,
    batches: Batches,
    caller: Identity,
    cursor: EventId = 0,
    last_event_id: LastEventId = None,
    limit: PageSize = 1_000,
) -> Response:
    """Follow a batch's log as a job's: `batch.progress`, at most one a second, and `batch.completed` at its end."""
    after = cursor if last_event_id is None else last_event_id
    log = EventLog(
        read=lambda after, limit=1_000: (
            batches.events(batch_id, caller.owner, after=after, limit=limit) or []
        ),
        has_ended=lambda: _found(batch_id, batches.get(batch_id, caller.owner))["status"] in ENDED,
        last=frozenset({"batch.completed"}),
    )
    return await answer_log(request, log, after, limit)


def _found(batch_id: str, answer: _T | None) -> _T:
    if answer is None:
        raise unknown("batch", batch_id, "/v1/batches")
    return answer


def _options_in_url(
    request: Request, texts: dict[str, str | None], max_parallel: int | None
) -> dict[str, Any]:
    """Read an upload's options; a parameter that nobody reads is refused, as a typo would cost GPU hours."""
    for name in request.query_params:
        if name not in (*texts, "max_parallel") or not texts:
            where = "with a JSON document, options go into it" if not texts else "no such parameter"
            raise invalid(f"/{name}", where)
    options: dict[str, Any] = {} if max_parallel is None else {"max_parallel": max_parallel}
    for name, text in texts.items():
        if text is None:
            continue
        try:
            options[name] = parse_json(text.encode())
        except ValueError as error:
            raise invalid(f"/{name}", f"this is not JSON: {error}") from None
    return options


async def _read_document(request: Request) -> Any:
    try:
        return await read_json(request, MAX_DOCUMENT_BYTES)
    except Problem as problem:
        if problem.status_code == 413:
            problem.suggestion = f"Upload larger batches as {LINES_TYPES[0]}."
        elif problem.status_code == 415:
            problem.suggestion = f"Send application/json, or lines as {LINES_TYPES[0]}."
        raise


async def _upload(request: Request, intake: Intake, options: dict[str, Any]) -> str:
    """Take lines in while they arrive; the hash of all that was said."""
    digest, size = hashlib.sha256(json.dumps(options, sort_keys=True).encode() + b"\n"), 0
    async for block in request.stream():
        size += len(block)
        if size > MAX_UPLOAD_BYTES:
            detail = f"The upload is longer than {MAX_UPLOAD_BYTES:,} bytes."
            raise Problem(413, "body-too-large", detail, suggestion="Split it into several batches.")
        digest.update(block)
        await run_in_threadpool(intake.feed, block)
    await run_in_threadpool(intake.end_lines)
    return digest.hexdigest()


def _result_lines(
    read: Callable[..., tuple[list[Document], int | None] | None],
    page: tuple[list[Document], int | None] | None,
) -> Iterator[bytes]:
    while page is not None:
        items, last = page
        # ASCII JSON: a line break of Unicode within a text would end the line for some readers.
        yield b"".join(json.dumps(item).encode() + b"\n" for item in items)
        page = None if last is None else read(after=last, limit=RESULTS_AT_ONCE)
