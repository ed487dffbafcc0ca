"""The methods, one file and one paper each, and how a job's choice becomes one of them."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, assert_never

if TYPE_CHECKING:
    from service.jobs.knobs import AnyMethod
    from workers.contracts import Method, Reward

__all__ = ["make_method"]


def make_method(knobs: AnyMethod, reward: Reward | None, override: Reward | None = None) -> Method:
    """Bind a method to its knobs and to the reward that steers it (DreamFL) or judges (DreamDPO, PSD).

    `override` is DreamDPO's second judge. Raises ValueError when the method needs a reward and there is none.
    """
    if knobs.name == "sds":
        from workers.methods.sds import sds

        return functools.partial(sds, knobs=knobs)
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

            if (knobs.override is None) != (override is None):
                raise ValueError(
                    f"dreamdpo's second judge is {knobs.override!r} by its knobs, but {override!r} was given"
                )
            return functools.partial(dreamdpo, knobs=knobs, judge=reward, override=override)
        case "psd":
            from workers.methods.psd import psd

            return functools.partial(psd, knobs=knobs, judge=reward)
        case _:
            assert_never(knobs.name)
