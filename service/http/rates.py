"""How many requests a second each API key may send: token buckets in the memory of one replica."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["RateLimit"]

_BURST_S: Final = 2.0
"""A caller that was silent may send as many requests at once as in this time, seconds."""
_MAX_BUCKETS: Final = 10_000
"""Beyond so many callers, those that have a full bucket are forgotten: that is what a new caller has."""


class RateLimit:
    """One bucket for each caller, who takes a token with each request; for the one thread of an event loop."""

    def __init__(self, per_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        """`per_s`: requests a second of each caller, 0 for any number; `clock` counts seconds."""
        self._per_s = per_s
        self._burst = max(1.0, per_s * _BURST_S)
        self._clock = clock
        self._buckets: dict[bytes, tuple[float, float]] = {}
        """Tokens of a caller, and when it had them."""

    def take(self, caller: bytes) -> float:
        """Count a request: 0 when it may pass, or else in how many seconds the next one may."""
        if not self._per_s:
            return 0.0
        now = self._clock()
        if len(self._buckets) >= _MAX_BUCKETS:
            self._buckets = {
                one: held for one, held in self._buckets.items() if self._now(held, now) < self._burst
            }
        tokens = self._now(self._buckets.get(caller, (self._burst, now)), now)
        passes = tokens >= 1
        self._buckets[caller] = (tokens - passes, now)
        return 0.0 if passes else (1 - tokens) / self._per_s

    def _now(self, held: tuple[float, float], now: float) -> float:
        tokens, at = held
        return min(self._burst, tokens + (now - at) * self._per_s)
