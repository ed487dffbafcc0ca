"""How often a worker asks a store again that did not answer."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["pauses"]

FIRST_S: Final = 0.5
LONGEST_S: Final = 10.0


def pauses(budget_s: float, clock: Callable[[], float] = time.monotonic) -> Iterator[float]:
    """Yield the seconds to wait before each next try, for `budget_s` from the first failure on: that asks for one.

    They double, so that a store which comes back is soon noticed, and one that is down for long is not besieged.
    """
    until, pause_s = clock() + budget_s, FIRST_S
    while (left_s := until - clock()) > 0:
        yield min(pause_s, left_s)
        pause_s = min(2 * pause_s, LONGEST_S)
