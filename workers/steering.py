"""Which of a job's rewards steers it, and how several of them become one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reward_models.ensemble import standard_member

if TYPE_CHECKING:
    from reward_models.ensemble import Member
    from service.jobs.spec import JobSpec

__all__ = ["ENSEMBLE", "ensemble_members", "steering_reward"]

ENSEMBLE = "ensemble"
"""The name under which several rewards steer as one."""


def steering_reward(spec: JobSpec) -> str | None:
    """Name what steers: the method's judge, else the job's one reward, else `ENSEMBLE`.

    SDS follows none: of several rewards the first one stands for what it would have followed.
    """
    if judge := getattr(spec.method, "judge", None):
        return str(judge)
    if len(spec.rewards) > 1 and spec.method.name != "sds":
        return ENSEMBLE
    return next((use.name for use in spec.rewards), None)


def ensemble_members(spec: JobSpec) -> list[Member]:
    """Make a job's rewards the members of an ensemble: each weighted as asked, on its typical scale, over all views."""
    return [standard_member(use.name, use.weight) for use in spec.rewards]
