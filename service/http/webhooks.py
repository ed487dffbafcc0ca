"""Webhooks over HTTP: endpoints of a caller, their secrets, and the log of what was delivered to them.

Messages, headers and signatures are those of Standard Webhooks (https://www.standardwebhooks.com).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

from fastapi import APIRouter, Depends, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response
from pydantic import AfterValidator, Field, WithJsonSchema

from service.http.answers.base import answer
from service.http.answers.webhooks import Delivery, DeliveryPage, Webhook, WebhookPage, WebhookWithSecret
from service.http.auth import Identity  # noqa: TC001 - FastAPI reads the annotations
from service.http.errors import Problem, problems, unknown
from service.http.jobs import IdempotencyKey, hash_body
from service.http.requests import ServiceSettings, Store, read_json
from service.jobs.admission import check_webhook_url, read_as
from service.jobs.knobs import Part
from service.jobs.webhook_targets import MAX_URL, URL_PATTERN
from service.jobs.webhooks import (
    DEFAULT_EVENT_TYPES,
    EVENT_TYPES,
    DefaultEndpoint,
    TooManyEndpoints,
    WebhookStore,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from service.jobs.documents import Document

__all__ = ["WebhookChange", "WebhookRequest", "router"]

router = APIRouter(tags=["webhooks"])
_T = TypeVar("_T")

_ULID: Final = "[0-9A-HJKMNP-TV-Z]{26}"


def _known(event_type: str) -> str:
    if event_type not in EVENT_TYPES:
        raise ValueError(f"there is no event {event_type[:60]!r}; expected one of {', '.join(EVENT_TYPES)}")
    return event_type


def _each_once(event_types: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(event_types))


Url = Annotated[
    str,
    Field(
        min_length=1,
        max_length=MAX_URL,
        description="https, and reachable over the internet.",
        json_schema_extra={"pattern": URL_PATTERN},
    ),
]
EventTypes = Annotated[
    tuple[
        Annotated[str, AfterValidator(_known), WithJsonSchema({"type": "string", "enum": list(EVENT_TYPES)})],
        ...,
    ],
    Field(strict=False, min_length=1, max_length=100),
    AfterValidator(_each_once),
]


class WebhookRequest(Part):
    """A new webhook."""

    url: Url
    event_types: EventTypes = Field(DEFAULT_EVENT_TYPES, description="What to send.")


class WebhookChange(Part):
    """What to change of a webhook; what is left out or null stays."""

    url: Url | None = None
    event_types: EventTypes | None = None
    enabled: bool | None = Field(
        None, description="false: send nothing until further notice; true: also what has waited."
    )


async def _webhook_id(webhook_id: str) -> str:
    """Let only what can be an id reach the database: anything else has never existed."""
    if not re.fullmatch(f"whk_{_ULID}", webhook_id):
        raise _unknown_webhook(webhook_id)
    return webhook_id


async def _message_id(message_id: str) -> str:
    if not re.fullmatch(f"msg_{_ULID}", message_id):
        raise _unknown_message(message_id)
    return message_id


async def _webhooks(store: Store) -> WebhookStore:
    return WebhookStore(store.database)


WebhookId = Annotated[str, Depends(_webhook_id)]
MessageId = Annotated[str, Depends(_message_id)]
Webhooks = Annotated[WebhookStore, Depends(_webhooks)]
Limit = Annotated[int, Query(ge=1, le=100, description="Entries a page.")]


def _cursor(prefix: str) -> Any:
    description = "`next_cursor` of the page before."
    return Query(pattern=f"^{prefix}_[0-9A-Z]{{26}}$", description=description)


def _body(model: type[Part]) -> dict[str, Any]:
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


@router.post(
    "/v1/webhooks",
    status_code=201,
    openapi_extra=_body(WebhookRequest),
    responses={
        201: answer(WebhookWithSecret, "Made; `secret` verifies its messages, keep it"),
        **problems(400, 409, 413, 415, 422, 503),
    },
)
async def create_webhook(
    request: Request,
    webhooks: Webhooks,
    settings: ServiceSettings,
    caller: Identity,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Have events of all your jobs and batches sent to a URL. The answer shows the secret, and nothing later does."""
    body = await read_json(request)
    wanted = read_as(
        WebhookRequest,
        body,
        smallest='The smallest request is {"url": "https://…"}.',
        see="GET /docs shows what a webhook may have.",
    )
    check_webhook_url(wanted.url, settings, "/url")
    try:
        made = await run_in_threadpool(
            webhooks.create,
            caller.owner,
            wanted.url,
            wanted.event_types,
            idempotency_key=idempotency_key,
            body_hash=None if idempotency_key is None else hash_body(body),
        )
    except TooManyEndpoints as error:
        suggestion = "Delete one, or change the URL of one."
        raise Problem(409, "too-many-webhooks", str(error), suggestion=suggestion) from None
    return JSONResponse(made, 201, {"Location": f"/v1/webhooks/{made['id']}", "Cache-Control": "no-store"})


@router.get("/v1/webhooks", responses={200: answer(WebhookPage), **problems(422, 503)})
def list_webhooks(
    webhooks: Webhooks,
    caller: Identity,
    cursor: Annotated[str | None, _cursor("whk")] = None,
    limit: Limit = 50,
) -> dict[str, Any]:
    """List your webhooks, newest first."""
    items, next_cursor = webhooks.list_endpoints(caller.owner, limit=limit, cursor=cursor)
    return {"items": items, "next_cursor": next_cursor}


@router.post(
    "/v1/webhooks/default",
    responses={200: answer(WebhookWithSecret, "The default webhook with its secret"), **problems(503)},
)
def default_webhook(webhooks: Webhooks, caller: Identity) -> Response:
    """Show the webhook that signs what goes to the `webhook` URLs of single jobs, with its secret.

    It is there for everybody and has no URL of its own; its `id` rotates the secret and shows the deliveries.
    POST, because the secret is not for keys that may only read.
    """
    return _secret(webhooks.default(caller.owner))


@router.get("/v1/webhooks/{webhook_id}", responses={200: answer(Webhook), **problems(404, 503)})
def get_webhook(webhook_id: WebhookId, webhooks: Webhooks, caller: Identity) -> dict[str, Any]:
    """Show one webhook, without its secret."""
    return _found(webhooks.get(webhook_id, caller.owner), webhook_id)


@router.patch(
    "/v1/webhooks/{webhook_id}",
    openapi_extra=_body(WebhookChange),
    responses={
        200: answer(Webhook, "Changed"),
        **problems(400, 404, 409, 413, 415, 422, 503),
    },
)
async def change_webhook(
    request: Request, webhook_id: WebhookId, webhooks: Webhooks, settings: ServiceSettings, caller: Identity
) -> dict[str, Any]:
    """Change URL or events, disable or enable; what waits to be sent goes to the new URL."""
    change = read_as(
        WebhookChange,
        await read_json(request),
        smallest='Send an object such as {"enabled": true}.',
        see="GET /docs shows what can be changed.",
    )
    if change.url is not None:
        check_webhook_url(change.url, settings, "/url")

    def update() -> Document | None:
        return webhooks.update(
            webhook_id,
            caller.owner,
            url=change.url,
            event_types=change.event_types,
            enabled=change.enabled,
        )

    return _found(await run_in_threadpool(_not_default, update), webhook_id)


@router.delete("/v1/webhooks/{webhook_id}", status_code=204, responses=problems(404, 409, 503))
def delete_webhook(webhook_id: WebhookId, webhooks: Webhooks, caller: Identity) -> None:
    """Forget a webhook, its log, and what waits to be sent to it."""
    if not _not_default(lambda: webhooks.delete(webhook_id, caller.owner)):
        raise _unknown_webhook(webhook_id)


@router.post(
    "/v1/webhooks/{webhook_id}/rotate",
    responses={200: answer(WebhookWithSecret, "The webhook with its new secret"), **problems(404, 503)},
)
def rotate_secret(webhook_id: WebhookId, webhooks: Webhooks, caller: Identity) -> Response:
    """Draw a new secret; for 24 hours messages carry a signature with the old one too."""
    return _secret(_found(webhooks.rotate(webhook_id, caller.owner), webhook_id))


@router.post(
    "/v1/webhooks/{webhook_id}/test",
    status_code=202,
    responses={202: answer(Delivery, "To be sent"), **problems(404, 409, 503)},
)
def test_webhook(webhook_id: WebhookId, webhooks: Webhooks, caller: Identity) -> Response:
    """Send a message of type `webhook.test`; the deliveries show what came of it."""
    message = _not_default(lambda: webhooks.test(webhook_id, caller.owner))
    return JSONResponse(_found(message, webhook_id), 202)


@router.get(
    "/v1/webhooks/{webhook_id}/deliveries",
    responses={200: answer(DeliveryPage), **problems(404, 422, 503)},
)
def list_deliveries(
    webhook_id: WebhookId,
    webhooks: Webhooks,
    caller: Identity,
    cursor: Annotated[str | None, _cursor("msg")] = None,
    limit: Limit = 50,
) -> dict[str, Any]:
    """List messages of the last 30 days, newest first: each with its payload and every try to send it.

    `status` is `waiting` (see `next_try_at`), `delivered` or `failed` (given up). A number that is missing among
    the tries belongs to a sender that died before it could write down what came of it.
    """
    found = webhooks.deliveries(webhook_id, caller.owner, limit=limit, cursor=cursor)
    if found is None:
        raise _unknown_webhook(webhook_id)
    return {"items": found[0], "next_cursor": found[1]}


@router.post(
    "/v1/webhooks/{webhook_id}/deliveries/{message_id}/replay",
    status_code=202,
    responses={202: answer(Delivery, "To be sent again"), **problems(404, 503)},
)
def replay_message(
    webhook_id: WebhookId, message_id: MessageId, webhooks: Webhooks, caller: Identity
) -> Response:
    """Send a message again, with the same `webhook-id` and the whole schedule of tries."""
    message = webhooks.replay(webhook_id, message_id, caller.owner)
    if message is None:
        raise _unknown_message(message_id)
    return JSONResponse(message, 202)


def _secret(document: Document) -> Response:
    """Answer with a secret, which no cache may keep."""
    return JSONResponse(document, headers={"Cache-Control": "no-store"})


def _found(document: Document | None, webhook_id: str) -> Document:
    if document is None:
        raise _unknown_webhook(webhook_id)
    return document


def _not_default(act: Callable[[], _T]) -> _T:
    """Answer 409 when the default webhook cannot do what was asked."""
    try:
        return act()
    except DefaultEndpoint as error:
        suggestion = "POST /v1/webhooks makes one with a URL."
        raise Problem(409, "default-webhook", str(error), suggestion=suggestion) from None


def _unknown_webhook(webhook_id: str) -> Problem:
    return unknown("webhook", webhook_id, "/v1/webhooks")


def _unknown_message(message_id: str) -> Problem:
    return unknown("delivery", message_id, "/v1/webhooks/{id}/deliveries")
