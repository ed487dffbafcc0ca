"""The client with an event loop: it does what the blocking one does, on the same core, while others go on."""

from __future__ import annotations

import asyncio
import inspect
import threading
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from service.client import AsyncClient, AsyncJobHandle, Client, JobHandle
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
from service.jobs.states import FailureCode

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path

    from service.jobs.objects import ObjectStore
    from service.jobs.states import Lease
    from service.jobs.store import JobStore

PROMPT = "a red cube"


def run(url: str, work: Callable[[AsyncClient], Coroutine[Any, Any, None]]) -> None:
    async def connected() -> None:
        async with AsyncClient(url) as client:
            await work(client)

    asyncio.run(connected())


def take(store: JobStore) -> Lease:
    lease = store.claim("worker")
    assert lease is not None
    return lease


@pytest.mark.parametrize(("blocking", "awaited"), [(Client, AsyncClient), (JobHandle, AsyncJobHandle)])
def test_both_clients_have_the_same_methods(blocking: type, awaited: type) -> None:
    def signatures(kind: type) -> dict[str, list[str]]:
        found = inspect.getmembers(kind, inspect.isfunction)
        return {name: list(inspect.signature(one).parameters) for name, one in found if name[0] != "_"}

    assert signatures(blocking) == signatures(awaited)


def test_a_job_is_followed_and_its_mesh_downloaded_though_the_connection_breaks(
    url: str,
    store: JobStore,
    finish: Callable[[Lease], None],
    tmp_path: Path,
    glb: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stream, "MAX_STREAM_S", 0.2)
    monkeypatch.setattr(stream, "POLL_S", 0.05)
    target = tmp_path / "out.glb"
    target.write_bytes(b"older")

    async def work(client: AsyncClient) -> None:
        job = await client.generate(PROMPT, method="sds", steps=3)
        lease = take(store)
        seen = []
        async for event in job.events():
            seen.append(event)
            if event.type == "job.started":
                threading.Timer(0.5, finish, [lease]).start()
        assert [event.id for event in seen] == list(range(1, len(seen) + 1))
        assert seen[-1].type == "job.succeeded"
        assert [event async for event in job.events(after=seen[-1].id)] == []
        assert (await job.wait()).status == "succeeded"
        assert await job.download(target) == target

    run(url, work)
    assert target.read_bytes() == glb
    assert [file.name for file in tmp_path.iterdir() if file.is_file()] == ["out.glb"]


def test_several_jobs_are_waited_for_at_once(
    url: str, store: JobStore, finish: Callable[[Lease], None]
) -> None:
    async def work(client: AsyncClient) -> None:
        jobs = await asyncio.gather(*(client.generate(PROMPT) for _ in range(3)))
        leases = [take(store) for _ in jobs]
        for lease in leases:
            threading.Thread(target=finish, args=[lease]).start()
        done = await asyncio.gather(*(job.wait(timeout_s=20) for job in jobs))
        assert {job.status for job in done} == {"succeeded"}

    run(url, work)


def test_errors_are_those_of_the_blocking_client(url: str, store: JobStore) -> None:
    async def work(client: AsyncClient) -> None:
        with pytest.raises(InvalidRequestError) as caught:
            await client.generate("")
        assert caught.value.errors[0]["pointer"] == "/prompt"
        assert caught.value.request_id.startswith("req_")
        with pytest.raises(NotFoundError):
            await client.job("../jobs")
        job = await client.generate(PROMPT)
        with pytest.raises(RefusedError):
            await job.delete()
        with pytest.raises(DownloadError, match="nothing yet"):
            await job.download("out.glb")
        with pytest.raises(WaitTimeoutError, match="has not ended"):
            await job.wait(timeout_s=0.3)
        store.fail(take(store), FailureCode.EMPTY_MESH, "nothing is denser than the iso level")
        with pytest.raises(JobFailedError, match="nothing is denser") as failed:
            await job.wait(timeout_s=20)
        assert failed.value.code == "empty-mesh"

    run(url, work)


def test_damaged_bytes_are_not_written(
    url: str,
    store: JobStore,
    objects: ObjectStore,
    finish: Callable[[Lease], None],
    tmp_path: Path,
    glb: bytes,
) -> None:
    async def work(client: AsyncClient) -> None:
        job = await client.generate(PROMPT)
        lease = take(store)
        finish(lease)
        key = artifact_key(lease.job_id, lease.attempt, "object.glb")
        objects.put(key, b"x" * len(glb), create_once=False)
        with pytest.raises(DownloadError, match="sha256"):
            await job.download(tmp_path / "out.glb")

    run(url, work)
    assert [file for file in tmp_path.iterdir() if file.is_file()] == []


def test_a_job_is_canceled_retried_listed_and_erased(url: str) -> None:
    async def work(client: AsyncClient) -> None:
        job = await client.generate(PROMPT, metadata={"n": "1"}, idempotency_key="k")
        assert (await client.generate(PROMPT, metadata={"n": "1"}, idempotency_key="k")).id == job.id
        assert (await job.cancel(keep_partial=True)).status == "canceled"
        again = await job.retry()
        assert again.document["retry_of"] == job.id
        assert [one.id async for one in client.jobs(page_size=1)] == [again.id, job.id]
        assert [one.id async for one in client.jobs(status="queued", metadata={"n": "1"})] == [again.id]
        await job.delete()
        with pytest.raises(NotFoundError):
            await job.refresh()

    run(url, work)


def test_what_the_service_tells_of_itself(url: str) -> None:
    async def work(client: AsyncClient) -> None:
        assert await client.is_there()
        assert "sds" in [method["name"] for method in await client.methods()]
        assert (await client.rewards())[0]["license"]
        assert (await client.estimate(PROMPT))["queue"]["position"] == 1
        assert (await client.queue())["depth"]["total"] == 0
        today = datetime.now(UTC).date()
        assert await client.usage(today, today) == []

    run(url, work)


def test_a_service_that_is_not_there_is_said_in_words() -> None:
    async def work(client: AsyncClient) -> None:
        assert not await client.is_there()
        with pytest.raises(ServiceUnavailableError, match="dreamserve up"):
            await client.generate(PROMPT)

    run("http://127.0.0.1:9", work)
