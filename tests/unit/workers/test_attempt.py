"""When a worker stops by itself, as it could not renew its lease."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from service.settings import Settings
from workers.attempt import Attempt, Verdict


@pytest.fixture
def attempt() -> Attempt:
    lease: Any = SimpleNamespace(lease_s=Settings().lease_s, deadline_in_s=1e6)
    return Attempt(lease, claimed_at=100.0)


def test_it_stops_45_s_after_the_last_report_that_was_answered(attempt: Attempt) -> None:
    assert attempt.verdict(100 + 45) is Verdict.GO_ON
    assert attempt.verdict(100 + 45.1) is Verdict.LOST
    assert not attempt.may_publish(100 + 45.1)


def test_a_report_counts_from_when_it_was_sent(attempt: Attempt) -> None:
    answer: Any = SimpleNamespace(
        cancel_requested=False, keep_partial=False, deadline_passed=False, overdrawn=None
    )
    attempt.renewed(130.0, answer)
    assert attempt.verdict(130 + 45) is Verdict.GO_ON
    assert attempt.verdict(130 + 45.1) is Verdict.LOST
