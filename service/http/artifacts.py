"""Artifacts over HTTP: describe one, and hand out its bytes or a short-lived URL of them."""

from __future__ import annotations

import base64
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Final
from urllib.parse import quote

from fastapi import APIRouter, Header, Request
from fastapi.responses import RedirectResponse, Response, StreamingResponse

from service.http.answers.base import answer
from service.http.answers.jobs import Artifact
from service.http.auth import Identity  # noqa: TC001 - FastAPI reads the annotations
from service.http.errors import MAKE_AGAIN, Problem, problems, unknown
from service.http.requests import ArtifactId, Objects, ServiceSettings, Store  # noqa: TC001 - FastAPI reads the annotations
from service.jobs.objects import ObjectMissing

if TYPE_CHECKING:
    from service.jobs.objects import ObjectStore

__all__ = ["router"]

router = APIRouter(tags=["artifacts"])

BYTE_RANGE: Final = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
"""One range; a request for several gets the whole, as RFC 9110 allows."""

ETags = Annotated[str | None, Header()]


@router.get("/v1/artifacts/{artifact_id}", responses={200: answer(Artifact), **problems(404, 503)})
def get_artifact(artifact_id: ArtifactId, store: Store, caller: Identity) -> dict[str, Any]:
    """Describe one artifact: kind, name, size, sha256."""
    return _find(store, artifact_id, caller.owner)[0]


@router.head("/v1/artifacts/{artifact_id}/content", include_in_schema=False)
@router.get(
    "/v1/artifacts/{artifact_id}/content",
    response_class=Response,
    responses={
        200: {"content": {"application/octet-stream": {}}, "description": "The bytes"},
        206: {"description": "The bytes of one `Range`"},
        302: {"description": "To a URL that the object store serves for some minutes"},
        304: {"description": "`If-None-Match` names what you have"},
        **problems(404, 410, 416, 503),
    },
)
def get_content(
    request: Request,
    artifact_id: ArtifactId,
    store: Store,
    objects: Objects,
    settings: ServiceSettings,
    caller: Identity,
    range_: Annotated[str | None, Header(alias="range")] = None,
    if_range: ETags = None,
    if_none_match: ETags = None,
) -> Response:
    """Fetch an artifact's bytes. `ETag` is the quoted sha256, `Repr-Digest` says it as RFC 9530 does."""
    artifact, key = _find(store, artifact_id, caller.owner)
    _check_not_expired(artifact)
    etag = f'"{artifact["sha256"]}"'
    size = artifact["size_bytes"]
    headers = _content_headers(artifact, etag)
    if _names(if_none_match, etag):
        return Response(status_code=304, headers={"ETag": etag})
    if request.method == "HEAD":
        headers["Content-Length"] = str(size)
        return Response(headers=headers, media_type=artifact["content_type"])
    url = objects.presign(key, settings.presign_s, artifact["name"])
    if url is not None:
        return RedirectResponse(url, 302, {"Cache-Control": "no-store", "ETag": etag})
    wanted = _wanted_range(range_ if if_range in (None, etag) else None, size)
    try:
        return _send(objects, key, artifact, wanted, headers)
    except ObjectMissing:
        raise _lost(artifact) from None


def _send(
    objects: ObjectStore,
    key: str,
    artifact: dict[str, Any],
    wanted: tuple[int, int] | None,
    headers: dict[str, str],
) -> Response:
    """Stream the wanted bytes, all of them when none are named."""
    size = artifact["size_bytes"]
    start, end = wanted or (0, size)
    headers["Content-Length"] = str(end - start)
    if wanted is not None:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    blocks = objects.open_range(key, start, end)
    return StreamingResponse(blocks, 200 if wanted is None else 206, headers, artifact["content_type"])


def _find(store: Store, artifact_id: str, owner: str) -> tuple[dict[str, Any], str]:
    found = store.artifact(artifact_id, owner)
    if found is None:
        raise unknown("artifact", artifact_id)
    return found


def _check_not_expired(artifact: dict[str, Any]) -> None:
    if datetime.fromisoformat(artifact["expires_at"]) <= datetime.now(UTC):
        raise Problem(
            410,
            "artifact-expired",
            f"{artifact['id']} was kept until {artifact['expires_at']} and is gone.",
            suggestion=MAKE_AGAIN,
        )


def _lost(artifact: dict[str, Any]) -> Problem:
    return Problem(
        500,
        "artifact-lost",
        f"The object store does not have the bytes of {artifact['id']}, though it should until "
        f"{artifact['expires_at']}.",
        suggestion="Tell the operator: somebody deleted it, or the service points at another store.",
    )


def _names(condition: str | None, etag: str) -> bool:
    """Tell whether an If-None-Match header lists `etag` (weak comparison) or is `*`."""
    listed = [each.strip().removeprefix("W/") for each in (condition or "").split(",")]
    return "*" in listed or etag in listed


def _wanted_range(header: str | None, size: int) -> tuple[int, int] | None:
    """Read a Range header as [start, end); None for the whole. Raises the 416 `Problem`."""
    found = BYTE_RANGE.fullmatch(header.replace(" ", "") if header else "")
    if found is None or found[0] == "bytes=-":
        return None
    first, last = found.groups()
    if first:
        start, end = int(first), min(int(last) + 1, size) if last else size
        if last and int(last) < int(first):
            return None  # not a range at all: RFC 9110 says to ignore it
    else:
        start, end = max(0, size - int(last)), size
    if start >= end:
        raise Problem(
            416,
            "range-not-satisfiable",
            f"The artifact has {size} bytes; {header!r} names none of them.",
            headers={"Content-Range": f"bytes */{size}"},
        )
    return start, end


def _content_headers(artifact: dict[str, Any], etag: str) -> dict[str, str]:
    digest = base64.b64encode(bytes.fromhex(artifact["sha256"])).decode()
    return {
        "ETag": etag,
        "Repr-Digest": f"sha-256=:{digest}:",
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, immutable, max-age=3600",
        "Content-Disposition": f"attachment; filename*=UTF-8''{quote(artifact['name'], safe='')}",
        "X-Content-Type-Options": "nosniff",
    }
