"""Event logs over HTTP, of jobs here: live as server-sent events, or a page of it as JSON."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Final

from fastapi import APIRouter, Header, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response
from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse, format_sse_event

from service.http.answers.base import answer
from service.http.answers.jobs import EventPage
from service.http.auth import Identity  # noqa: TC001 - FastAPI reads the annotations
from service.http.errors import Problem, problems, unknown
from service.http.requests import JobId, Store  # noqa: TC001 - FastAPI reads the annotations
from service.jobs.errors import StoreUnavailable
from service.jobs.events import EventType
from service.jobs.states import FINAL

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from service.jobs.events import Event
    from service.jobs.store import JobStore

__all__ = ["EventId", "EventLog", "LastEventId", "PageSize", "answer_log", "router"]

logger = logging.getLogger(__name__)
router = APIRouter(tags=["jobs"])

LAST_EVENTS: Final = frozenset({*(f"job.{state}" for state in FINAL), EventType.CHOSEN.value})
"""The ends of a job; and what comes later, when somebody wishes, is not waited for."""
POLL_S: Final = 0.5
"""How often a stream asks the store: live progress comes once a second."""
KEEPALIVE_S: Final = 5.0
"""Longest silence of a stream, so that proxies and clients can tell a quiet job from a dead connection."""
MAX_STREAM_S: Final = 900.0
"""A stream ends after this, and the client resumes it: replicas can be replaced without anybody waiting."""
MAX_STREAMS: Final = 200
"""Streams of one replica: each asks the store twice a second."""
MAX_EVENT_ID: Final = 2**31 - 1
"""PostgreSQL compares no greater ones with its integers."""

EventId = Annotated[int, Query(ge=0, le=MAX_EVENT_ID, description="Only events after the one with this id.")]
LastEventId = Annotated[
    int | None, Header(ge=0, le=MAX_EVENT_ID, description="As `cursor`; browsers send it.")
]
PageSize = Annotated[int, Query(ge=1, le=1_000, description="JSON only: events a page.")]


@router.get(
    "/v1/jobs/{job_id}/events",
    response_class=Response,
    responses={
        200: answer(EventPage) | {"content": {"text/event-stream": {}}},
        204: {"description": "The job has ended and the log holds nothing after this id"},
        **problems(404, 422, 429, 503),
    },
)
async def job_events(
    request: Request,
    job_id: JobId,
    store: Store,
    caller: Identity,
    cursor: EventId = 0,
    last_event_id: LastEventId = None,
    limit: PageSize = 1_000,
) -> Response:
    """Follow a job's log as server-sent events; with `Accept: application/json`, read a page of it.

    `id:` counts from 1 without gaps. After a broken connection send the last one as `Last-Event-ID`:
    nothing is lost and nothing repeated. The stream ends with the job's last event.
    """
    after = cursor if last_event_id is None else last_event_id
    log = EventLog(
        read=partial(store.events, job_id),
        has_ended=partial(_has_ended, store, job_id, caller.owner),
        last=LAST_EVENTS,
    )
    return await answer_log(request, log, after, limit)


def _has_ended(store: JobStore, job_id: str, owner: str) -> bool:
    job = store.get(job_id, owner)
    if job is None:
        raise unknown("job", job_id)
    return job["status"] in FINAL


@dataclass(frozen=True)
class EventLog:
    """A log that grows: of a job, or of a batch."""

    read: Callable[..., list[Event]]
    """Takes `after` and `limit`."""
    has_ended: Callable[[], bool]
    """Raises a 404 `Problem` where there is no such log for the caller."""
    last: frozenset[str]
    """Types of events after which nothing comes any more, unless there is something already."""


async def answer_log(request: Request, log: EventLog, after: int, limit: int) -> Response:
    """Answer a log as the request's `Accept` wishes: live, or as a page of JSON."""
    accept = request.headers.get("accept", "")
    if "application/json" in accept and "text/event-stream" not in accept:
        return await run_in_threadpool(_page, log, after, limit)
    if request.app.state.open_streams >= MAX_STREAMS:
        detail = f"{MAX_STREAMS} event streams are open here already."
        raise Problem(429, "too-many-streams", detail, suggestion="Poll the job instead.", retry_after_s=10)
    first, ended = await run_in_threadpool(_read_open, log, after)
    if ended and not first:
        return Response(status_code=204)
    return EventSourceResponse(
        _follow(request, log, after, first),
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


def _page(log: EventLog, after: int, limit: int) -> Response:
    log.has_ended()
    items = log.read(after=after, limit=limit)
    return JSONResponse(
        {"items": items, "next_cursor": str(items[-1]["id"]) if len(items) == limit else None}
    )


def _read_open(log: EventLog, after: int) -> tuple[list[Event], bool]:
    """Read what is there already, and whether the log had ended before that."""
    ended = log.has_ended()
    return log.read(after=after), ended


async def _follow(request: Request, log: EventLog, after: int, ready: list[Event]) -> AsyncIterator[bytes]:
    """Write events as they come, until the last one; ends early, to be resumed, when the store fails."""
    app = request.app.state
    app.open_streams += 1
    try:
        began = spoke = time.monotonic()
        while time.monotonic() - began < MAX_STREAM_S:
            for event in ready:
                yield _encode(event)
                after, spoke = event["id"], time.monotonic()
            if ready and ready[-1]["type"] in log.last:
                return
            if time.monotonic() - spoke >= KEEPALIVE_S:
                yield KEEPALIVE_COMMENT
                spoke = time.monotonic()
            await asyncio.sleep(POLL_S)
            ready = await run_in_threadpool(log.read, after=after)
    except StoreUnavailable as error:
        logger.warning("request %s: the stream ends early: %s", request.state.request_id, error)
    finally:
        app.open_streams -= 1


def _encode(event: Event) -> bytes:
    # ASCII JSON: some line-breaking characters of Unicode would end the field for some readers.
    data: Any = json.dumps(event)
    return format_sse_event(data_str=data, event=event["type"], id=str(event["id"]))
