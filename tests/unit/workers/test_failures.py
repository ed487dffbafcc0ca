"""Which failure code a job's document has for what a reward or a judge did."""

from __future__ import annotations

import pytest

from reward_models.actor import RewardUnavailable
from reward_models.contracts import NotFinite
from reward_models.multimodal_questions import JudgeUnavailable, UnparsedAnswers
from service.jobs.states import FailureCode
from workers.failures import failure_of


@pytest.mark.parametrize(
    ("error", "code", "tried_again"),
    [
        (NotFinite("nan"), FailureCode.NAN_DIVERGENCE, False),
        (RewardUnavailable("gone"), FailureCode.WORKER_LOST, True),
        (JudgeUnavailable("down"), FailureCode.STAGE_TIMEOUT, True),
        (UnparsedAnswers("prose"), FailureCode.STAGE_TIMEOUT, True),
    ],
)
def test_what_a_reward_does_is_told_as_what_it_is(
    error: Exception, code: FailureCode, tried_again: bool
) -> None:
    assert failure_of(error) == (code, str(error))
    assert code.retryable is tried_again
