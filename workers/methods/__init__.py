"""The methods, one file and one paper each, and how a job's choice becomes one of them."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, assert_never

if TYPE_CHECKING:
    from service.jobs.spec import AnyMethod
    from workers.contracts import Method, Reward

__all__ = ["make_method"]


def make_method(knobs: AnyMethod, reward: Reward | None) -> Method:
    """Bind a method to its knobs and to the reward that steers it (DreamFL) or judges (DreamDPO).

    Raises ValueError when the method needs a reward and there is none, or is not in this release.
    """
    if knobs.name == "sds":
        from workers.methods.sds import sds

        return functools.partial(sds, knobs=knobs)
    if knobs.name == "psd":
        raise ValueError("method 'psd' is not in this release; choose sds, dreamfl or dreamdpo")
    if reward is None:
        raise ValueError(
            f"method '{knobs.name}' needs a reward, but the job names none; add one to `rewards`"
        )
    match knobs.name:
        case "dreamfl":
            from workers.methods.dreamfl import dreamfl

            return functools.partial(dreamfl, knobs=knobs, reward=reward)
        case "dreamdpo":
            from workers.methods.dreamdpo import dreamdpo

            return functools.partial(dreamdpo, knobs=knobs, judge=reward)
        case _:
            assert_never(knobs.name)
