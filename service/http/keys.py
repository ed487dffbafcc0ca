"""API keys over HTTP, for who holds one with the scope `admin`. The first key is made by `dreamserve keys create`."""

from __future__ import annotations

import re
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response

from service.http.answers.base import answer
from service.http.answers.operation import KeyPage, KeyWithToken
from service.http.auth import Admin  # noqa: TC001 - FastAPI reads the annotations
from service.http.errors import Problem, problems
from service.http.requests import Store, read_json
from service.jobs.admission import read_as
from service.jobs.keys import KeyStore, NewKey

__all__ = ["router"]

router = APIRouter(tags=["keys"])

BODY: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/NewKey"}}},
    }
}


async def _key_id(key_id: str) -> str:
    """Let only what can be an id reach the database: anything else has never existed."""
    if not re.fullmatch("key_[0-9A-HJKMNP-TV-Z]{26}", key_id):
        raise _unknown(key_id)
    return key_id


async def _keys(store: Store) -> KeyStore:
    return KeyStore(store.database)


KeyId = Annotated[str, Depends(_key_id)]
Keys = Annotated[KeyStore, Depends(_keys)]


@router.post(
    "/v1/keys",
    status_code=201,
    openapi_extra=BODY,
    responses={
        201: answer(KeyWithToken, "Made; `token` is the key itself, and never shown again"),
        **problems(400, 413, 415, 422, 503),
    },
)
async def create_key(request: Request, keys: Keys, caller: Admin) -> Response:
    """Make a key; `{"name": "…"}` alone is enough.

    There is no `Idempotency-Key` here: a key is not kept, so no second answer could show it. When the answer got
    lost, revoke what was made and make another.
    """
    new = read_as(
        NewKey,
        await read_json(request),
        smallest='The smallest request is {"name": "my-application"}.',
        see="GET /docs shows the fields of a key.",
    )
    document, token = await run_in_threadpool(keys.create, new)
    return JSONResponse({**document, "token": token}, 201, {"Cache-Control": "no-store"})


@router.get("/v1/keys", responses={200: answer(KeyPage), **problems(503)})
def list_keys(keys: Keys, caller: Admin) -> dict[str, Any]:
    """List all keys of all owners, revoked ones too, the oldest first."""
    return {"items": keys.list_keys(), "next_cursor": None}


@router.delete("/v1/keys/{key_id}", status_code=204, responses=problems(404, 503))
def revoke_key(key_id: KeyId, keys: Keys, caller: Admin) -> None:
    """End a key at once; harmless to repeat. Its owner's jobs stay, and go on."""
    if keys.revoke(key_id) is None:
        raise _unknown(key_id)


def _unknown(key_id: str) -> Problem:
    suggestion = "GET /v1/keys lists what there is."
    return Problem(404, "unknown-key", f"There is no key {key_id!r} here.", suggestion=suggestion)
