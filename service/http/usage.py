"""What the service has to do, and what it has done for whom: the queue and the usage over HTTP."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query
from pydantic import BeforeValidator

from service.http.answers.base import answer
from service.http.answers.operation import Queue, UsagePage
from service.http.auth import Identity  # noqa: TC001 - FastAPI reads the annotations
from service.http.errors import Problem, problems
from service.http.requests import ServiceSettings, Store  # noqa: TC001 - FastAPI reads the annotations
from service.jobs.overview import Overview

__all__ = ["router"]

router = APIRouter(tags=["operation"])

DEFAULT_DAYS: Final = 30
DAYS_A_PAGE: Final = 366
FIRST_DAY: Final = date(2020, 1, 1)
"""Nothing was used before."""


def _as_day(value: object) -> object:
    """Let only ISO's days through: pydantic also reads a number of seconds, which nobody means here."""
    if isinstance(value, str) and not re.fullmatch(r"\d{4}-\d{2}-\d{2}", value):
        raise ValueError(f"found {value[:40]!r}, expected a day such as 2026-01-31")
    return value


_Day = Annotated[date | None, BeforeValidator(_as_day)]
Day = Annotated[_Day, Query(description="UTC, such as 2026-01-31; both ends are included.")]
PageEnd = Annotated[_Day, Query(description="`next_cursor` of the page before.")]


@router.get("/v1/queue", responses={200: answer(Queue), **problems(503)})
def get_queue(store: Store, settings: ServiceSettings, caller: Identity) -> dict[str, Any]:
    """Tell how much waits by priority, what works on it, whether the fleet is changing, and the oldest wait.

    Counts are those of the whole service, `yours` those of the caller.
    """
    queue = Overview(store.database).queue(caller.owner)
    queue["capacity"]["max_queued"] = settings.max_queued
    return queue


@router.get("/v1/usage", responses={200: answer(UsagePage), **problems(403, 422, 503)})
def get_usage(
    store: Store,
    caller: Identity,
    since: Day = None,
    until: Day = None,
    cursor: PageEnd = None,
    all_owners: Annotated[
        bool, Query(description="For operators: everybody's. Needs scope `admin`.")
    ] = False,
) -> dict[str, Any]:
    """List worker seconds and ended jobs by day and owner, newest day first; the last 30 days by default.

    A worker second is one second for which an attempt held a worker, and with it a GPU or its share of one.
    A page has up to 366 days.
    """
    if all_owners and "admin" not in caller.scopes:
        raise Problem(
            403,
            "forbidden",
            "The usage of all owners is for keys with the scope 'admin'.",
            suggestion="Leave all_owners out for your own.",
        )
    today = datetime.now(UTC).date()
    ends = max(min(until or today, today), FIRST_DAY - timedelta(days=1))
    first = max(since or ends - timedelta(days=DEFAULT_DAYS - 1), FIRST_DAY)
    last = max(min(ends, cursor or ends), FIRST_DAY - timedelta(days=1))
    begins = max(first, last - timedelta(days=DAYS_A_PAGE - 1))
    items = Overview(store.database).usage(None if all_owners else caller.owner, begins, last)
    return {"items": items, "next_cursor": str(begins - timedelta(days=1)) if begins > first else None}
