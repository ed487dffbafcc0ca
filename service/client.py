"""The Python client: submit a prompt, follow the job, fetch its mesh.

from service.client import Client

with Client() as client:
    job = client.generate("a red cube on top of a blue cylinder", effort="draft")
    job.wait()
    job.download("out.glb")

`AsyncClient` has the same methods, to be awaited.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self

import httpx

from service import client_core as core
from service.async_client import AsyncClient, AsyncJobHandle
from service.client_core import DEFAULT_URL, SUBMIT_WAITS_S, Call, Document, Event, JobDocument
from service.client_errors import (
    ApiError,
    ClientError,
    DownloadError,
    InvalidRequestError,
    JobFailedError,
    NotFoundError,
    RefusedError,
    ServiceUnavailableError,
    UnauthorizedError,
    WaitTimeoutError,
    raise_for_problem,
)

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import date
    from pathlib import Path

__all__ = [
    "DEFAULT_URL",
    "ApiError",
    "AsyncClient",
    "AsyncJobHandle",
    "Client",
    "ClientError",
    "DownloadError",
    "Event",
    "InvalidRequestError",
    "JobFailedError",
    "JobHandle",
    "NotFoundError",
    "RefusedError",
    "ServiceUnavailableError",
    "UnauthorizedError",
    "WaitTimeoutError",
]


class Client:
    """A connection to one Dreamserve service; close it, or use it in a `with` statement.

    `api_key` goes with every request, where the service wants one; by default what DREAMSERVE_API_KEY holds.
    Any method raises `UnauthorizedError` when the service does not accept it.
    """

    def __init__(
        self, url: str = DEFAULT_URL, timeout_s: float = 30.0, *, api_key: str | None = None
    ) -> None:
        self.url = url.rstrip("/")
        self._timeout_s = timeout_s
        self._http = httpx.Client(**core.connection(self.url, timeout_s, api_key))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; handles made by this client stop working."""
        self._http.close()

    def generate(self, prompt: str, *, idempotency_key: str | None = None, **fields: Any) -> JobHandle:
        """Submit one job; `fields` are those of the job request, such as `effort="draft"`.

        A key is made up when none is given, so a request that is sent again after a broken
        connection never makes a second job. Raises `InvalidRequestError`, `RefusedError`.
        """
        call = core.submission("/v1/jobs", {"prompt": prompt, **fields}, idempotency_key)
        return JobHandle(self, self.submit(call).json())

    def estimate(self, prompt: str, **fields: Any) -> Document:
        """Tell how long such a job would wait and run, without making it. Raises `InvalidRequestError`."""
        return self._fetch(core.action("POST", "/v1/estimates", {"prompt": prompt, **fields}))

    def job(self, job_id: str) -> JobHandle:
        """Fetch one job. Raises `NotFoundError`."""
        return JobHandle(self, self._fetch(core.action("GET", f"/v1/jobs/{core.segment(job_id)}")))

    def jobs(
        self,
        *,
        status: str | None = None,
        batch_id: str | None = None,
        method: str | None = None,
        metadata: Mapping[str, str] | None = None,
        page_size: int = 50,
    ) -> Iterator[JobHandle]:
        """Iterate over the jobs, newest first, fetching further pages as needed."""
        params = core.job_params(page_size, metadata, status=status, batch_id=batch_id, method=method)
        for document in self.items("/v1/jobs", params):
            yield JobHandle(self, document)

    def queue(self) -> Document:
        """Tell how much waits, and what works on it."""
        return self._fetch(core.action("GET", "/v1/queue"))

    def usage(self, since: date | None = None, until: date | None = None) -> list[Document]:
        """List worker seconds and ended jobs by day, newest first; the last 30 days by default."""
        return list(self.items("/v1/usage", core.usage_params(since, until)))

    def methods(self) -> list[Document]:
        """List the methods that this service can run now."""
        return self._items("/v1/methods")

    def rewards(self) -> list[Document]:
        """List the rewards that this service can steer with now."""
        return self._items("/v1/rewards")

    def is_there(self) -> bool:
        """Tell whether a Dreamserve answers at the URL: it may be one whose stores are down."""
        try:
            return core.is_dreamserve(self.request("GET", "/healthz", timeout=5.0))
        except ClientError:
            return False

    def request(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        """Send one request and turn every refusal into a typed error, but for one that is waited out (`Turn`)."""
        turn = core.Turn(self._timeout_s)
        pause_s: float | None = 0.0
        while pause_s is not None:
            time.sleep(pause_s)
            try:
                response = self._http.request(method, path, **arguments)
            except httpx.TransportError as error:
                raise core.unreachable(self.url, error) from error
            pause_s = turn.pause_s(response)
        raise_for_problem(response)
        return response

    def submit(self, call: Call) -> httpx.Response:
        """Send a creating request, again when the service goes away: its idempotency key makes that harmless."""
        for wait_s in SUBMIT_WAITS_S:
            try:
                return self.request(call.method, call.path, **call.arguments)
            except ServiceUnavailableError:
                time.sleep(wait_s)
        return self.request(call.method, call.path, **call.arguments)

    def items(self, path: str, params: dict[str, Any] | None) -> Iterator[Document]:
        """Iterate over the items of a listing, fetching further pages as needed."""
        while params is not None:
            page = self.request("GET", path, params=params).json()
            yield from page["items"]
            params = core.next_params(params, page)

    @contextmanager
    def stream(self, call: Call) -> Iterator[httpx.Response]:
        """Send a request whose answer is read while it comes. Raises httpx.TransportError when it breaks."""
        turn = core.Turn(self._timeout_s)
        while True:
            with self._http.stream(call.method, call.path, **call.arguments) as response:
                if response.is_error:
                    response.read()
                pause_s = turn.pause_s(response)
                if pause_s is None:
                    raise_for_problem(response)
                    yield response
                    return
            time.sleep(pause_s)

    def _fetch(self, call: Call) -> Document:
        document: Document = self.request(call.method, call.path, **call.arguments).json()
        return document

    def _items(self, path: str) -> list[Document]:
        items: list[Document] = self.request("GET", path).json()["items"]
        return items


class JobHandle(JobDocument):
    """One job: `document` is its state when last fetched (`refresh` fetches it again)."""

    def __init__(self, client: Client, document: Document) -> None:
        super().__init__(document)
        self._client = client

    def refresh(self) -> Self:
        """Fetch the job's state."""
        self.document = self._client.request("GET", f"/v1/jobs/{self.id}").json()
        return self

    def cancel(self, *, keep_partial: bool = False) -> Self:
        """Ask the service to end the job, and to keep the object as it is if wished; harmless when it has ended."""
        call = core.action("POST", f"/v1/jobs/{self.id}/cancel", {"keep_partial": keep_partial})
        self.document = self._client.request(call.method, call.path, **call.arguments).json()
        return self

    def retry(self, *, idempotency_key: str | None = None) -> JobHandle:
        """Make a new job of this one's spec. Raises `RefusedError` while this one is active."""
        call = core.submission(f"/v1/jobs/{self.id}/retry", None, idempotency_key)
        return JobHandle(self._client, self._client.submit(call).json())

    def keep(self, candidates: Sequence[int]) -> Self:
        """Keep these candidates and no others, the first of them foremost: `download` fetches its files from now on.

        Raises `RefusedError` unless the job has succeeded, `InvalidRequestError`, `NotFoundError` when it has expired.
        """
        call = core.action("POST", f"/v1/jobs/{self.id}/keep", {"candidates": list(candidates)})
        self.document = self._client.request(call.method, call.path, **call.arguments).json()
        return self

    def delete(self) -> None:
        """Erase the job and its artifacts for ever. Raises `RefusedError` while it is active."""
        self._client.request("DELETE", f"/v1/jobs/{self.id}")

    def events(self, after: int = 0, timeout_s: float | None = None) -> Iterator[Event]:
        """Follow the job's event log from behind event `after` to its end, each event once.

        A broken connection is taken up again where it broke. Raises `WaitTimeoutError` after
        `timeout_s`, `ServiceUnavailableError` when the service stays away for about a minute.
        """
        log = core.EventLog(self.id, after, timeout_s)
        while True:
            reason = "the service closed the stream"
            try:
                with self._client.stream(log.call()) as response:
                    log.opened(response.status_code)
                    for line in response.iter_lines():
                        if (event := log.feed(line)) is not None:
                            yield event
                            if log.ended:
                                return
            except (httpx.TransportError, ServiceUnavailableError) as error:
                reason = str(error)
            if log.ended:
                return
            time.sleep(log.pause_s(reason))

    def wait(self, timeout_s: float | None = None) -> Self:
        """Wait until the job has ended and fetch its state.

        Raises `JobFailedError` unless it succeeded, `WaitTimeoutError` after `timeout_s` (the job goes on).
        """
        for _ in self.events(timeout_s=timeout_s):
            pass
        self.refresh()._check_succeeded()
        return self

    def artifacts(self) -> list[Document]:
        """List the job's files: kind, name, size, sha256."""
        items: list[Document] = self._client.request("GET", f"/v1/jobs/{self.id}/artifacts").json()["items"]
        return items

    def download(
        self, path: str | os.PathLike[str], kind: str = "glb", *, candidate: int | None = None
    ) -> Path:
        """Write the job's first artifact of `kind` to `path`: checked by sha256, and whole or not at all.

        The first is of the candidate that is kept foremost; `candidate` asks for another's, whether it is kept or not.
        Raises `DownloadError` when there is none, or when the bytes are not those the service recorded.
        """
        artifact = self._find_artifact(self.artifacts(), kind, candidate)
        with core.Download(artifact, path) as download:
            try:
                with self._client.stream(core.content(artifact["id"])) as response:
                    for block in response.iter_bytes():
                        download.write(block)
            except httpx.TransportError as error:
                raise core.unreachable(self._client.url, error) from error
            return download.finish()
