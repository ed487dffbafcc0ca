"""The 50-step loss curve of every method and form, against numbers kept in `golden_curves.json`.

A refactoring that moves them is not a refactoring. Where they move on purpose, make them anew and say why:

    .venv/bin/python -m tests.unit.workers.test_golden_curves
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from service.jobs.spec import DreamDpoMethod, DreamFlMethod, PsdMethod, SdsMethod
from tests.unit.workers.small_scenes import TinyReward, ball_prior, make_scene
from workers.engine import Engine
from workers.methods import make_method

if TYPE_CHECKING:
    from service.jobs.spec import AnyMethod

KEPT = Path(__file__).with_name("golden_curves.json")
METHODS: dict[str, AnyMethod] = {
    "sds": SdsMethod(),
    "sds-classic": SdsMethod(form="classic"),
    "dreamfl": DreamFlMethod(),
    "dreamfl-paper": DreamFlMethod(form="paper"),
    "dreamfl-guidance1": DreamFlMethod(form="guidance1"),
    "dreamfl-guidance2": DreamFlMethod(form="guidance2"),
    "dreamdpo": DreamDpoMethod(tau=0.001),
    "dreamdpo-timestep": DreamDpoMethod(tau=0.001, pair="timestep"),
    "dreamdpo-paper": DreamDpoMethod(tau=0.001, form="paper"),
    "dreamdpo-released": DreamDpoMethod(tau=0.001, form="released"),
    "psd": PsdMethod(tau=0.001),
}
EACH, MEAN = 2e-3, 2e-4
"""Relative tolerances of a step and of the mean difference: other CPUs sum in another order, 50 steps magnify it."""


def curve(name: str) -> list[float]:
    """50 losses of a tiny scene, on the analytic prior with a random convolution as reward."""
    reward = TinyReward(per_view=True)
    engine = Engine()
    engine.admit(make_scene(ball_prior(), make_method(METHODS[name], reward), seed=0, steps_total=50))
    losses = []
    while engine.scenes and not engine.scenes[0].finished:
        (outcome,) = engine.step()
        assert outcome.loss is not None, outcome.error
        losses.append(outcome.loss)
    return losses


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_a_curve_is_where_it_was(name: str) -> None:
    kept = json.loads(KEPT.read_text())[name]
    now = curve(name)
    assert len(now) == len(kept) == 50
    assert now == pytest.approx(kept, rel=EACH)
    differences = [(one - other) / other for one, other in zip(now, kept, strict=True)]
    assert abs(statistics.fmean(differences)) < MEAN


def test_every_kept_curve_has_its_method() -> None:
    assert json.loads(KEPT.read_text()).keys() == METHODS.keys()


if __name__ == "__main__":
    curves = {name: [float(f"{loss:.7g}") for loss in curve(name)] for name in METHODS}
    lines = [f'  "{name}": {json.dumps(losses)}' for name, losses in curves.items()]
    KEPT.write_text("{\n" + ",\n".join(lines) + "\n}\n")
