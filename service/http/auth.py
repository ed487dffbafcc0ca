"""Who is calling: every route that touches somebody's jobs takes a `Caller` and passes its `owner` on to the store.

Everything but the probes, the documentation and /metrics wants a key when authentication is on, which it is unless
the settings say otherwise; `build_api` sees to that for all routes, so that none is open by being forgotten.
"""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple

from fastapi import Depends, Request, Security
from fastapi.concurrency import run_in_threadpool
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer, SecurityScopes

from service.http.errors import Problem, problems
from service.jobs.keys import SCOPES, KeyStore, Scope
from service.jobs.tables import LOCAL_OWNER

if TYPE_CHECKING:
    from collections.abc import Mapping

    from service.http.rates import RateLimit
    from service.jobs.store import JobStore
    from service.settings import Settings

__all__ = ["Admin", "Caller", "Identity", "authenticate", "describe_security"]

_READING: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_BEARER: Final = HTTPBearer(
    scheme_name="ApiKey",
    bearerFormat="ds_…",
    description="An API key, made by `dreamserve keys create` or `POST /v1/keys`. GET needs its scope `read`, the "
    "other methods need `submit`, /v1/keys needs `admin`. A service on loopback asks for none by default.",
    auto_error=False,
)


class Caller(NamedTuple):
    """The authenticated sender of a request."""

    owner: str
    """Sees only its own jobs, batches and webhooks."""
    scopes: frozenset[Scope]
    """What it may do: `read`, `submit`, `admin`."""


_LOCAL: Final = Caller(LOCAL_OWNER, frozenset(SCOPES))


async def authenticate(
    request: Request, shown: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)]
) -> Caller:
    """Answer whose key came with the request; raise the 401 `Problem` without a valid one.

    A key that comes too often gets the 429 `Problem` before the database is asked. Where authentication is off,
    everybody is the local owner and may do everything.
    """
    # Not by dependencies of its own: the framework would resolve each of them anew for every request.
    store: JobStore = request.app.state.store
    settings: Settings = request.app.state.settings
    rates: RateLimit = request.app.state.rates
    if settings.auth == "off":
        return _LOCAL
    if shown is None:
        raise _unauthenticated("The request carries no API key.", "Bearer")
    if wait_s := rates.take(hashlib.sha256(shown.credentials.encode()).digest()):
        raise Problem(
            429,
            "rate-limited",
            f"This API key has sent more than {settings.rate_limit_per_s:g} requests a second.",
            suggestion="Slow down: follow jobs by their events, and submit many of them as a batch.",
            retry_after_s=math.ceil(wait_s),
        )
    holder = await run_in_threadpool(KeyStore(store.database).authenticate, shown.credentials)
    if holder is None:
        raise _unauthenticated("The API key is unknown or revoked.", 'Bearer error="invalid_token"')
    return Caller(holder.owner, holder.scopes)


async def permit(
    request: Request, wanted: SecurityScopes, caller: Annotated[Caller, Depends(authenticate)]
) -> Caller:
    """Answer the caller if its key has the scope that the route wants; raise the 403 `Problem` otherwise.

    A route that names none wants `read` where its method changes nothing, and else `submit`.
    """
    for scope in wanted.scopes or ["read" if request.method in _READING else "submit"]:
        if scope not in caller.scopes:
            raise Problem(
                403,
                "forbidden",
                f"This needs a key with the scope '{scope}', and yours has {_listed(caller.scopes)}.",
                suggestion=f"Ask the operator for a key with the scope '{scope}'.",
                headers={"WWW-Authenticate": f'Bearer error="insufficient_scope", scope="{scope}"'},
            )
    return caller


Identity = Annotated[Caller, Security(permit)]
"""Whoever may read (GET) or submit (any other method)."""
Admin = Annotated[Caller, Security(permit, scopes=["admin"])]
"""Whoever may make and revoke keys."""


def describe_security(document: dict[str, Any]) -> None:
    """Add the answers 401, 403 and 429 to every operation of an OpenAPI document that wants a key."""
    refusals: Mapping[str, Any] = {str(status): answer for status, answer in problems(401, 403, 429).items()}
    for path in document["paths"].values():
        for operation in path.values():
            if operation.get("security"):
                operation["responses"] |= refusals


def _unauthenticated(detail: str, challenge: str) -> Problem:
    return Problem(
        401,
        "unauthenticated",
        detail,
        suggestion="Send `Authorization: Bearer ds_…`; the operator makes keys with `dreamserve keys create`.",
        headers={"WWW-Authenticate": challenge},
    )


def _listed(scopes: frozenset[Scope]) -> str:
    return " and ".join(f"'{scope}'" for scope in SCOPES if scope in scopes)
