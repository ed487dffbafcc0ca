"""The pool on an autoscaling cluster: GPU nodes come for jobs and go without; no job is hurt by that."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

RUNS = 20 if os.environ.get("FULL") == "1" else 3


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the program has seen: six jobs, one on a node that is drained, then random ones."""
    folder: Path = tmp_path_factory.mktemp("autoscaling")
    command = [sys.executable, "-m", "tests.cluster.autoscaling", str(folder), str(RUNS)]
    told = subprocess.run(command, capture_output=True, text=True, timeout=1_200, check=False)
    assert told.returncode == 0, told.stderr[-4_000:]
    document: dict[str, Any] = json.loads(told.stdout.splitlines()[-1])  # Ray writes there too
    print(document["seconds"])
    return document


def test_nodes_come_for_queued_jobs_and_vanish_without_any(seen: dict[str, Any]) -> None:
    assert seen["before"] == [0, 0], "nodes and workers before the first job"
    assert 0 < seen["most_nodes"] <= seen["plan"]["max"]
    assert 0 < seen["most_workers"] <= seen["plan"]["max"]
    assert seen["nodes_after"] == 0


def test_no_busy_worker_is_ended_by_the_pool_or_the_autoscaler(seen: dict[str, Any]) -> None:
    first = seen["plan"]["first"]
    left_alone = seen["jobs"][:first] + seen["jobs"][first + 1 :]
    assert len(left_alone) >= first + RUNS
    for job in left_alone:
        assert [one["outcome"] for one in job["attempts"]] == ["succeeded"], job


def test_a_worker_leaves_a_node_that_is_drained_and_its_job_goes_on_elsewhere(seen: dict[str, Any]) -> None:
    job = seen["jobs"][seen["plan"]["first"]]
    assert [one["outcome"] for one in job["attempts"]] == ["preempted", "succeeded"]
    assert 0 < job["attempts"][1]["resumed_from_step"] <= seen["plan"]["long_steps"]
    assert job["failures"] == 0
    assert seen["seconds"]["drained"] < 30, "within the notice"
