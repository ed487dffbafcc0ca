from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from service.background import Background, Chore
from service.jobs.errors import StoreUnavailable

if TYPE_CHECKING:
    import pytest


def test_chores_are_repeated_until_the_end_and_a_slow_one_delays_no_other() -> None:
    go_on, ticks = threading.Event(), threading.Semaphore(0)
    background = Background([Chore(go_on.wait, 0.01), Chore(ticks.release, 0.01)])
    background.start()
    for _ in range(3):
        assert ticks.acquire(timeout=10)
    go_on.set()
    background.stop()
    while ticks.acquire(blocking=False):
        pass
    assert not ticks.acquire(timeout=0.1)


def test_a_chore_that_fails_is_logged_and_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    done = threading.Event()
    failures = iter([StoreUnavailable("database", "gone"), ZeroDivisionError("mistake")])

    def fail() -> None:
        for failure in failures:
            raise failure
        done.set()

    background = Background([Chore(fail, 0.01)])
    background.start()
    assert done.wait(10)
    background.stop()
    assert "the database did not answer: gone" in caplog.text
    assert "ZeroDivisionError: mistake" in caplog.text


def test_nothing_begins_after_an_early_end() -> None:
    begun = threading.Event()
    background = Background([Chore(begun.set, 60.0)])
    background.start()
    background.stop()
    assert not begun.is_set()
