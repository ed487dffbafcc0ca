"""The event stream: live, resumable, never twice, never less."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from service.http import stream
from service.jobs.states import Stage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from service.jobs.states import Lease
    from service.jobs.store import JobStore


def submit(base: str) -> str:
    job_id: str = httpx.post(f"{base}/generate", json={"prompt": "a red cube"}).json()["id"]
    return job_id


def frames(response: httpx.Response) -> Iterator[dict[str, str]]:
    """Read server-sent events the way a browser does."""
    frame: dict[str, str] = {}
    for line in response.iter_lines():
        if line.startswith(":"):
            continue
        if line:
            name, _, value = line.partition(": ")
            frame[name] = value
        elif frame:
            yield frame
            frame = {}


def read_all(base: str, job_id: str, **headers: str) -> list[dict[str, str]]:
    with httpx.stream("GET", f"{base}/v1/jobs/{job_id}/events", headers=headers, timeout=20) as response:
        assert response.status_code == 200
        assert response.headers["Content-Type"].startswith("text/event-stream")
        return list(frames(response))


def test_a_stream_follows_a_job_live_and_ends_with_it(
    url: str, store: JobStore, finish: Callable[[Lease], None]
) -> None:
    job_id = submit(url)
    seen: list[str] = []
    with httpx.stream("GET", f"{url}/v1/jobs/{job_id}/events", timeout=20) as response:
        for frame in frames(response):
            seen.append(frame["event"])
            if frame["event"] == "job.queued":
                lease = store.claim("worker")
                assert lease is not None
            if frame["event"] == "job.started":
                threading.Thread(target=finish, args=[lease]).start()
    assert [event for event in seen if event != "job.warning"][:2] == ["job.queued", "job.started"]
    assert seen[-1] == "job.succeeded"


@pytest.fixture
def ended(url: str, store: JobStore, finish: Callable[[Lease], None]) -> str:
    """The id of a job with a complete log."""
    job_id = submit(url)
    lease = store.claim("worker")
    assert lease is not None
    store.report(
        lease, stage=Stage.COARSE, step=1, steps_total=2, warnings=[{"code": "x", "detail": "a\u2028b"}]
    )
    finish(lease)
    return job_id


def test_ids_count_from_one_without_gaps(url: str, ended: str) -> None:
    log = read_all(url, ended)
    assert [int(frame["id"]) for frame in log] == list(range(1, len(log) + 1))
    for frame in log:
        event = json.loads(frame["data"])
        assert (str(event["id"]), event["type"]) == (frame["id"], frame["event"])


def test_a_reconnect_at_any_point_loses_and_repeats_nothing(url: str, ended: str) -> None:
    log = read_all(url, ended)
    for last in range(len(log)):
        assert read_all(url, ended, **{"Last-Event-ID": str(last)}) == log[last:]


def test_a_reader_of_the_whole_log_is_told_to_stop(url: str, ended: str) -> None:
    last = read_all(url, ended)[-1]["id"]
    answer = httpx.get(f"{url}/v1/jobs/{ended}/events", headers={"Last-Event-ID": last})
    assert answer.status_code == 204


def test_the_page_and_the_stream_tell_the_same(url: str, ended: str) -> None:
    path, headers = f"{url}/v1/jobs/{ended}/events", {"Accept": "application/json"}
    told = [json.loads(frame["data"]) for frame in read_all(url, ended)]
    items: list[dict[str, Any]] = []
    cursor: str | None = "0"
    while cursor is not None:
        page = httpx.get(path, params={"cursor": cursor, "limit": 3}, headers=headers).json()
        items, cursor = items + page["items"], page["next_cursor"]
    assert items == told


@pytest.mark.parametrize("last_event_id", ["-1", "three", "9" * 30])
def test_a_position_that_cannot_be_is_refused(http: httpx.Client, last_event_id: str) -> None:
    job_id = http.post("/generate", json={"prompt": "a red cube"}).json()["id"]
    answer = http.get(f"/v1/jobs/{job_id}/events", headers={"Last-Event-ID": last_event_id})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == "/last-event-id"


def test_a_quiet_stream_is_kept_alive(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "KEEPALIVE_S", 0.1)
    monkeypatch.setattr(stream, "POLL_S", 0.05)
    with httpx.stream("GET", f"{url}/v1/jobs/{submit(url)}/events", timeout=20) as response:
        assert any(line.startswith(":") for line in response.iter_lines())


def test_a_stream_ends_by_itself_to_be_taken_up_again(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "MAX_STREAM_S", 0.1)
    job_id = submit(url)
    assert read_all(url, job_id)[0]["event"] == "job.queued"


def test_streams_are_bounded(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "MAX_STREAMS", 1)
    job_id = submit(url)
    with httpx.stream("GET", f"{url}/v1/jobs/{job_id}/events", timeout=20) as response:
        live = frames(response)
        next(live)
        refused = httpx.get(f"{url}/v1/jobs/{job_id}/events")
    assert refused.status_code == 429
    assert refused.json()["code"] == "too-many-streams"
