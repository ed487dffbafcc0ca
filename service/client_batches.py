"""Batches through the Python client.

from service.client import Client
from service.client_batches import submit_batch

with Client() as client:
    batch = submit_batch(client, lambda: [b'{"custom_id": "a", "body": {"prompt": "a red cube"}}'], max_parallel=2)
    batch.wait()
    for result in batch.results():
        print(result["custom_id"], result["status"], result["scores"])
"""

from __future__ import annotations

import json
import time
import uuid
from typing import TYPE_CHECKING, Any, Final, Self

import httpx

from service.client_core import RECONNECT_WAITS_S, SUBMIT_WAITS_S, segment
from service.client_errors import ServiceUnavailableError, WaitTimeoutError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from service.client import Client

__all__ = ["BatchHandle", "batch_of", "list_batches", "submit_batch"]

ENDED: Final = frozenset({"completed", "canceled"})
POLL_S: Final = 1.0
UPLOAD_TIMEOUT_S: Final = 600.0
"""The service reads an upload as fast as it checks it: 100,000 lines take about half a minute."""


class _Lines:
    """The body of an upload, which can be sent again."""

    def __init__(self, lines: Callable[[], Iterable[bytes]]) -> None:
        self._lines = lines

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._lines())


def submit_batch(
    client: Client,
    lines: Callable[[], Iterable[bytes]],
    *,
    defaults: Mapping[str, Any] | None = None,
    sweep: Mapping[str, Sequence[Any]] | None = None,
    max_parallel: int | None = None,
    metadata: Mapping[str, str] | None = None,
    idempotency_key: str | None = None,
) -> BatchHandle:
    """Upload lines of JSON, each `{"custom_id", "body"}` and ending in a line break.

    `lines` is called anew when a broken connection or a rate limit makes another try necessary; a key, made up unless
    given, keeps that from making a second batch. Raises `InvalidRequestError`, `RefusedError`.
    """
    options = {"defaults": defaults, "sweep": sweep, "metadata": metadata}
    params = {name: json.dumps(value) for name, value in options.items() if value}
    if max_parallel is not None:
        params["max_parallel"] = str(max_parallel)
    headers = {
        "Content-Type": "application/jsonl",
        "Idempotency-Key": idempotency_key or uuid.uuid4().hex,
    }
    timeout = httpx.Timeout(30.0, read=UPLOAD_TIMEOUT_S, write=UPLOAD_TIMEOUT_S)
    for wait_s in (*SUBMIT_WAITS_S, None):
        try:
            answer = client.request(
                "POST", "/v1/batches", content=_Lines(lines), headers=headers, params=params, timeout=timeout
            )
            return BatchHandle(client, answer.json())
        except ServiceUnavailableError:
            if wait_s is None:
                raise
            time.sleep(wait_s)
    raise AssertionError("unreachable: the last attempt returns or raises")


def batch_of(client: Client, batch_id: str) -> BatchHandle:
    """Fetch one batch. Raises `NotFoundError`."""
    return BatchHandle(client, client.request("GET", f"/v1/batches/{segment(batch_id)}").json())


def list_batches(client: Client, page_size: int = 50) -> Iterator[BatchHandle]:
    """Iterate over the batches, newest first, fetching further pages as needed."""
    for document in client.items("/v1/batches", {"limit": page_size}):
        yield BatchHandle(client, document)


class BatchHandle:
    """One batch: `document` is its state when last fetched (`refresh` fetches it again)."""

    def __init__(self, client: Client, document: dict[str, Any]) -> None:
        self._client = client
        self.document = document

    @property
    def id(self) -> str:
        batch_id: str = self.document["id"]
        return batch_id

    @property
    def status(self) -> str:
        status: str = self.document["status"]
        return status

    @property
    def counts(self) -> dict[str, int]:
        """How many lines are in which state; all but `total` add up to it."""
        counts: dict[str, int] = self.document["counts"]
        return counts

    @property
    def ended(self) -> bool:
        """Whether nothing more comes, unless failed lines are retried."""
        return self.status in ENDED

    def refresh(self) -> Self:
        """Fetch the batch's state."""
        self.document = self._client.request("GET", f"/v1/batches/{self.id}").json()
        return self

    def pause(self) -> Self:
        """Start no more of its jobs."""
        return self._steer("pause")

    def resume(self) -> Self:
        """Go on after a pause."""
        return self._steer("resume")

    def cancel(self) -> Self:
        """End all of its jobs; harmless when it has ended."""
        return self._steer("cancel")

    def retry_failed(self) -> Self:
        """Make a new job for each line whose job has failed."""
        return self._steer("retry-failed")

    def wait(self, timeout_s: float | None = None) -> Self:
        """Wait for its end. Raises `WaitTimeoutError`, and `ServiceUnavailableError` after about a minute of it."""
        for _ in self.progress(timeout_s):
            pass
        return self

    def progress(self, timeout_s: float | None = None) -> Iterator[dict[str, int]]:
        """Give its counts whenever they have changed, until its end. Raises as `wait`."""
        until = None if timeout_s is None else time.monotonic() + timeout_s
        told: dict[str, int] | None = None
        failures = 0
        while True:
            pause_s = POLL_S
            try:
                self.refresh()
                failures = 0
            except ServiceUnavailableError:
                if failures == len(RECONNECT_WAITS_S):
                    raise
                pause_s = RECONNECT_WAITS_S[failures]
                failures += 1
            if self.counts != told:
                told = self.counts
                yield told
            if self.ended:
                return
            if until is not None and time.monotonic() + pause_s > until:
                raise WaitTimeoutError(f"Batch {self.id} has not ended in the given time.")
            time.sleep(pause_s)

    def results(self, status: str | None = None, page_size: int = 500) -> Iterator[dict[str, Any]]:
        """Iterate over what became of its lines, in their order, also while it runs."""
        params: dict[str, Any] = {"limit": page_size}
        if status is not None:
            params["status"] = status
        yield from self._client.items(f"/v1/batches/{self.id}/results", params)

    def _steer(self, action: str) -> Self:
        self.document = self._client.request("POST", f"/v1/batches/{self.id}/{action}").json()
        return self
