"""The Python client against a real service: following, resuming, downloading, failing in words."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from service.client import Client
from service.client_errors import (
    DownloadError,
    InvalidRequestError,
    JobFailedError,
    NotFoundError,
    RefusedError,
    ServiceUnavailableError,
    WaitTimeoutError,
)
from service.http import stream
from service.jobs.objects import artifact_key
from service.jobs.states import FailureCode, Stage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from fastapi import FastAPI

    from service.jobs.objects import ObjectStore
    from service.jobs.states import Lease
    from service.jobs.store import JobStore

PROMPT = "a red cube"
NOWHERE = "http://127.0.0.1:9"


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    with Client(url) as client:
        yield client


def take(store: JobStore) -> Lease:
    lease = store.claim("worker")
    assert lease is not None
    return lease


def test_a_job_is_waited_for_and_its_mesh_downloaded(
    client: Client, store: JobStore, finish: Callable[[Lease], None], tmp_path: Path, glb: bytes
) -> None:
    job = client.generate(PROMPT, method="sds", steps=3, metadata={"by": "test"})
    assert job.document["spec"]["steps"] == 3
    threading.Thread(target=finish, args=[take(store)]).start()
    assert job.wait(timeout_s=20).status == "succeeded"
    target = tmp_path / "out.glb"
    target.write_bytes(b"older")
    assert job.download(target) == target
    assert target.read_bytes() == glb
    assert [file.name for file in tmp_path.iterdir() if file.is_file()] == ["out.glb"]


def test_events_come_once_each_though_the_connection_breaks_again_and_again(
    client: Client, store: JobStore, finish: Callable[[Lease], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "MAX_STREAM_S", 0.2)
    monkeypatch.setattr(stream, "POLL_S", 0.05)
    job = client.generate(PROMPT)
    lease = take(store)
    seen = []
    for event in job.events():
        seen.append(event)
        if event.type == "job.started":
            # Only after the stream has ended at least once does the job go on.
            threading.Timer(0.5, finish, [lease]).start()
    assert [event.id for event in seen] == list(range(1, len(seen) + 1))
    assert seen[-1].type == "job.succeeded"
    assert list(job.events(after=seen[-1].id)) == []


def test_a_wait_that_is_too_short_says_that_the_job_goes_on(client: Client, store: JobStore) -> None:
    job = client.generate(PROMPT)
    with pytest.raises(WaitTimeoutError, match="has not ended"):
        job.wait(timeout_s=0.3)
    assert job.refresh().status == "queued"


def test_a_failed_job_raises_with_its_code(client: Client, store: JobStore) -> None:
    job = client.generate(PROMPT)
    store.fail(take(store), FailureCode.EMPTY_MESH, "nothing is denser than the iso level")
    with pytest.raises(JobFailedError, match="nothing is denser") as caught:
        job.wait(timeout_s=20)
    assert caught.value.code == "empty-mesh"
    assert caught.value.job.id == job.id


def test_a_canceled_job_is_no_success(client: Client) -> None:
    job = client.generate(PROMPT)
    assert job.cancel().status == "canceled"
    with pytest.raises(JobFailedError) as caught:
        job.wait(timeout_s=20)
    assert caught.value.code == "canceled"


def test_an_ended_job_is_retried_and_erased(client: Client) -> None:
    job = client.generate(PROMPT, seed=5)
    with pytest.raises(RefusedError) as caught:
        job.retry()
    assert caught.value.code == "job-active"
    job.cancel(keep_partial=True)
    again = job.retry(idempotency_key="r")
    assert job.retry(idempotency_key="r").id == again.id
    assert (again.document["retry_of"], again.document["spec"]) == (job.id, job.document["spec"])
    job.delete()
    with pytest.raises(NotFoundError):
        job.refresh()


def test_the_service_is_asked_what_a_job_would_take_and_what_was_used(client: Client) -> None:
    assert client.estimate(PROMPT, effort="draft")["spec"]["effort"] == "draft"
    assert client.queue()["depth"]["total"] == 0
    assert client.usage() == []


def test_lists_page_by_themselves(client: Client) -> None:
    made = [client.generate(PROMPT, metadata={"n": str(n)}).id for n in range(3)]
    assert [job.id for job in client.jobs(page_size=1)] == made[::-1]
    assert [job.id for job in client.jobs(metadata={"n": "1"})] == [made[1]]
    assert [job.id for job in client.jobs(status="running")] == []


@pytest.mark.parametrize(
    ("fields", "pointer"),
    [({"prompt": ""}, "/prompt"), ({"prompt": "\ud800"}, "/prompt"), ({"prompt": "x", "stepz": 1}, "/stepz")],
)
def test_an_invalid_request_raises_with_the_field_and_the_request(
    client: Client, fields: dict[str, Any], pointer: str
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        client.generate(**fields)
    assert caught.value.code == "invalid-request"
    assert caught.value.errors[0]["pointer"] == pointer
    assert caught.value.request_id.startswith("req_")


def test_an_unknown_job_raises_not_found(client: Client) -> None:
    for job_id in ("job_01ARZ3NDEKTSV4RRFFQ69G5FAV", "../jobs", "a b/c?d#e"):
        with pytest.raises(NotFoundError) as caught:
            client.job(job_id)
        assert caught.value.request_id


def test_a_full_queue_raises_refused(client: Client) -> None:
    for _ in range(3):
        client.generate(PROMPT)
    with pytest.raises(RefusedError) as caught:
        client.generate(PROMPT)
    assert (caught.value.code, caught.value.retryable) == ("queue-full", True)


def test_the_same_key_finds_the_same_job(client: Client) -> None:
    first = client.generate(PROMPT, idempotency_key="k")
    assert client.generate(PROMPT, idempotency_key="k").id == first.id
    assert client.generate(PROMPT).id != first.id


def test_damaged_bytes_are_not_written(
    client: Client,
    store: JobStore,
    objects: ObjectStore,
    finish: Callable[[Lease], None],
    tmp_path: Path,
    glb: bytes,
) -> None:
    job = client.generate(PROMPT)
    lease = take(store)
    finish(lease)
    key = artifact_key(lease.job_id, lease.attempt, "object.glb")
    objects.delete(key)
    objects.put(key, b"x" * len(glb))
    with pytest.raises(DownloadError, match="sha256"):
        job.download(tmp_path / "out.glb")
    assert [file for file in tmp_path.iterdir() if file.is_file()] == []


def test_a_kind_that_is_not_there_is_named_with_those_that_are(
    client: Client, store: JobStore, finish: Callable[[Lease], None], tmp_path: Path
) -> None:
    job = client.generate(PROMPT)
    with pytest.raises(DownloadError, match="nothing yet"):
        job.download(tmp_path / "out.glb")
    finish(take(store))
    with pytest.raises(DownloadError, match="has no 'stl' artifact; it has: glb"):
        job.download(tmp_path / "out.stl", "stl")


def test_a_service_that_is_not_there_is_said_in_words() -> None:
    with Client(NOWHERE) as client:
        assert not client.is_there()
        with pytest.raises(ServiceUnavailableError, match="dreamserve up"):
            client.generate(PROMPT)


def test_a_proxy_for_the_world_is_not_asked_for_this_machine(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", NOWHERE)
    with Client(url) as client:
        assert client.is_there()


def test_a_store_that_is_down_raises_unavailable_with_the_request(
    client: Client, api: FastAPI, store: JobStore, tmp_path: Path
) -> None:
    store.close()
    for file in (tmp_path / "data").glob("jobs.sqlite3*"):
        file.unlink()
    (tmp_path / "data" / "jobs.sqlite3").mkdir()
    assert client.is_there()
    with pytest.raises(ServiceUnavailableError, match="database") as caught:
        client.job("job_01ARZ3NDEKTSV4RRFFQ69G5FAV")
    assert caught.value.request_id.startswith("req_")


def test_another_server_at_the_url_is_not_taken_for_ours(url: str) -> None:
    with Client(f"{url}/docs") as client:
        assert not client.is_there()
        with pytest.raises(NotFoundError):
            client.generate(PROMPT)


def test_the_services_words_are_the_clients(client: Client) -> None:
    assert "sds" in [method["name"] for method in client.methods()]
    assert client.rewards()[0]["license"]
    assert client.is_there()
    assert httpx.get(f"{client.url}/healthz").headers["Request-Id"]


def test_progress_reaches_the_reader_of_events(
    client: Client, store: JobStore, finish: Callable[[Lease], None]
) -> None:
    job = client.generate(PROMPT)
    lease = take(store)
    store.report(lease, stage=Stage.COARSE, step=2, steps_total=4, steps_per_s=8.0)
    finish(lease)
    progress = next(event.data for event in job.events() if event.type == "job.progress")
    assert {"fraction", "step", "steps_total", "steps_per_s", "eta_s"} <= set(progress)
