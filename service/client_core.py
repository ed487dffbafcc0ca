"""What both clients share: which requests to send and what the answers mean, without sending or waiting for anything.

`Client` (blocking) and `AsyncClient` send the `Call`s that are built here, and hand back the lines, blocks and pages.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self, TypeAlias
from urllib.parse import quote

import httpx

from service.client_errors import DownloadError, JobFailedError, ServiceUnavailableError, WaitTimeoutError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import date
    from types import TracebackType

__all__ = [
    "DEFAULT_URL",
    "SUBMIT_WAITS_S",
    "Call",
    "Document",
    "Download",
    "Event",
    "EventLog",
    "JobDocument",
    "Turn",
    "action",
    "connection",
    "content",
    "is_dreamserve",
    "job_params",
    "next_params",
    "segment",
    "submission",
    "unreachable",
    "usage_params",
]

DEFAULT_URL: Final = "http://127.0.0.1:8000"
"""Where `dreamserve up` listens unless told otherwise."""

FINAL_STATES: Final = frozenset({"succeeded", "failed", "canceled"})
FINAL_EVENTS: Final = frozenset(f"job.{state}" for state in FINAL_STATES)
NO_MORE_EVENTS: Final = 204
"""Answer to a reader who has read the whole log of an ended job."""
SUBMIT_WAITS_S: Final = (0.1, 0.2, 0.5)
"""Waits between attempts to submit: with one idempotency key they make one job."""
RECONNECT_WAITS_S: Final = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 5.0, 5.0, 10.0, 10.0, 20.0)
"""Waits between attempts to reach a service that went away: about a minute in all, then an error."""
STREAM_IDLE_S: Final = 20.0
"""Several missed keep-alive comments (one per 5 s): the connection is dead, though nobody closed it."""

Document: TypeAlias = dict[str, Any]
"""A JSON object in the shape of the API."""


class Call(NamedTuple):
    """A request to be sent: `arguments` are those of `httpx.Client.request`."""

    method: str
    path: str
    arguments: dict[str, Any]


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


class JobDocument:
    """One job: `document` is its state when last fetched."""

    def __init__(self, document: Document) -> None:
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

    def _check_succeeded(self) -> None:
        if self.status != "succeeded":
            raise JobFailedError(self)

    def _find_artifact(self, found: list[Document], kind: str, candidate: int | None) -> Document:
        """Choose the first artifact of a kind, which may have to be a candidate's; raise `DownloadError`."""
        whose = f"Job {self.id} ({self.status})"
        if candidate is not None:
            whose, found = (
                f"{whose}: candidate {candidate}",
                [one for one in found if one["candidate"] == candidate],
            )
        artifact = next((artifact for artifact in found if artifact["kind"] == kind), None)
        if artifact is None:
            nothing = "nothing" if self.ended else "nothing yet"
            kinds = ", ".join(sorted({artifact["kind"] for artifact in found})) or nothing
            raise DownloadError(f"{whose} has no {kind!r} artifact; it has: {kinds}.")
        return artifact


# ---- requests


def connection(url: str, timeout_s: float, api_key: str | None) -> dict[str, Any]:
    """Build the arguments of `httpx.Client` and `httpx.AsyncClient`."""
    # A proxy that the environment names is for the world outside, not for a service on this machine.
    direct = dict.fromkeys(("all://127.0.0.1", "all://localhost", "all://[::1]"))
    return {"base_url": url, "timeout": timeout_s, "mounts": direct, "headers": _credentials(api_key)}


def _credentials(api_key: str | None) -> dict[str, str]:
    """Build the header that carries a key; a redirect to another host, such as an object store's, gets none."""
    if api_key is None:
        api_key = os.environ.get("DREAMSERVE_API_KEY", "")
    if not api_key.isascii() or not api_key.isprintable():
        raise ValueError("the API key holds characters that no key has; copy it again (it begins with ds_)")
    return {"Authorization": f"Bearer {api_key}"} if api_key else {}


def submission(path: str, body: Document | None, idempotency_key: str | None) -> Call:
    """Build a creating request, which may be sent again: it carries a key, made up when none is given."""
    headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
    return action("POST", path, body, headers)


def action(
    method: str, path: str, body: Document | None = None, headers: Mapping[str, str] | None = None
) -> Call:
    """Build a request with a JSON body, or with none."""
    if body is None:
        return Call(method, path, {"headers": dict(headers or {})})
    # ASCII JSON carries any string, even one that UTF-8 cannot: the service then says what is wrong.
    content = json.dumps(body).encode("ascii")
    return Call(
        method, path, {"content": content, "headers": {"Content-Type": "application/json", **(headers or {})}}
    )


def job_params(page_size: int, metadata: Mapping[str, str] | None, **filters: str | None) -> dict[str, Any]:
    """Build the query of the first page of a list of jobs."""
    params: dict[str, Any] = {"limit": page_size}
    params |= {name: value for name, value in filters.items() if value is not None}
    return params | {f"metadata[{name}]": value for name, value in (metadata or {}).items()}


def usage_params(since: date | None, until: date | None) -> dict[str, Any]:
    """Build the query of the first page of the usage."""
    days = {"since": since, "until": until}
    return {name: day.isoformat() for name, day in days.items() if day is not None}


def next_params(params: dict[str, Any], page: Document) -> dict[str, Any] | None:
    """Build the query of the page after `page`; None when that was the last."""
    return None if page["next_cursor"] is None else {**params, "cursor": page["next_cursor"]}


def content(artifact_id: str) -> Call:
    """Build the request for an artifact's bytes, from wherever the service sends us to."""
    return Call("GET", f"/v1/artifacts/{segment(artifact_id)}/content", {"follow_redirects": True})


def segment(identifier: str) -> str:
    """Make an identifier one path segment, whatever characters a user put into it."""
    return quote(identifier.encode("utf-8", "replace"), safe="")


def is_dreamserve(answer: httpx.Response) -> bool:
    """Tell whether an answer of /healthz comes from a Dreamserve."""
    try:
        document = answer.json()
    except ValueError:
        return False
    return isinstance(document, dict) and document.get("service") == "dreamserve"


def unreachable(url: str, error: httpx.TransportError) -> ServiceUnavailableError:
    """Say that nobody answers."""
    return ServiceUnavailableError(
        f"No service answers at {url} ({error}). Start one with `dreamserve up` or name another URL."
    )


class Turn:
    """A request that waits for its turn when its key has sent too many: nothing was done, so it is sent again."""

    def __init__(self, timeout_s: float) -> None:
        """`timeout_s`: how long to wait in all, at most."""
        self._until = time.monotonic() + timeout_s

    def pause_s(self, answer: httpx.Response) -> float | None:
        """Say how long the service wants us to wait, None when this is its answer (whose body was read if it is a 429).

        A full queue and a used-up quota are answers, too: that they end soon nobody knows.
        """
        if answer.status_code != httpx.codes.TOO_MANY_REQUESTS:
            return None
        try:
            is_rate, wait_s = answer.json()["code"] == "rate-limited", float(answer.headers["Retry-After"])
        except (ValueError, LookupError, TypeError):  # of a proxy, say
            return None
        return wait_s if is_rate and 0 <= wait_s <= self._until - time.monotonic() else None


# ---- following a job


class EventLog:
    """A reader's place in a job's event log, over any number of connections; each event is told once.

    For each connection: send `call()`, tell `opened(status)`, then `feed` each line; when it broke, wait `pause_s`.
    """

    def __init__(self, job_id: str, after: int, timeout_s: float | None) -> None:
        self._job_id = job_id
        self._after = after
        self._deadline = None if timeout_s is None else time.monotonic() + timeout_s
        self._failures = 0
        self._fields: dict[str, str] = {}
        self.ended = False
        """Whether the job has ended and its log was read to the last event."""

    def call(self) -> Call:
        """Build the request for what was not read yet; silence longer than its read timeout breaks it."""
        self._fields = {}
        headers = {"Accept": "text/event-stream", "Last-Event-ID": str(self._after)}
        timeout = httpx.Timeout(30.0, read=min(STREAM_IDLE_S, self._seconds_left()))
        return Call("GET", f"/v1/jobs/{self._job_id}/events", {"headers": headers, "timeout": timeout})

    def opened(self, status: int) -> None:
        """Note the status of the answer."""
        self.ended = status == NO_MORE_EVENTS

    def feed(self, line: str) -> Event | None:
        """Read one line of the stream; an event when it completes one. Raises `WaitTimeoutError`."""
        self._seconds_left()
        name, _, value = line.partition(": ")
        if line:
            self._fields[name] = value
            return None
        if "data" not in self._fields:
            return None
        told = json.loads(self._fields["data"])
        self._fields = {}
        event = Event(told["id"], told["type"], told["at"], told["data"])
        self._after, self._failures = event.id, 0
        self.ended = event.type in FINAL_EVENTS
        return event

    def pause_s(self, reason: str = "the service closed the stream") -> float:
        """Say how long to wait before the next connection; raises when there is no point in another one.

        Raises `WaitTimeoutError`, or `ServiceUnavailableError` when the service has stayed away for about a minute.
        """
        if self._failures == len(RECONNECT_WAITS_S):
            raise ServiceUnavailableError(f"Lost the events of {self._job_id}: {reason}. The job may go on.")
        self._failures += 1
        return min(RECONNECT_WAITS_S[self._failures - 1], self._seconds_left())

    def _seconds_left(self) -> float:
        if self._deadline is None:
            return float("inf")
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise WaitTimeoutError(f"Job {self._job_id} has not ended in the given time.")
        return left


# ---- downloading


class Download:
    """An artifact on its way into a file, which gets its name only when the bytes are those that were recorded."""

    def __init__(self, artifact: Document, target: str | os.PathLike[str]) -> None:
        self.target = Path(target)
        self._artifact = artifact
        self._partial = self.target.with_name(f".{self.target.name}.{uuid.uuid4().hex[:8]}.part")
        self._digest = hashlib.sha256()

    def __enter__(self) -> Self:
        self._file = self._partial.open("xb")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._partial.unlink(missing_ok=True)

    def write(self, block: bytes) -> None:
        """Take the next bytes."""
        self._digest.update(block)
        self._file.write(block)

    def finish(self) -> Path:
        """Check the whole and give the file its name. Raises `DownloadError`."""
        found, recorded = self._digest.hexdigest(), self._artifact["sha256"]
        if found != recorded:
            raise DownloadError(
                f"The bytes of {self._artifact['id']} have sha256 {found}, but the service recorded {recorded}. "
                "Download again; if it stays so, the stored object is damaged."
            )
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return self._partial.replace(self.target)
