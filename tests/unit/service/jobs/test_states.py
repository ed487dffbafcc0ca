from __future__ import annotations

import pytest

from service.jobs.states import (
    ACTIVE,
    FINAL,
    TRANSITIONS,
    FailureCode,
    JobState,
    Outcome,
    Stage,
    outcome_of,
    overall_fraction,
)


def test_every_state_has_its_row_and_three_are_final() -> None:
    assert set(TRANSITIONS) == set(JobState)
    assert {JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELED} == FINAL
    assert {JobState.RUNNING, JobState.CANCELING} == ACTIVE


def test_every_job_can_reach_a_final_state() -> None:
    for state in set(JobState) - FINAL:
        assert TRANSITIONS[state] & FINAL


def test_the_codes_that_are_retried_are_those_of_the_product() -> None:
    retried = {code.value for code in FailureCode if code.retryable}
    assert retried == {"gpu-out-of-memory", "worker-lost", "preempted", "stage-timeout", "storage-error"}


@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        (FailureCode.GPU_OUT_OF_MEMORY, Outcome.OOM),
        (FailureCode.WORKER_LOST, Outcome.WORKER_LOST),
        (FailureCode.PREEMPTED, Outcome.PREEMPTED),
        (FailureCode.STAGE_TIMEOUT, Outcome.STALLED),
        (FailureCode.EMPTY_MESH, Outcome.ERROR),
    ],
)
def test_an_attempts_outcome_tells_its_failure(code: FailureCode, outcome: Outcome) -> None:
    assert outcome_of(code) is outcome


def test_the_fraction_grows_with_the_steps_and_stages() -> None:
    told = [overall_fraction(Stage.LOADING, 0, 300)]
    told += [overall_fraction(Stage.COARSE, step, 300) for step in (0, 150)]
    told += [overall_fraction(Stage.REFINE, step, 300) for step in (151, 300)]
    told += [overall_fraction(stage, 300, 300) for stage in (Stage.EXPORT, Stage.VERIFY, Stage.UPLOAD)]
    assert told == sorted(told)
    assert 0 <= told[0] <= told[-1] < 1
