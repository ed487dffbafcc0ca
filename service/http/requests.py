"""What every request goes through: an id for it, and the reading of a JSON body."""

from __future__ import annotations

import re
import uuid
from typing import TYPE_CHECKING, Annotated, Any, Final

from fastapi import Depends, Request
from starlette.datastructures import MutableHeaders

from service.http.errors import Problem, unknown
from service.jobs.objects import ObjectStore
from service.jobs.store import JobStore
from service.jobs.strict_json import parse_json
from service.settings import Settings

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = [
    "ArtifactId",
    "BatchId",
    "JobId",
    "Objects",
    "RequestId",
    "ServiceSettings",
    "Store",
    "read_json",
    "read_json_if_any",
]

MAX_BODY_BYTES: Final = 256 * 1024
"""Above the largest valid job request (two prompts and 16 pairs, every character escaped)."""


_ULID: Final = "[0-9A-HJKMNP-TV-Z]{26}"

# What routes depend on is asynchronous though it waits for nothing: the framework would send it to a thread else.


async def _job_id(job_id: str) -> str:
    """Let only what can be an id reach the database: anything else has never existed."""
    if not re.fullmatch(f"job_{_ULID}", job_id):
        raise unknown("job", job_id)
    return job_id


async def _artifact_id(artifact_id: str) -> str:
    if not re.fullmatch(f"art_{_ULID}", artifact_id):
        raise unknown("artifact", artifact_id)
    return artifact_id


async def _batch_id(batch_id: str) -> str:
    if not re.fullmatch(f"batch_{_ULID}", batch_id):
        raise unknown("batch", batch_id, "/v1/batches")
    return batch_id


async def _store(request: Request) -> JobStore:
    store: JobStore = request.app.state.store
    return store


async def _objects(request: Request) -> ObjectStore:
    objects: ObjectStore = request.app.state.objects
    return objects


async def _settings(request: Request) -> Settings:
    settings: Settings = request.app.state.settings
    return settings


JobId = Annotated[str, Depends(_job_id)]
ArtifactId = Annotated[str, Depends(_artifact_id)]
BatchId = Annotated[str, Depends(_batch_id)]
Store = Annotated[JobStore, Depends(_store)]
Objects = Annotated[ObjectStore, Depends(_objects)]
ServiceSettings = Annotated[Settings, Depends(_settings)]


class RequestId:
    """ASGI middleware: name every request, in `request.state.request_id` and the `Request-Id` header."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # Ours, not the caller's: it goes into the log, where a caller must not write.
        request_id = f"req_{uuid.uuid4().hex}"
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["Request-Id"] = request_id
            await send(message)

        await self._app(scope, receive, send_named)


async def read_json(request: Request, max_bytes: int = MAX_BODY_BYTES) -> Any:
    """Read the request's body as strict JSON. Raises a 400, 413 or 415 `Problem`."""
    _check_content_type(request)
    return _parse(await _read_bounded(request, max_bytes))


async def read_json_if_any(request: Request) -> Any:
    """Read a body that may be left out, which means an empty object. Raises a 400, 413 or 415 `Problem`."""
    body = await _read_bounded(request, MAX_BODY_BYTES)
    if not body:
        return {}
    _check_content_type(request)
    return _parse(body)


def _check_content_type(request: Request) -> None:
    found = request.headers.get("content-type", "")
    media_type = found.partition(";")[0].strip().lower()
    if media_type != "application/json" and not (
        media_type.startswith("application/") and media_type.endswith("+json")
    ):
        raise Problem(
            415,
            "unsupported-media-type",
            f"The body must be application/json; its Content-Type is {found or 'missing'!r}.",
            suggestion="Send the header Content-Type: application/json.",
        )


async def _read_bounded(request: Request, max_bytes: int) -> bytes:
    body = bytearray()
    async for block in request.stream():
        body += block
        if len(body) > max_bytes:
            raise Problem(
                413,
                "body-too-large",
                f"The body is longer than {max_bytes:,} bytes, the most that such a request can need.",
            )
    return bytes(body)


def _parse(body: bytes) -> Any:
    try:
        return parse_json(body)
    except ValueError as error:
        raise Problem(
            400,
            "malformed-json",
            f"The body is not JSON in UTF-8: {error}.",
            suggestion='Send an object such as {"prompt": "a red cube"}.',
        ) from None
