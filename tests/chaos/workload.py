"""The clients: they submit jobs under idempotency keys, repeat what got no answer, and cancel a few."""

from __future__ import annotations

import hashlib
import queue
import random
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import httpx

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Intention", "Workload", "seed_of"]

STEPS = 120
NUM_CLIENTS = 4
CANCEL_SHARE, REPEAT_SHARE = 0.05, 0.15
TIMEOUT_S = 5.0
PATIENCE_S = 120.0
MAX_QUEUED = 20
"""Clients wait while so many jobs do, so that faults meet every stage of jobs and not a long queue."""


def seed_of(prompt: str) -> int:
    """The seed under which a prompt is asked for: its hash, which the GLB then carries."""
    return int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:6], "big")


@dataclass(slots=True)
class Intention:
    """One job that a client wants, and what it was told."""

    number: int
    owner: str
    prompt: str
    answers: set[str] = field(default_factory=set)
    """The ids that it got for its key: one, if the service keeps its word."""
    canceled: bool = False


class Workload:
    """`num_jobs` intentions of several owners, carried out by a few threads at `jobs_per_s` or less."""

    def __init__(
        self,
        url: str,
        keys: dict[str, str],
        num_jobs: int,
        jobs_per_s: float,
        num_queued: Callable[[], int],
        seed: int,
    ) -> None:
        self._url, self._keys, self._pause_s = url, keys, NUM_CLIENTS / jobs_per_s
        self._num_queued = num_queued
        self._random = random.Random(seed)
        owners = sorted(keys)
        self.intentions = [
            Intention(number, owners[number % len(owners)], f"red ball no. {number} ${{oc.env:HOME}} «é»")
            for number in range(num_jobs)
        ]
        self._waiting: queue.SimpleQueue[Intention] = queue.SimpleQueue()
        for one in self.intentions:
            self._waiting.put(one)
        self.troubles = 0
        """Requests that had to be repeated."""
        self.errors: list[str] = []
        """What no client should ever see."""
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(NUM_CLIENTS)]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        """Wait until every intention was answered."""
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        with httpx.Client(base_url=self._url, timeout=TIMEOUT_S) as http:
            while not self._waiting.empty():
                try:
                    self._carry_out(http, self._waiting.get_nowait())
                except queue.Empty:
                    return
                time.sleep(self._random.uniform(0, 2 * self._pause_s))
                while self._num_queued() >= MAX_QUEUED:
                    time.sleep(self._pause_s)

    def _carry_out(self, http: httpx.Client, one: Intention) -> None:
        body = {
            "prompt": one.prompt,
            "seed": seed_of(one.prompt),
            "steps": STEPS,
            "method": "sds",
            "outputs": {"thumbnail": False},
            "mesh": {"target_faces": 500, "texture_px": 64},
            "limits": {"max_attempts": 20},
        }
        for _ in range(2 if self._random.random() < REPEAT_SHARE else 1):
            answer = self._insist(http, one, "/generate", body)
            if answer is not None:
                one.answers.add(str(answer["id"]))
        if one.answers and self._random.random() < CANCEL_SHARE:
            one.canceled = self._insist(http, one, f"/v1/jobs/{min(one.answers)}/cancel", None) is not None

    def _insist(
        self, http: httpx.Client, one: Intention, path: str, body: dict[str, object] | None
    ) -> dict[str, object] | None:
        """POST until it is answered, as a client with patience does."""
        headers = {"Authorization": f"Bearer {self._keys[one.owner]}"}
        if body is not None:
            headers["Idempotency-Key"] = f"chaos-{one.number}"
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            try:
                answer = http.post(path, json=body, headers=headers)
            except httpx.HTTPError:
                pass
            else:
                if answer.status_code in (200, 202):
                    found: dict[str, object] = answer.json()
                    return found
                if answer.status_code not in (429, 500, 502, 503):
                    self.errors.append(f"{path}: {answer.status_code} {answer.text[:300]}")
                    return None
                if answer.status_code == 500:
                    self.errors.append(f"{path}: an internal error {answer.text[:300]}")
            self.troubles += 1
            time.sleep(0.2)
        self.errors.append(f"{path}: no answer within {PATIENCE_S:g} s")
        return None
