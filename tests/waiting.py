"""Waiting for what other threads and processes do."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["wait_until"]


def wait_until(done: Callable[[], bool], timeout_s: float, every_s: float) -> None:
    """Ask every `every_s` whether something is done; fail when it is not within `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not done():
        assert time.monotonic() < deadline, f"not so within {timeout_s:g} s"
        time.sleep(every_s)
