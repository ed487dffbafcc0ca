"""The Python client for programs with an event loop: `Client`'s methods, to be awaited.

from service.client import AsyncClient

async with AsyncClient() as client:
    job = await client.generate("a red cube on top of a blue cylinder", effort="draft")
    async for event in job.events():
        print(event.type)
    await job.download("out.glb")
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Self

import httpx

from service import client_core as core
from service.client_core import DEFAULT_URL, SUBMIT_WAITS_S, Call, Document, Event, JobDocument
from service.client_errors import ClientError, ServiceUnavailableError, raise_for_problem

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncIterator, Mapping, Sequence
    from datetime import date
    from pathlib import Path

__all__ = ["AsyncClient", "AsyncJobHandle"]


class AsyncClient:
    """A connection to one Dreamserve service; close it, or use it in an `async with` statement.

    Everything is as with `Client`, errors too.
    """

    def __init__(
        self, url: str = DEFAULT_URL, timeout_s: float = 30.0, *, api_key: str | None = None
    ) -> None:
        self.url = url.rstrip("/")
        self._timeout_s = timeout_s
        self._http = httpx.AsyncClient(**core.connection(self.url, timeout_s, api_key))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections; handles made by this client stop working."""
        await self._http.aclose()

    async def generate(
        self, prompt: str, *, idempotency_key: str | None = None, **fields: Any
    ) -> AsyncJobHandle:
        """Submit one job; see `Client.generate`."""
        call = core.submission("/v1/jobs", {"prompt": prompt, **fields}, idempotency_key)
        return AsyncJobHandle(self, (await self.submit(call)).json())

    async def estimate(self, prompt: str, **fields: Any) -> Document:
        """Tell how long such a job would wait and run, without making it."""
        return await self._fetch(core.action("POST", "/v1/estimates", {"prompt": prompt, **fields}))

    async def job(self, job_id: str) -> AsyncJobHandle:
        """Fetch one job. Raises `NotFoundError`."""
        document = await self._fetch(core.action("GET", f"/v1/jobs/{core.segment(job_id)}"))
        return AsyncJobHandle(self, document)

    async def jobs(
        self,
        *,
        status: str | None = None,
        batch_id: str | None = None,
        method: str | None = None,
        metadata: Mapping[str, str] | None = None,
        page_size: int = 50,
    ) -> AsyncIterator[AsyncJobHandle]:
        """Iterate over the jobs, newest first, fetching further pages as needed."""
        params = core.job_params(page_size, metadata, status=status, batch_id=batch_id, method=method)
        async for document in self.items("/v1/jobs", params):
            yield AsyncJobHandle(self, document)

    async def queue(self) -> Document:
        """Tell how much waits, and what works on it."""
        return await self._fetch(core.action("GET", "/v1/queue"))

    async def usage(self, since: date | None = None, until: date | None = None) -> list[Document]:
        """List worker seconds and ended jobs by day, newest first; the last 30 days by default."""
        return [day async for day in self.items("/v1/usage", core.usage_params(since, until))]

    async def methods(self) -> list[Document]:
        """List the methods that this service can run now."""
        return await self._items("/v1/methods")

    async def rewards(self) -> list[Document]:
        """List the rewards that this service can steer with now."""
        return await self._items("/v1/rewards")

    async def is_there(self) -> bool:
        """Tell whether a Dreamserve answers at the URL: it may be one whose stores are down."""
        try:
            return core.is_dreamserve(await self.request("GET", "/healthz", timeout=5.0))
        except ClientError:
            return False

    async def request(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        """Send one request and turn every refusal into a typed error, but for one that is waited out (`Turn`)."""
        turn = core.Turn(self._timeout_s)
        pause_s: float | None = 0.0
        while pause_s is not None:
            await asyncio.sleep(pause_s)
            try:
                response = await self._http.request(method, path, **arguments)
            except httpx.TransportError as error:
                raise core.unreachable(self.url, error) from error
            pause_s = turn.pause_s(response)
        raise_for_problem(response)
        return response

    async def submit(self, call: Call) -> httpx.Response:
        """Send a creating request, again when the service goes away: its idempotency key makes that harmless."""
        for wait_s in SUBMIT_WAITS_S:
            try:
                return await self.request(call.method, call.path, **call.arguments)
            except ServiceUnavailableError:
                await asyncio.sleep(wait_s)
        return await self.request(call.method, call.path, **call.arguments)

    async def items(self, path: str, params: dict[str, Any] | None) -> AsyncIterator[Document]:
        """Iterate over the items of a listing, fetching further pages as needed."""
        while params is not None:
            page = (await self.request("GET", path, params=params)).json()
            for item in page["items"]:
                yield item
            params = core.next_params(params, page)

    @asynccontextmanager
    async def stream(self, call: Call) -> AsyncIterator[httpx.Response]:
        """Send a request whose answer is read while it comes. Raises httpx.TransportError when it breaks."""
        turn = core.Turn(self._timeout_s)
        while True:
            async with self._http.stream(call.method, call.path, **call.arguments) as response:
                if response.is_error:
                    await response.aread()
                pause_s = turn.pause_s(response)
                if pause_s is None:
                    raise_for_problem(response)
                    yield response
                    return
            await asyncio.sleep(pause_s)

    async def _fetch(self, call: Call) -> Document:
        document: Document = (await self.request(call.method, call.path, **call.arguments)).json()
        return document

    async def _items(self, path: str) -> list[Document]:
        items: list[Document] = (await self.request("GET", path)).json()["items"]
        return items


class AsyncJobHandle(JobDocument):
    """One job: `document` is its state when last fetched (`refresh` fetches it again)."""

    def __init__(self, client: AsyncClient, document: Document) -> None:
        super().__init__(document)
        self._client = client

    async def refresh(self) -> Self:
        """Fetch the job's state."""
        self.document = (await self._client.request("GET", f"/v1/jobs/{self.id}")).json()
        return self

    async def cancel(self, *, keep_partial: bool = False) -> Self:
        """Ask the service to end the job, and to keep the object as it is if wished; harmless when it has ended."""
        call = core.action("POST", f"/v1/jobs/{self.id}/cancel", {"keep_partial": keep_partial})
        self.document = (await self._client.request(call.method, call.path, **call.arguments)).json()
        return self

    async def retry(self, *, idempotency_key: str | None = None) -> AsyncJobHandle:
        """Make a new job of this one's spec. Raises `RefusedError` while this one is active."""
        call = core.submission(f"/v1/jobs/{self.id}/retry", None, idempotency_key)
        return AsyncJobHandle(self._client, (await self._client.submit(call)).json())

    async def keep(self, candidates: Sequence[int]) -> Self:
        """Keep these candidates and no others, the first of them foremost: `download` fetches its files from now on.

        Raises `RefusedError` unless the job has succeeded, `InvalidRequestError`, `NotFoundError` when it has expired.
        """
        call = core.action("POST", f"/v1/jobs/{self.id}/keep", {"candidates": list(candidates)})
        self.document = (await self._client.request(call.method, call.path, **call.arguments)).json()
        return self

    async def delete(self) -> None:
        """Erase the job and its artifacts for ever. Raises `RefusedError` while it is active."""
        await self._client.request("DELETE", f"/v1/jobs/{self.id}")

    async def events(self, after: int = 0, timeout_s: float | None = None) -> AsyncIterator[Event]:
        """Follow the job's event log to its end, each event once; see `JobHandle.events`."""
        log = core.EventLog(self.id, after, timeout_s)
        while True:
            reason = "the service closed the stream"
            try:
                async with self._client.stream(log.call()) as response:
                    log.opened(response.status_code)
                    async for line in response.aiter_lines():
                        if (event := log.feed(line)) is not None:
                            yield event
                            if log.ended:
                                return
            except (httpx.TransportError, ServiceUnavailableError) as error:
                reason = str(error)
            if log.ended:
                return
            await asyncio.sleep(log.pause_s(reason))

    async def wait(self, timeout_s: float | None = None) -> Self:
        """Wait until the job has ended and fetch its state; see `JobHandle.wait`."""
        async for _ in self.events(timeout_s=timeout_s):
            pass
        (await self.refresh())._check_succeeded()
        return self

    async def artifacts(self) -> list[Document]:
        """List the job's files: kind, name, size, sha256."""
        page = (await self._client.request("GET", f"/v1/jobs/{self.id}/artifacts")).json()
        items: list[Document] = page["items"]
        return items

    async def download(
        self, path: str | os.PathLike[str], kind: str = "glb", *, candidate: int | None = None
    ) -> Path:
        """Write the job's first artifact of `kind` to `path`, checked and whole; see `JobHandle.download`.

        The blocks are written in this thread: a local disk takes them faster than a network brings them.
        """
        artifact = self._find_artifact(await self.artifacts(), kind, candidate)
        with core.Download(artifact, path) as download:
            try:
                async with self._client.stream(core.content(artifact["id"])) as response:
                    async for block in response.aiter_bytes():
                        download.write(block)
            except httpx.TransportError as error:
                raise core.unreachable(self._client.url, error) from error
            return download.finish()
