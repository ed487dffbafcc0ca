"""The Python client: submit a prompt, follow the job, fetch its mesh.

from service.client import Client

with Client() as client:
    job = client.generate("a red cube on top of a blue cylinder", effort="draft")
    job.wait()
    job.download("out.glb")
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import uuid
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self
from urllib.parse import quote

import httpx

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
    from collections.abc import Iterator, Mapping
    from contextlib import AbstractContextManager

__all__ = [
    "DEFAULT_URL",
    "ApiError",
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

DEFAULT_URL: Final = "http://127.0.0.1:8000"
"""Where `dreamserve up` listens unless told otherwise."""

FINAL_STATES: Final = frozenset({"succeeded", "failed", "canceled"})
FINAL_EVENTS: Final = frozenset(f"job.{state}" for state in FINAL_STATES)
NO_MORE_EVENTS: Final = 204
"""Answer to a reader who has read the whole log of an ended job."""
RECONNECT_WAITS_S: Final = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 5.0, 5.0, 10.0, 10.0, 20.0)
"""Waits between attempts to reach a service that went away: about a minute in all, then an error."""
STREAM_IDLE_S: Final = 20.0
"""Several missed keep-alive comments (one per 5 s): the connection is dead, though nobody closed it."""


@dataclass(frozen=True)
class Event:
    """One entry of a job's event log."""

    id: int
    """Place in the job's log, from 1."""
    type: str
    """Such as `job.progress`; the list is in the service's documentation."""
    at: str
    """When it happened, RFC 3339."""
    data: dict[str, Any]


class Client:
    """A connection to one Dreamserve service; close it, or use it in a `with` statement."""

    def __init__(self, url: str = DEFAULT_URL, timeout_s: float = 30.0) -> None:
        self.url = url.rstrip("/")
        # A proxy that the environment names is for the world outside, not for a service on this machine.
        direct = dict.fromkeys(("all://127.0.0.1", "all://localhost", "all://[::1]"))
        self._http = httpx.Client(base_url=self.url, timeout=timeout_s, mounts=direct)

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
        # ASCII JSON carries any string, even one that UTF-8 cannot: the service then says what is wrong.
        body = json.dumps({"prompt": prompt, **fields}).encode("ascii")
        headers = {"Content-Type": "application/json", "Idempotency-Key": idempotency_key or uuid.uuid4().hex}
        for wait_s in (*RECONNECT_WAITS_S[:3], None):
            try:
                return JobHandle(self, self.request("POST", "/v1/jobs", content=body, headers=headers).json())
            except ServiceUnavailableError:
                if wait_s is None:
                    raise
                time.sleep(wait_s)
        raise AssertionError("unreachable: the last attempt returns or raises")

    def job(self, job_id: str) -> JobHandle:
        """Fetch one job. Raises `NotFoundError`."""
        return JobHandle(self, self.request("GET", f"/v1/jobs/{_segment(job_id)}").json())

    def list_jobs(
        self,
        *,
        status: str | None = None,
        method: str | None = None,
        metadata: Mapping[str, str] | None = None,
        page_size: int = 50,
    ) -> Iterator[JobHandle]:
        """Iterate over the jobs, newest first, fetching further pages as needed."""
        params: dict[str, Any] = {"limit": page_size}
        params |= {key: value for key, value in (("status", status), ("method", method)) if value is not None}
        params |= {f"metadata[{key}]": value for key, value in (metadata or {}).items()}
        while True:
            page = self.request("GET", "/v1/jobs", params=params).json()
            for document in page["items"]:
                yield JobHandle(self, document)
            if page["next_cursor"] is None:
                return
            params["cursor"] = page["next_cursor"]

    def methods(self) -> list[dict[str, Any]]:
        """List the methods that this service can run now."""
        items: list[dict[str, Any]] = self.request("GET", "/v1/methods").json()["items"]
        return items

    def rewards(self) -> list[dict[str, Any]]:
        """List the rewards that this service can steer with now."""
        items: list[dict[str, Any]] = self.request("GET", "/v1/rewards").json()["items"]
        return items

    def is_there(self) -> bool:
        """Tell whether a Dreamserve answers at the URL: it may be one whose stores are down."""
        try:
            answer = self.request("GET", "/healthz", timeout=5.0).json()
        except (ClientError, ValueError):
            return False
        return isinstance(answer, dict) and answer.get("service") == "dreamserve"

    def request(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        """Send one request and turn every refusal into a typed error."""
        try:
            response = self._http.request(method, path, **arguments)
        except httpx.TransportError as error:
            raise self._unreachable(error) from error
        raise_for_problem(response)
        return response

    def stream_events(self, job_id: str, after: int, read_s: float) -> AbstractContextManager[httpx.Response]:
        """Open the event stream of a job behind event `after`; silence longer than `read_s` breaks it."""
        headers = {"Accept": "text/event-stream", "Last-Event-ID": str(after)}
        return self._stream(
            f"/v1/jobs/{job_id}/events", headers=headers, timeout=httpx.Timeout(30.0, read=read_s)
        )

    def content(self, artifact_id: str) -> Iterator[bytes]:
        """Read an artifact's bytes in blocks, from wherever the service sends us to."""
        try:
            with self._stream(
                f"/v1/artifacts/{_segment(artifact_id)}/content", follow_redirects=True
            ) as response:
                yield from response.iter_bytes()
        except httpx.TransportError as error:
            raise self._unreachable(error) from error

    @contextmanager
    def _stream(self, path: str, **arguments: Any) -> Iterator[httpx.Response]:
        with self._http.stream("GET", path, **arguments) as response:
            raise_for_problem(response)
            yield response

    def _unreachable(self, error: httpx.TransportError) -> ServiceUnavailableError:
        return ServiceUnavailableError(
            f"No service answers at {self.url} ({error}). Start one with `dreamserve up` or name another URL."
        )


class JobHandle:
    """One job: `document` is its state when last fetched (`refresh` fetches it again)."""

    def __init__(self, client: Client, document: dict[str, Any]) -> None:
        self._client = client
        self.document = document

    @property
    def id(self) -> str:
        job_id: str = self.document["id"]
        return job_id

    @property
    def status(self) -> str:
        status: str = self.document["status"]
        return status

    @property
    def ended(self) -> bool:
        """Whether the state is final: it never changes again."""
        return self.status in FINAL_STATES

    def refresh(self) -> Self:
        """Fetch the job's state."""
        self.document = self._client.request("GET", f"/v1/jobs/{self.id}").json()
        return self

    def cancel(self) -> Self:
        """Ask the service to end the job; harmless when it has ended."""
        self.document = self._client.request("POST", f"/v1/jobs/{self.id}/cancel").json()
        return self

    def events(self, after: int = 0, timeout_s: float | None = None) -> Iterator[Event]:
        """Follow the job's event log from behind event `after` to its end, each event once.

        A broken connection is taken up again where it broke. Raises `WaitTimeoutError` after
        `timeout_s`, `ServiceUnavailableError` when the service stays away for about a minute.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        failures = 0
        while True:
            reason = "the service closed the stream"
            try:
                for event in self._stream(after, deadline):
                    failures = 0
                    after = event.id
                    yield event
                    if event.type in FINAL_EVENTS:
                        return
            except _LogReadError:
                return
            except (httpx.TransportError, ServiceUnavailableError) as error:
                reason = str(error)
            if failures == len(RECONNECT_WAITS_S):
                raise ServiceUnavailableError(f"Lost the events of {self.id}: {reason}. The job may go on.")
            time.sleep(min(RECONNECT_WAITS_S[failures], self._seconds_left(deadline)))
            failures += 1

    def wait(self, timeout_s: float | None = None) -> Self:
        """Wait until the job has ended and fetch its state.

        Raises `JobFailedError` unless it succeeded, `WaitTimeoutError` after `timeout_s` (the job goes on).
        """
        for _ in self.events(timeout_s=timeout_s):
            pass
        if self.refresh().status != "succeeded":
            raise JobFailedError(self)
        return self

    def artifacts(self) -> list[dict[str, Any]]:
        """List the job's files: kind, name, size, sha256."""
        page = self._client.request("GET", f"/v1/jobs/{self.id}/artifacts").json()
        items: list[dict[str, Any]] = page["items"]
        return items

    def download(self, path: str | os.PathLike[str], kind: str = "glb") -> Path:
        """Write the job's first artifact of `kind` to `path`: checked by sha256, and whole or not at all.

        Raises `DownloadError` when there is none, or when the bytes are not those the service recorded.
        """
        found = self.artifacts()
        artifact = next((artifact for artifact in found if artifact["kind"] == kind), None)
        if artifact is None:
            kinds = ", ".join(sorted({artifact["kind"] for artifact in found})) or "nothing yet"
            raise DownloadError(f"Job {self.id} ({self.status}) has no {kind!r} artifact; it has: {kinds}.")
        target = Path(path)
        partial = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.part")
        try:
            digest = self._write(artifact["id"], partial)
            if digest != artifact["sha256"]:
                raise DownloadError(
                    f"The bytes of {artifact['id']} have sha256 {digest}, but the service recorded "
                    f"{artifact['sha256']}. Download again; if it stays so, the stored object is damaged."
                )
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
        return target

    def _write(self, artifact_id: str, path: Path) -> str:
        """Write an artifact's bytes to a new file, to the disk; their sha256."""
        digest = hashlib.sha256()
        with path.open("xb") as file:
            for block in self._client.content(artifact_id):
                digest.update(block)
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        return digest.hexdigest()

    def _stream(self, after: int, deadline: float | None) -> Iterator[Event]:
        """Read one connection's events. Raises `_LogReadError` when the log is complete."""
        read_s = min(STREAM_IDLE_S, self._seconds_left(deadline))
        with self._client.stream_events(self.id, after, read_s) as response:
            if response.status_code == NO_MORE_EVENTS:
                raise _LogReadError
            fields: dict[str, str] = {}
            for line in response.iter_lines():
                self._seconds_left(deadline)
                name, _, value = line.partition(": ")
                if line:
                    fields[name] = value
                elif "data" in fields:
                    event = json.loads(fields["data"])
                    yield Event(event["id"], event["type"], event["at"], event["data"])
                    fields = {}

    def _seconds_left(self, deadline: float | None) -> float:
        if deadline is None:
            return float("inf")
        left = deadline - time.monotonic()
        if left <= 0:
            raise WaitTimeoutError(f"Job {self.id} has not ended in the given time.")
        return left


class _LogReadError(Exception):
    """The job has ended and its log holds nothing more."""


def _segment(identifier: str) -> str:
    """Make an identifier one path segment, whatever characters a user put into it."""
    return quote(identifier.encode("utf-8", "replace"), safe="")
