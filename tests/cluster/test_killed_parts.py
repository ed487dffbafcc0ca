"""Serve's processes or the pool's scaler die under a running job: a blip at the most, and the job does not notice."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from service.jobs.leadership import LEADER_LEASE_S

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

BLIP_S = 60.0
"""Seconds on an idle machine; 23 were seen where ten others wanted each of two cores."""
LOOK_S = 2.0
"""What a new leader may come after the lease of the last one: it asks every half a second."""


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the program has seen."""
    folder: Path = tmp_path_factory.mktemp("killed")
    command = [sys.executable, "-m", "tests.cluster.killed_parts", str(folder)]
    told = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert told.returncode == 0, told.stderr[-4_000:]
    document: dict[str, Any] = json.loads(told.stdout.splitlines()[-1])  # Ray writes there too
    print({part: round(one["away_s"], 1) for part, one in document["killed"].items()})
    return document


@pytest.mark.parametrize("part", ["replica", "proxy", "controller"])
def test_a_part_of_serve_that_is_killed_is_back_within_seconds(seen: dict[str, Any], part: str) -> None:
    assert seen["killed"][part]["away_s"] < BLIP_S


@pytest.mark.parametrize("part", ["replica", "proxy", "controller", "scaler"])
def test_a_running_job_does_not_notice_that_a_part_is_killed(seen: dict[str, Any], part: str) -> None:
    killed = seen["killed"][part]
    assert killed["status"] == "succeeded"
    (attempt,) = killed["attempts"]
    assert [attempt["worker"]] == seen["workers"][0]
    assert killed["steps_meanwhile"] > 0


@pytest.mark.parametrize(("part", "breaks"), [("replica", True), ("proxy", True), ("controller", False)])
def test_whoever_follows_a_job_misses_no_event_of_it(seen: dict[str, Any], part: str, breaks: bool) -> None:
    killed = seen["killed"][part]
    assert killed["follower"]["error"] is None
    assert killed["follower"]["events"] == killed["events"]
    assert (killed["follower"]["streams"] > 1) is breaks, "a broken stream was taken up again"


def test_another_scaler_leads_within_the_lease_and_takes_the_workers_over(seen: dict[str, Any]) -> None:
    assert seen["killed"]["scaler"]["away_s"] < LEADER_LEASE_S + LOOK_S
    before, adopted = seen["workers"]
    assert adopted == before
    assert seen["most_workers"] == 1, "no surplus worker was started"
