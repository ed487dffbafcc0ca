"""The two series of a job: what is scored at its checkpoints, and what happens when a reward cannot."""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING, Any

import pytest
import torch

from reward_models.consistency import Consistency3D
from reward_models.typical import typical_scores
from service.jobs.admission import admit
from service.jobs.series import ScorePoint
from tests.unit.service.jobs.job_samples import spec_of
from tests.unit.workers.small_workers import CARD, Service, small_networks, with_referee
from workers.contracts import Ask, Scores
from workers.scoring import score_point

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from workers.networks import Networks

REFEREE = "embedded-alignment"


class Referee:
    """Finds the mean of all pixels good; may answer something else from one call on."""

    name = REFEREE

    def __init__(self, answer: Callable[[int], float] | None = None) -> None:
        self.num_calls = 0
        self._answer = answer

    def score(self, images: torch.Tensor, prompts: list[str], wants_gradient: torch.Tensor) -> Ask[Scores]:
        return Ask("score", self, self._score, (images, prompts, wants_gradient))

    def _score(self, images: torch.Tensor, prompts: list[str], wants_gradient: torch.Tensor) -> Scores:
        self.num_calls += 1
        values = images.mean((-3, -2, -1))
        if self._answer is not None:
            values = torch.full_like(values, self._answer(self.num_calls))
        return Scores(values, torch.zeros_like(images))


def networks_with(referee: Referee) -> Networks:
    return with_referee(small_networks(), referee)


def finished(
    folder: Path, referee: Referee, interval_s: float = 0.1, asked: dict[str, Any] | None = None
) -> dict[str, Any]:
    """A job of one worker whose field is steered by a reward and watched by this referee."""
    service, networks = Service(folder, checkpoint_interval_s=interval_s), networks_with(referee)
    fields: dict[str, Any] = {
        "prompt": "red",
        "method": "dreamdpo",
        "steps": 60,
        "seed": 7,
        "referee": REFEREE,
    }
    fields |= {"outputs": {"thumbnail": False}, "mesh": {"target_faces": 500, "texture_px": 64}}
    fields |= asked or {}
    document, _ = service.store.submit(admit(fields, networks.capabilities(), service.settings).spec)
    (job,) = service.finish(document["id"], workers=(service.worker(load=lambda: networks),))
    return job


def test_each_checkpoint_and_the_end_are_scored_by_reward_and_referee(tmp_path: Path) -> None:
    job = finished(tmp_path, Referee())
    assert job["status"] == "succeeded", job["error"]
    series = job["score_series"]
    steps = [point["step"] for point in series]
    assert len(steps) >= 2
    assert steps == sorted(set(steps))
    assert steps[-1] == 60
    for point in series:
        assert (point["reward"]["name"], point["referee"]["name"]) == (CARD.name, REFEREE)
    (candidate,) = job["result"]["candidates"]
    assert series[-1]["reward"]["score"] == candidate["scores"][CARD.name]
    assert series[-1]["referee"] == candidate["referee"]


def test_scoring_checkpoints_changes_nothing_of_the_result(tmp_path: Path) -> None:
    often, never = (
        finished(tmp_path / name, Referee(), interval_s) for name, interval_s in (("a", 0.05), ("b", 3_600.0))
    )
    assert len(often["score_series"]) > len(never["score_series"]) == 1
    fields = [job["result"]["provenance"]["field_sha256"] for job in (often, never)]
    assert fields[0] == fields[1]


@pytest.mark.parametrize("bad", ["raises", "nan"])
def test_a_referee_that_fails_costs_the_series_and_a_warning_not_the_job(tmp_path: Path, bad: str) -> None:
    def answer(number: int) -> float:
        if number != 2:
            return 0.5
        if bad == "raises":
            raise RuntimeError("the referee is gone")
        return float("nan")

    job = finished(tmp_path, Referee(answer), 0.05)
    assert job["status"] == "succeeded", job["error"]
    (warning,) = [one for one in job["warnings"] if one["code"] == "scores-missing"]
    assert ("the referee is gone" if bad == "raises" else "answered nan") in warning["detail"]
    assert len(job["score_series"]) == 2, "the first checkpoint, and the end"


def test_a_point_holds_the_score_that_steered_and_that_of_the_referee() -> None:
    spec = spec_of(method={"name": "dreamdpo", "judge": "embedded-multiview"})
    candidate = {"scores": {"embedded-multiview": 0.8, "other": 9.0}, "referee": {"name": "r", "score": 0.1}}
    assert score_point(5, candidate, spec) == ScorePoint(5, ("embedded-multiview", 0.8), ("r", 0.1))
    assert score_point(5, {"scores": {}, "referee": None}, spec) == ScorePoint(5, None, None)


def test_a_slow_referee_is_asked_seldom(tmp_path: Path) -> None:
    def slow(number: int) -> float:
        time.sleep(0.5)
        return 0.5

    referee = Referee(slow)
    job = finished(tmp_path, referee, 0.01)
    assert job["status"] == "succeeded", job["error"]
    assert referee.num_calls == len(job["score_series"]) <= 3, "two checkpoints, and the end"


def test_several_rewards_steer_as_one_and_each_is_told(tmp_path: Path) -> None:
    both = [{"name": CARD.name, "weight": 2.0}, {"name": REFEREE}]
    job = finished(tmp_path, Referee(), asked={"rewards": both, "referee": None})
    assert job["status"] == "succeeded", job["error"]
    assert job["spec"]["method"]["judge"] is None
    scores = job["result"]["candidates"][0]["scores"]
    terms = [(2.0, CARD.name), (1.0, REFEREE)]
    centers = {name: typical_scores(name) or (0, 1) for _, name in terms}
    expected = sum(w * (scores[name] - centers[name][0]) / centers[name][1] for w, name in terms)
    assert scores["ensemble"] == pytest.approx(expected, abs=1e-4)
    assert {point["reward"]["name"] for point in job["score_series"]} == {"ensemble"}


def test_what_scores_renders_scores_the_result_and_as_a_referee_each_checkpoint(tmp_path: Path) -> None:
    networks = networks_with(Referee())
    depth = dataclasses.replace(networks, views_rewards={"consistency3d": Consistency3D()})
    results = {}
    for referee in (REFEREE, "consistency3d"):
        service = Service(tmp_path / referee)
        asked = {"prompt": "red", "steps": 20, "seed": 7, "referee": referee, "outputs": {"thumbnail": False}}
        asked["mesh"] = {"target_faces": 500, "texture_px": 64}
        document, _ = service.store.submit(admit(asked, depth.capabilities(), service.settings).spec)
        (job,) = service.finish(document["id"], workers=(service.worker(load=lambda: depth),))
        assert job["status"] == "succeeded", job["error"]
        results[referee] = job
    watched, plain = results["consistency3d"], results[REFEREE]
    score = plain["result"]["candidates"][0]["scores"]["consistency3d"]
    assert 0 < score <= 1
    assert watched["result"]["candidates"][0]["referee"] == {"name": "consistency3d", "score": score}
    assert {point["referee"]["name"] for point in watched["score_series"]} == {"consistency3d"}
    assert {point["referee"]["name"] for point in plain["score_series"]} == {REFEREE}


def test_a_referee_that_this_worker_has_not_is_missed_at_the_start_not_at_the_end(tmp_path: Path) -> None:
    service = Service(tmp_path)
    spec = spec_of(referee=REFEREE, method="sds", steps=10)
    document, _ = service.store.submit(spec)
    (job,) = service.finish(document["id"])
    assert job["error"]["code"] == "weights-missing"
    assert f"referee '{REFEREE}'" in job["error"]["detail"]
    assert (job["progress"] or {"step": 0})["step"] == 0
