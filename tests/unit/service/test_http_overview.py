"""Estimates, the queue and the usage over HTTP."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from service.jobs import tables
from service.jobs.states import FailureCode, Stage
from service.jobs.tables import LOCAL_OWNER

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx

    from service.jobs.states import Lease
    from service.jobs.store import JobStore

PROMPT = "a red cube on top of a blue cylinder"


def submit(http: httpx.Client, **fields: Any) -> str:
    answer = http.post("/generate", json={"prompt": PROMPT, **fields})
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def claim(store: JobStore) -> Lease:
    lease = store.claim("worker")
    assert lease is not None
    return lease


def estimate(http: httpx.Client, **fields: Any) -> dict[str, Any]:
    answer = http.post("/v1/estimates", json={"prompt": PROMPT, **fields})
    assert answer.status_code == 200, answer.text
    document: dict[str, Any] = answer.json()
    return document


# ---- estimates


def test_an_estimate_without_experience_says_so_and_creates_nothing(http: httpx.Client) -> None:
    found = estimate(http, method="sds", steps=40)
    assert (found["run_s"], found["total_s"]) == (None, None)
    assert "no job with method 'sds' on prior 'embedded' at effort 'full'" in found["reason"]
    assert found["queue"]["position"] == 1
    assert found["spec"]["steps"] == 40
    assert found["spec"]["prompt"] == PROMPT
    assert http.get("/v1/jobs").json()["items"] == []
    assert "jobs_submitted_total 0" in http.get("/metrics").text


def test_an_estimate_comes_from_finished_jobs_of_the_same_kind(
    http: httpx.Client, store: JobStore, finish: Callable[[Lease], None]
) -> None:
    store.heartbeat("worker", slots=1)
    for method in ("sds", "psd"):
        submit(http, method=method, steps=100)
        finish(claim(store))
    alike = estimate(http, method="sds", steps=100)
    assert alike["based_on"] == 1
    assert alike["reason"] is None
    low, high = alike["run_s"]
    assert 0 <= low <= high < 60
    assert alike["total_s"] == [
        pytest.approx(wait + run, abs=0.11)
        for wait, run in zip(alike["queue"]["eta_s"], (low, high), strict=True)
    ]
    assert estimate(http, method="dreamdpo")["run_s"] is None
    assert estimate(http, method="sds", effort="draft")["run_s"] is None


def test_an_estimates_place_is_behind_what_waits_and_by_its_priority(http: httpx.Client) -> None:
    for _ in range(2):
        submit(http)
    assert estimate(http)["queue"]["position"] == 3
    assert estimate(http, priority="high")["queue"]["position"] == 1
    assert estimate(http, priority="low")["queue"]["position"] == 3


def test_an_estimate_needs_no_place_in_a_full_queue(http: httpx.Client) -> None:
    for _ in range(3):
        submit(http)
    assert http.post("/generate", json={"prompt": PROMPT}).status_code == 429
    assert estimate(http)["queue"]["position"] == 4


@pytest.mark.parametrize(
    ("body", "pointer"), [({"prompt": ""}, "/prompt"), ({"prompt": PROMPT, "stepz": 1}, "/stepz"), ([], "")]
)
def test_an_estimate_refuses_what_a_submission_refuses(http: httpx.Client, body: Any, pointer: str) -> None:
    answer = http.post("/v1/estimates", json=body)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == pointer


# ---- the queue


def test_the_queue_tells_depth_capacity_and_the_oldest_wait(http: httpx.Client, store: JobStore) -> None:
    empty = http.get("/v1/queue").json()
    assert empty["depth"] == {"high": 0, "normal": 0, "low": 0, "total": 0}
    assert (empty["oldest_wait_s"], empty["scale"]["state"]) == (None, "empty")
    for priority in ("high", "normal", "low"):
        submit(http, priority=priority)
    assert http.get("/v1/queue").json()["scale"]["state"] == "scaling_up"
    store.heartbeat("worker", state="busy", slots=2, busy_slots=1)
    claim(store)
    found = http.get("/v1/queue").json()
    assert found["depth"] == {"high": 0, "normal": 1, "low": 1, "total": 2}
    assert found["running"] == 1
    assert found["yours"] == {"queued": 2, "running": 1}
    assert found["oldest_wait_s"] >= 0
    assert found["scale"]["state"] == "steady"
    assert found["capacity"]["slots"] == 2
    assert found["capacity"]["busy_slots"] == 1
    assert found["capacity"]["workers"] == {"starting": 0, "idle": 0, "busy": 1, "draining": 0}
    assert found["capacity"]["max_queued"] > 0


# ---- the usage


def test_usage_counts_worker_seconds_and_ends_by_day(
    http: httpx.Client, store: JobStore, finish: Callable[[Lease], None]
) -> None:
    assert http.get("/v1/usage").json() == {"items": [], "next_cursor": None}
    submit(http)
    first = claim(store)
    store.report(first, stage=Stage.COARSE, step=3, steps_total=300, worker_s=2.0)
    store.report(first, stage=Stage.COARSE, step=5, steps_total=300, worker_s=5.0)
    finish(first)
    submit(http)
    second = claim(store)
    store.report(second, stage=Stage.COARSE, step=3, steps_total=300, worker_s=1.5)
    store.fail(second, FailureCode.NAN_DIVERGENCE, "at step 3")
    http.post(f"/v1/jobs/{submit(http)}/cancel")
    (today,) = http.get("/v1/usage").json()["items"]
    assert today["day"] == datetime.now(UTC).date().isoformat()
    assert today["worker_s"] == 6.5
    assert today["jobs"] == {"succeeded": 1, "failed": 1, "canceled": 1}


def test_usage_is_that_of_the_days_asked_for(
    http: httpx.Client, store: JobStore, finish: Callable[[Lease], None]
) -> None:
    submit(http)
    finish(claim(store))
    day = datetime.now(UTC).date()

    def days(since: int, until: int) -> list[str]:
        params = {name: str(day + timedelta(days=n)) for name, n in (("since", since), ("until", until))}
        return [item["day"] for item in http.get("/v1/usage", params=params).json()["items"]]

    assert days(-1, 0) == days(0, 0) == days(0, 1) == [str(day)]
    assert days(-2, -1) == days(1, 2) == []


@pytest.mark.parametrize(
    ("query", "pointer"),
    [
        ("since=yesterday", "/since"),
        ("since=2026-02-30", "/since"),
        ("until=0", "/until"),
        ("until=1e3", "/until"),
        ("cursor=2026-02-30", "/cursor"),
        ("all_owners=perhaps", "/all_owners"),
    ],
)
def test_days_that_make_no_sense_are_refused_by_name(http: httpx.Client, query: str, pointer: str) -> None:
    answer = http.get(f"/v1/usage?{query}")
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == pointer


def test_usage_of_any_days_is_answered_in_pages_of_a_year(http: httpx.Client, store: JobStore) -> None:
    today = datetime.now(UTC).date()
    used = [today - timedelta(days=ago) for ago in (0, 365, 366, 1_000)]
    with store.database.writing() as tx:
        for day in used:
            row = {"day": (day - date(1970, 1, 1)).days, "owner": LOCAL_OWNER, "worker_s": 2.5}
            tx.execute(sa.insert(tables.usage).values(row))
    pages, query = [], {"since": "0001-01-01", "until": "9999-12-31"}
    while not pages or pages[-1]["next_cursor"]:
        cursor = {"cursor": pages[-1]["next_cursor"]} if pages else {}
        pages.append(http.get("/v1/usage", params=query | cursor).json())
    found = [item["day"] for page in pages for item in page["items"]]
    assert found == [str(day) for day in used]
    assert [item["day"] for item in pages[0]["items"]] == [str(today), str(used[1])]
    assert [item["day"] for item in http.get("/v1/usage").json()["items"]] == [str(today)]
    for empty in (
        {"since": str(today), "until": str(used[-1])},
        {"until": "0001-01-01"},
        {"since": "2000-01-01", "cursor": "0001-01-01"},
        {"since": "9999-12-31"},
    ):
        assert http.get("/v1/usage", params=empty).json() == {"items": [], "next_cursor": None}
