"""Who is calling: every route that touches somebody's jobs takes a `Caller` and passes its `owner` on to the store."""

from __future__ import annotations

from typing import Annotated, NamedTuple

from fastapi import Depends

from service.jobs.tables import LOCAL_OWNER

__all__ = ["Caller", "Identity"]


class Caller(NamedTuple):
    """The authenticated sender of a request."""

    owner: str
    """Sees only its own jobs, batches and webhooks."""
    scopes: frozenset[str]
    """What it may do: `read`, `submit`, `admin`."""


def identify() -> Caller:
    """Answer the caller of a request."""
    return Caller(LOCAL_OWNER, frozenset({"read", "submit", "admin"}))


Identity = Annotated[Caller, Depends(identify)]
