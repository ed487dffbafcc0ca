"""A reward in an actor answers as in this process, drops what nobody waits for, and may be killed under a job."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from reward_models.actor import RETRY_DELAYS_S
from tests.cluster.reward_actor import KILLED_AT, REWARD, STEPS

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder: Path = tmp_path_factory.mktemp("reward")
    told = subprocess.run(
        [sys.executable, "-m", "tests.cluster.reward_actor", str(folder)],
        env=os.environ | {"RAY_worker_niceness": "0"},
        stdout=subprocess.PIPE,
        check=True,
        timeout=1_200,
    ).stdout
    answer: dict[str, Any] = json.loads(told.splitlines()[-1])
    return answer


@pytest.mark.parametrize(("way", "shares"), [("lends", True), ("sends", False), ("stranger", False)])
def test_the_gradient_through_an_actor_is_that_of_this_process(
    seen: dict[str, Any], way: str, shares: bool
) -> None:
    assert seen["float64"]["largest_gradient"] > 1e-3
    assert seen["float64"][way]["gradient"] <= 1e-12
    assert seen["float64"][way]["values"] <= 1e-12
    assert seen["float64"][way]["shares"] is shares, "who does not see the memory is sent the pictures"


def test_an_actor_refuses_in_the_rewards_own_words(seen: dict[str, Any]) -> None:
    told = seen["float64"]["refusal"]
    assert told == f"reward '{REWARD}' wants finite images in [0, 1], but got values from nan to nan"


def test_an_actor_that_does_not_come_back_is_asked_three_times_more_and_then_given_up(
    seen: dict[str, Any],
) -> None:
    told = seen["float64"]["given_up"]
    assert told.startswith(
        f"The shared reward '{REWARD}' did not answer, also not after 3 retries (ActorDiedError)"
    )
    assert sum(RETRY_DELAYS_S) <= seen["float64"]["given_up_s"] < 60, "seconds"


def test_a_request_that_was_given_up_or_is_late_is_never_computed(seen: dict[str, Any]) -> None:
    assert "longer than its deadline allows" in seen["dropped"]["late"]
    assert (seen["dropped"]["calls"], seen["dropped"]["dropped"]) == (1, 2)
    assert seen["dropped"]["buffers"] == 0, "memory in which an answer may still be written is not used again"


def test_a_job_outlives_its_reward_actor_and_goes_on_as_if_nothing_had_happened(seen: dict[str, Any]) -> None:
    calm, killed = seen["calm"], seen["killed"]
    for run in (calm, killed):
        assert run["job"]["status"] == "succeeded", run["job"]["error"]
        assert len(run["job"]["attempts"]) == 1
        assert len(run["scores"]) > STEPS
    assert (calm["restarted"], killed["restarted"]) == (False, True)
    following = slice(KILLED_AT, KILLED_AT + 50)
    for expected, found in zip(calm["scores"][following], killed["scores"][following], strict=True):
        assert found == pytest.approx(expected, rel=1e-4)
