"""The operator's multimodal judge in jobs: offered, asked, undecided, unreadable."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from service.jobs.admission import admit
from service.jobs.errors import Refused
from tests.unit.reward_models.judge_server import JudgeServer, Reply, judge_server
from tests.unit.workers.small_workers import Service
from workers.networks import load_networks

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SMALL = {"outputs": {"thumbnail": False}, "mesh": {"target_faces": 500, "texture_px": 64}, "seed": 7}


def finished(folder: Path, server: JudgeServer, method: dict[str, Any]) -> dict[str, Any]:
    """A job of three steps on the embedded prior, judged by this server."""
    settings = {"judge_url": server.base_url, "judge_format": "quality", "default_max_attempts": 1}
    service = Service(folder, reward_placement="local", **settings)
    networks = load_networks(service.settings)
    asked = {"prompt": "a red cube", "steps": 3, "method": {"name": "dreamdpo", **method}, **SMALL}
    document, _ = service.store.submit(admit(asked, networks.capabilities(), service.settings).spec)
    (job,) = service.finish(document["id"], workers=(service.worker(load=lambda: networks),))
    return job


def always(text: str) -> Callable[[int, dict[str, Any]], Reply]:
    return lambda number, request: Reply(text)


def test_a_judge_that_the_operator_names_judges_jobs(tmp_path: Path) -> None:
    with judge_server(always('{"score": 3}')) as server:
        job = finished(tmp_path, server, {"judge": "multimodal"})
    assert job["status"] == "succeeded", job["error"]
    assert len(server.requests) >= 3, "it was asked at each step"
    assert job["result"]["candidates"][0]["scores"]["multimodal"] == 3
    assert {"name": "multimodal", "license": "NOASSERTION"} in job["result"]["licenses"]


def test_a_second_judge_that_cannot_be_read_is_undecided(tmp_path: Path) -> None:
    with judge_server(always("I like both of them.")) as server:
        override = {"override": "multimodal", "override_from": 0.0, "override_share": 1.0}
        job = finished(tmp_path, server, override)
    assert job["status"] == "succeeded", job["error"]
    assert server.requests
    assert "multimodal" not in job["result"]["candidates"][0]["scores"], (
        "unreadable is no number, and never a zero"
    )


def test_a_judge_that_cannot_be_read_ends_the_attempt_and_says_why(tmp_path: Path) -> None:
    with judge_server(always("I like both of them.")) as server:
        job = finished(tmp_path, server, {"judge": "multimodal"})
    assert job["status"] == "failed"
    assert "cannot be read" in job["error"]["detail"]


def test_without_an_endpoint_a_job_is_refused_and_told_what_the_operator_can_do(tmp_path: Path) -> None:
    service = Service(tmp_path, reward_placement="local")
    can = load_networks(service.settings).capabilities()
    with pytest.raises(Refused) as refused:
        admit({"prompt": "x", "method": {"name": "dreamdpo", "judge": "multimodal"}}, can, service.settings)
    assert refused.value.problems[0].pointer == "/method/judge"
    assert "DREAMSERVE_JUDGE_URL" in refused.value.suggestion
