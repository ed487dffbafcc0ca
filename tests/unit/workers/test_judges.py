"""The operator's multimodal judge in jobs: offered, asked, undecided, unreadable."""

from __future__ import annotations

import functools
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from service.http.capabilities import list_rewards
from service.jobs.admission import admit
from service.jobs.errors import Refused
from tests.unit.reward_models.judge_server import Reply, judge_server
from tests.unit.reward_models.small_qwen import write_folder
from tests.unit.workers.small_workers import Service, small_networks
from workers.judges import JUDGE
from workers.networks import OnDemand, load_networks

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from workers.networks import Networks

SMALL = {
    "outputs": {"thumbnail": False},
    "mesh": {"target_faces": 500, "texture_px": 64},
    "seed": 7,
    "referee": None,
}


def done(
    folder: Path,
    settings: dict[str, Any],
    method: dict[str, Any],
    *,
    whole: bool = False,
    before: Callable[[Networks], None] = lambda networks: None,
) -> dict[str, Any]:
    """A job of three steps, judged as these settings say; what its worker holds is looked at `before` it begins.

    On a prior whose scenes step in milliseconds, unless the `whole` embedded default is wanted.
    """
    given = {"judge_format": "quality", "default_max_attempts": 1} | settings
    service = Service(folder, reward_placement="local", **given)
    networks = load_networks(service.settings)
    if not whole:
        small = small_networks()
        rewards = OnDemand(small.rewards, {JUDGE: functools.partial(networks.rewards.__getitem__, JUDGE)})
        networks = replace(networks, priors=small.priors, rewards=rewards)
    before(networks)
    asked = {"prompt": "a red cube", "steps": 3, "method": {"name": "dreamdpo", **method}, **SMALL}
    document, _ = service.store.submit(admit(asked, networks.capabilities(), service.settings).spec)
    (job,) = service.finish(document["id"], workers=(service.worker(load=lambda: networks),))
    return job


def always(text: str) -> Callable[[int, dict[str, Any]], Reply]:
    return lambda number, request: Reply(text)


def test_a_judge_that_the_operator_names_judges_jobs(tmp_path: Path) -> None:
    with judge_server(always('{"score": 3}')) as server:
        job = done(tmp_path, {"judge_url": server.base_url}, {"judge": "multimodal"}, whole=True)
    assert job["status"] == "succeeded", job["error"]
    assert len(server.requests) >= 3, "it was asked at each step"
    assert job["result"]["candidates"][0]["scores"]["multimodal"] == 3
    assert {"name": "multimodal", "license": "NOASSERTION"} in job["result"]["licenses"]


def test_a_second_judge_that_cannot_be_read_is_undecided(tmp_path: Path) -> None:
    with judge_server(always("I like both of them.")) as server:
        override = {"override": "multimodal", "override_from": 0.0, "override_share": 1.0}
        job = done(tmp_path, {"judge_url": server.base_url}, override)
    assert job["status"] == "succeeded", job["error"]
    assert server.requests
    assert "multimodal" not in job["result"]["candidates"][0]["scores"], (
        "unreadable is no number, and never a zero"
    )


def busy(number: int, request: dict[str, Any]) -> Reply:
    """Ask for an hour's patience, which nobody has: given up at once."""
    return Reply(status=429, headers=(("Retry-After", "3600"),))


def test_a_job_waits_for_a_judge_that_is_busy_and_goes_on_when_it_answers(tmp_path: Path) -> None:
    with judge_server(lambda number, _: busy(number, {}) if number < 4 else Reply('{"score": 4}')) as server:
        job = done(
            tmp_path, {"judge_url": server.base_url, "default_max_attempts": 20}, {"judge": "multimodal"}
        )
    assert job["status"] == "succeeded", job["error"]
    assert len(job["attempts"]) >= 2
    assert {one["outcome"] for one in job["attempts"][:-1]} == {"stalled"}
    assert job["result"]["candidates"][0]["scores"]["multimodal"] == 4


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (always("I like both of them."), "2 of 2 answers of judge 'multimodal' cannot be read"),
        (busy, "asks to wait 3600 s more after 1 tries: it answered 429"),
        pytest.param(
            lambda *_: Reply(status=500),
            "was given up after 4 tries: it answered 500",
            marks=pytest.mark.slow,
        ),
        pytest.param(lambda *_: Reply(body=b"<html>"), "with no chat completion", marks=pytest.mark.slow),
    ],
)
def test_a_judge_that_does_not_answer_ends_the_attempt_and_says_why(
    tmp_path: Path, answer: Callable[[int, dict[str, Any]], Reply], told: str
) -> None:
    with judge_server(answer) as server:
        job = done(tmp_path, {"judge_url": server.base_url}, {"judge": "multimodal"})
    assert (job["status"], job["error"]["code"]) == ("failed", "stage-timeout")
    assert told in job["error"]["detail"]
    assert job["score_series"] == [], "no answer is no number, and never a zero"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("qwen")
    write_folder(path, '{"score": 3}')
    return path


def test_a_judge_in_the_operators_folder_judges_jobs(tmp_path: Path, folder: Path) -> None:
    def before(networks: Networks) -> None:
        facts = networks.capabilities().rewards["multimodal"]
        assert (facts.license, facts.commercial_ok) == ("Apache-2.0", True)
        assert facts.about == f"{folder.name} in the worker, asked in the form 'quality'"
        assert "multimodal" not in networks.rewards._loaded, "nobody has asked for it"
        told["weights"] = facts.weights

    told: dict[str, str | None] = {}
    job = done(tmp_path, {"judge_folder": folder}, {"judge": "multimodal"}, before=before)
    assert job["status"] == "succeeded", job["error"]
    assert job["result"]["candidates"][0]["scores"]["multimodal"] == 3
    assert {point["reward"]["score"] for point in job["score_series"] if point["reward"]} == {3.0}
    assert job["result"]["provenance"]["weights"]["reward:multimodal"] == told["weights"]
    assert {"name": "multimodal", "license": "Apache-2.0"} in job["result"]["licenses"]


def test_a_folder_that_changed_since_the_worker_looked_is_refused(tmp_path: Path, folder: Path) -> None:
    mine = shutil.copytree(folder, tmp_path / "mine")

    def before(networks: Networks) -> None:
        path = sorted(mine.glob("*.safetensors"))[0]
        path.write_bytes(path.read_bytes()[:-1] + b"\x07")

    job = done(tmp_path / "data", {"judge_folder": mine}, {"judge": "multimodal"}, before=before)
    assert (job["status"], job["error"]["code"]) == ("failed", "weights-missing")
    assert "have changed since this worker looked at them" in job["error"]["detail"]


def test_a_folder_that_is_not_whole_is_told_with_what_it_misses(tmp_path: Path, folder: Path) -> None:
    mine = shutil.copytree(folder, tmp_path / "mine")
    lost = sorted(mine.glob("*.safetensors"))[-1]
    lost.unlink()
    service = Service(tmp_path / "data", reward_placement="local", judge_folder=mine)
    service.store.publish_capabilities("w", load_networks(service.settings).capabilities())
    (told,) = [one for one in list_rewards(service.store)["items"] if one["name"] == "multimodal"]
    assert (told["available"], told["weights"], told["license"]) == (False, None, "Apache-2.0")
    assert told["missing"] == [f"{lost.name} is missing"]
    assert "DREAMSERVE_JUDGE_FOLDER" in told["how"]


def test_without_an_endpoint_a_job_is_refused_and_told_what_the_operator_can_do(tmp_path: Path) -> None:
    service = Service(tmp_path, reward_placement="local")
    can = load_networks(service.settings).capabilities()
    with pytest.raises(Refused) as refused:
        admit({"prompt": "x", "method": {"name": "dreamdpo", "judge": "multimodal"}}, can, service.settings)
    assert refused.value.problems[0].pointer == "/method/judge"
    assert "DREAMSERVE_JUDGE_URL" in refused.value.suggestion
