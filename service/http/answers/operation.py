"""What the service can do and does, for whom, and whether it is well, as it is answered."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import WithJsonSchema

from service.http.answers.base import Answer, Page, Range, Time
from service.jobs.keys import Scope
from service.jobs.troubles import Source

__all__ = [
    "Health",
    "Key",
    "KeyPage",
    "KeyWithToken",
    "MethodPage",
    "Queue",
    "Readiness",
    "RewardPage",
    "UsagePage",
]


class Known(Answer):
    """Who has told what can be run, and when that was last true."""

    known_from: Literal["live_workers", "last_workers", "settings"]
    seen_at: Time | None


class KnownPart(Answer):
    """A prior or reward; the fields of one that is not `available` are few."""

    name: str
    available: bool
    license: str
    commercial_ok: bool
    weights: str | None
    missing: list[str]
    """Files that are not there, each with where it comes from."""
    how: str | None
    """How to get them."""
    about: str | None = None
    views: int | None = None
    """Views of an object that it takes together; null: any number, one by one."""


class KnownReward(KnownPart):
    """A reward."""

    version: str | None = None
    differentiable: bool | None = None
    multiview: bool | None = None
    score_range: Range | None = None
    typical: Range | None = None
    """Center and spread of its scores."""
    steers: bool | None = None
    """false: it scores finished objects, as a referee."""
    details: dict[str, Any] | None = None


class Method(Answer):
    """A method with its knobs."""

    name: str
    license: str
    commercial_ok: bool
    weights: str | None
    about: str
    views: int | None
    summary: str
    defaults: dict[str, Any]
    parameters: dict[str, Any]
    """JSON Schema of its knobs."""
    priors: list[KnownPart]
    presets: list[dict[str, Any]]
    """What they fill into a request that names one."""


class MethodPage(Page[Method], Known):
    """The methods that workers can run."""


class RewardPage(Page[KnownReward], Known):
    """The rewards that workers can steer with, or score by."""


class QueueDepth(Answer):
    """Jobs that wait, by priority."""

    high: int
    normal: int
    low: int
    total: int


class QueueShare(Answer):
    """The caller's own jobs."""

    queued: int
    running: int


class Workers(Answer):
    """Live workers by state."""

    starting: int
    idle: int
    busy: int
    draining: int


class Capacity(Answer):
    """What works on the queue: a slot is one job at a time."""

    slots: int
    busy_slots: int
    workers: Workers
    max_queued: int | None


class Scale(Answer):
    """What the fleet is doing."""

    state: Literal["scaling_up", "scaling_down", "steady", "empty"]


class Queue(Answer):
    """What waits, and what works on it."""

    depth: QueueDepth
    paused: int
    running: int
    yours: QueueShare
    capacity: Capacity
    scale: Scale
    oldest_wait_s: float | None


class EndedJobs(Answer):
    """Jobs that have ended, by how."""

    succeeded: int
    failed: int
    canceled: int


class UsageDay(Answer):
    """What one owner has used on one day (UTC)."""

    day: Annotated[str, WithJsonSchema({"type": "string", "format": "date"})]
    owner: str
    worker_s: float
    jobs: EndedJobs


class UsagePage(Page[UsageDay]):
    """Worker seconds and ended jobs, newest day first."""


class KeyQuotas(Answer):
    """What the jobs of a key's owner may use; null: no bound."""

    max_queued: int | None
    max_running: int | None
    max_worker_s_per_day: float | None


class Key(Answer):
    """An API key, without the key itself."""

    id: str
    name: str
    owner: str
    scopes: list[Scope]
    quotas: KeyQuotas
    weight: float
    created_at: Time
    revoked_at: Time | None
    last_used_at: Time | None


class KeyWithToken(Key):
    """A new key; `token` is the key itself, and never shown again."""

    token: str


class KeyPage(Page[Key]):
    """All keys, the oldest first."""


class Health(Answer):
    """That this process answers."""

    service: Literal["dreamserve"]
    status: Literal["ok"]


class Trouble(Answer):
    """What keeps workers from starting."""

    source: Source
    at: Time
    detail: str


class Readiness(Known):
    """That jobs can be taken."""

    service: Literal["dreamserve"]
    status: Literal["ready"]
    workers: int
    trouble: list[Trouble]
