"""Evaluations measure what they say: the oracle knows the truth, silhouettes fit it, interrupted runs go on."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from service.settings import Settings
from tests.unit.workers.test_golden_curves import KEPT
from workers.cameras import CameraRig, Cameras
from workers.embedded.truth import Truth
from workers.embedded.world import Description, Thing, build, ground_truth_mesh
from workers.evaluation import run
from workers.evaluation.arms import RECIPE, SUITES, Arm, Case
from workers.evaluation.objects import silhouette_iou
from workers.evaluation.oracle import Oracle, WatchedRig
from workers.evaluation.prompts import everyday_objects, held_out_pairs, kind_of, single_shapes
from workers.evaluation.run import evaluate
from workers.evaluation.verdicts import Verdicts, verdict_row, verdicts_of
from workers.mesh import Mesh
from workers.networks import load_networks
from workers.priors.rgba import latents_to_image

STACK = Description(Thing("cube", "red"), Thing("cylinder", "blue"), "on")


def true_mesh(description: Description, lift: float = 0.0) -> Mesh:
    vertices, faces, _ = ground_truth_mesh(build(description))
    return Mesh(vertices + np.array([0, lift, 0], np.float32), faces.astype(np.int32), level=1.0, cell=0.02)


def test_the_silhouette_of_the_true_mesh_is_the_truth_s_and_a_moved_one_s_is_not() -> None:
    assert silhouette_iou(true_mesh(STACK), STACK) > 0.99
    assert silhouette_iou(true_mesh(STACK, lift=0.2), STACK) < 0.9


def test_the_oracle_prefers_the_truth_and_its_gradient_points_there() -> None:
    rig = WatchedRig(**asdict(CameraRig()))
    oracle = Oracle(STACK, rig)
    cameras = rig.draw(torch.Generator().manual_seed(0))
    truth = latents_to_image(Truth(STACK).latents(Cameras(*(x[0] for x in cameras)))[None]).double()
    images = torch.cat([truth, truth + 0.1])
    answer = oracle.score(images, ["", ""], torch.tensor([True, True])).now()
    assert answer.values[:, 0].tolist() == pytest.approx([0.0, -0.5], abs=1e-6)
    step = 1e-3 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    there, back = (
        oracle.score(images[1:] + sign * step, [""], torch.tensor([True])).now().values.item()
        for sign in (1, -1)
    )
    assert (there - back) / 2 == pytest.approx(float((answer.gradient[1] * step).sum()), rel=1e-3)


def test_verdicts_are_counted_and_weighed_by_what_they_cost() -> None:
    truth = np.array([0.3, -0.1, 0.1])
    assert verdict_row("all", [Verdicts(truth, truth)], tau=0) == "| all | 3 | 1.00 | 1.00 | 1.00 | 1.00 |"
    told = [Verdicts(np.array([3.0, 1.0]), truth[:2]), Verdicts(np.array([-4.0]), truth[2:])]
    assert verdict_row("two", told, tau=2) == "| two | 3 | 0.33 | 0.67 | 0.50 | 0.20 |"
    assert verdict_row("none", told, tau=9).endswith("| 0.00 | – | 0.20 |")


def test_a_reward_s_verdicts_are_those_of_dreamdpo_s_own_steps() -> None:
    case, networks = Case(STACK, Arm("any", {"name": "dreamdpo"}, steps=6), 0), load_networks(Settings())
    first, again = (verdicts_of(case, networks) for _ in range(2))
    assert first.reward.shape == first.oracle.shape == (6,)
    assert (first.reward == again.reward).all()
    assert (first.oracle == again.oracle).all()
    assert first.oracle.all()
    assert (first.reward != first.oracle).all()


def test_prompts_are_many_and_of_every_kind() -> None:
    assert len(everyday_objects()) >= 20
    assert {kind_of(d) for d in [*single_shapes(), *everyday_objects(), *held_out_pairs(2)]} == {
        "shape",
        "everyday",
        "pair",
    }


def test_arms_of_one_name_are_one_arm() -> None:
    arms: dict[str, Arm] = {}
    for arm in (arm for suite in SUITES.values() for arm in suite):
        assert arms.setdefault(arm.name, arm) == arm


@pytest.mark.slow
def test_an_interrupted_evaluation_goes_on_and_does_nothing_twice(tmp_path: Path) -> None:
    oracle = Arm("weak-dreamfl-oracle", {"name": "dreamfl"}, steps=12, weak=True, oracle=True)
    cases = [Case(STACK, arm, 0) for arm in (Arm("sds", steps=12), oracle)]
    lines_file = tmp_path / "lines.jsonl"
    first = evaluate(cases[:1], tmp_path, lines_file, processes=1)
    both = evaluate(cases, tmp_path, lines_file, processes=1)
    assert both[0] == first[0]
    assert [line["arm"] for line in both] == ["sds", "weak-dreamfl-oracle"]
    assert both[0]["weights"] != both[1]["weights"]
    assert all((tmp_path / line["picture"]).exists() for line in both)
    assert len(lines_file.read_text().splitlines()) == 2


@pytest.mark.parametrize(
    "other",
    [
        {"weights": "others"},
        {"recipe": RECIPE - 1},
        {"knobs": run.made_by(Arm("sds", steps=12))["knobs"]},
        {"knobs": run.made_by(Arm("sds", {"name": "sds", "guidance_scale": 3.0}))["knobs"]},
    ],
)
def test_what_was_made_otherwise_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: dict[str, Any]
) -> None:
    made = {"key": Case(STACK, Arm("sds"), 0).key, **run.made_by(Arm("sds")), "right": True}
    lines_file = tmp_path / "lines.jsonl"
    lines_file.write_text(json.dumps(made) + "\n")
    assert evaluate([Case(STACK, Arm("sds"), 0)], tmp_path, lines_file, processes=1) == [made]
    with lines_file.open("a") as file:  # nor does it hide what was made before
        file.write(json.dumps(made | other) + "\n")
    assert evaluate([Case(STACK, Arm("sds"), 0)], tmp_path, lines_file, processes=1) == [made]
    lines_file.write_text(json.dumps(made | other) + "\n")
    monkeypatch.setattr(run.multiprocessing, "get_context", _no_processes)
    with pytest.raises(LookupError, match="would be made"):
        evaluate([Case(STACK, Arm("sds"), 0)], tmp_path, lines_file, processes=1)


def test_the_recipe_is_another_when_steps_are() -> None:
    assert (RECIPE, hashlib.sha256(KEPT.read_bytes()).hexdigest()[:8]) == (1, "224d8f16"), (
        "raise RECIPE, unless only knobs are others"
    )


def test_known_lines_need_no_pictures_and_unknown_arms_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = str(Path(run.__file__).parents[2] / "tests" / "bench" / "studies.jsonl")
    monkeypatch.setattr("sys.argv", ["evaluation", "--lines", lines, "--folder", str(tmp_path / "eval")])
    run.main()
    assert "no contact sheet was drawn" in capsys.readouterr().out
    assert (tmp_path / "eval" / "default.md").is_file()
    assert len(json.loads((tmp_path / "eval.json").read_text())["lines"]) == 306
    monkeypatch.setattr("sys.argv", ["evaluation", "weak", "--arms", "weak-sds,weak-spd"])
    with pytest.raises(SystemExit):
        run.main()
    assert "no arms weak-spd; it has weak-sds, weak-sds-longer" in capsys.readouterr().err


def _no_processes(_method: str) -> None:
    raise LookupError("would be made")
