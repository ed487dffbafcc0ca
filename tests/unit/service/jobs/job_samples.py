"""Small real things that the tests of jobs share: a clock to turn by hand, specs, leases, results."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from service.jobs.admission import parse_request
from service.jobs.capabilities import embedded_capabilities
from service.jobs.defaults import with_defaults
from service.jobs.leasing import SWEEP_EVERY_S
from service.jobs.states import Checkpoint, NewArtifact
from service.settings import Settings

if TYPE_CHECKING:
    import sqlalchemy as sa

    from service.jobs.capabilities import Capabilities
    from service.jobs.spec import JobSpec
    from service.jobs.states import Lease
    from service.jobs.store import JobStore

__all__ = [
    "ARTIFACTS",
    "FakeClock",
    "checkpoint",
    "claimed",
    "pass_in_silence",
    "result_of",
    "spec_of",
    "types_of",
]

ARTIFACTS = (
    NewArtifact("glb", "object.glb", "model/gltf-binary", 2_048, "a" * 64, "jobs/x/0001/object.glb"),
    NewArtifact("thumbnail", "thumbnail.png", "image/png", 512, "b" * 64, "jobs/x/0001/thumbnail.png"),
)


class FakeClock:
    """The time that a store reads, moved by tests."""

    def __init__(self) -> None:
        self.now = 1_750_000_000.0

    def __call__(self, connection: sa.Connection) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


def pass_in_silence(store: JobStore, clock: FakeClock, seconds: float) -> None:
    """Let time pass in which no worker says a word; frontends look at the leases all the while."""
    until = clock.now + seconds
    while clock.now < until:
        clock.advance(min(SWEEP_EVERY_S, until - clock.now))
        store.sweep()


def spec_of(**fields: Any) -> JobSpec:
    """A complete spec of a request with these fields."""
    request = parse_request({"prompt": "a red cube", **fields})
    return with_defaults(request, embedded_capabilities(), Settings(), seed=7).spec


def claimed(
    store: JobStore, worker: str = "worker-1", lease_s: float = 60.0, can: Capabilities | None = None
) -> Lease:
    """The next lease, which must exist."""
    lease = store.claim(worker, lease_s, can)
    assert lease is not None
    return lease


def checkpoint(step: int, attempt: int = 1) -> Checkpoint:
    return Checkpoint(f"jobs/x/{attempt:04d}/checkpoints/{step}", "c" * 64, step, 1_000)


def result_of(attempt: int = 1) -> dict[str, Any]:
    return {
        "candidates": [
            {
                "index": 0,
                "scores": {"embedded-multiview": 0.8},
                "referee": {"name": "embedded-alignment", "score": 0.7},
                "kept": True,
            }
        ],
        "mesh": {"faces": 9_000, "watertight": True, "components": 1, "agreement": 0.97},
        "provenance": {"code": "test", "seed": 7, "weights": {}, "determinism": "none", "attempt": attempt},
        "licenses": [],
    }


def types_of(store: JobStore, job_id: str) -> list[str]:
    """The types of a job's events, without their common beginning."""
    return [event["type"].removeprefix("job.") for event in store.events(job_id)]
