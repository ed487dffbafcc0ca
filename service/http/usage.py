"""What the service has to do, and what it has done for whom: the queue and the usage over HTTP."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query

from service.http.auth import Identity  # noqa: TC001 - FastAPI reads the annotations
from service.http.errors import Problem, invalid, problems
from service.http.requests import ServiceSettings, Store  # noqa: TC001 - FastAPI reads the annotations
from service.jobs.overview import Overview

__all__ = ["router"]

router = APIRouter(tags=["operation"])

DEFAULT_DAYS: Final = 30
MAX_DAYS: Final = 366
MIN_DATE: Final = date(2020, 1, 1)
MAX_DATE: Final = date(9_999, 12, 30)

Day = Annotated[date | None, Query(description="UTC, such as 2026-01-31; both ends are included.")]


@router.get("/v1/queue", responses=problems(503))
def get_queue(store: Store, settings: ServiceSettings, caller: Identity) -> dict[str, Any]:
    """Tell how much waits by priority, what works on it, whether the fleet is changing, and the oldest wait.

    Counts are those of the whole service, `yours` those of the caller.
    """
    queue = Overview(store.database).queue(caller.owner)
    queue["capacity"]["max_queued"] = settings.max_queued
    return queue


@router.get("/v1/usage", responses=problems(403, 422, 503))
def get_usage(
    store: Store,
    caller: Identity,
    since: Day = None,
    until: Day = None,
    all_owners: Annotated[
        bool, Query(description="For operators: everybody's. Needs scope `admin`.")
    ] = False,
) -> dict[str, Any]:
    """List worker seconds and ended jobs by day and owner, newest day first; the last 30 days by default.

    A worker second is one second for which an attempt held a worker, and with it a GPU or its share of one.
    """
    if all_owners and "admin" not in caller.scopes:
        raise Problem(
            403,
            "forbidden",
            "The usage of all owners is for keys with the scope 'admin'.",
            suggestion="Leave all_owners out for your own.",
        )
    last = until or datetime.now(UTC).date()
    first = since or max(MIN_DATE, last - timedelta(days=DEFAULT_DAYS - 1))
    _check_days(first, last)
    items = Overview(store.database).usage(None if all_owners else caller.owner, first, last)
    return {"items": items, "next_cursor": None}


def _check_days(first: date, last: date) -> None:
    for name, day in (("since", first), ("until", last)):
        if not MIN_DATE <= day <= MAX_DATE:
            raise invalid(f"/{name}", f"found {day}, expected a day between {MIN_DATE} and {MAX_DATE}")
    if last < first:
        raise invalid("/since", f"found {first}, which is after {last}")
    if (last - first).days >= MAX_DAYS:
        raise invalid("/since", f"{first} to {last} is more than {MAX_DAYS} days; ask for less at a time")
