"""What presets mean for the field: light, penalties, and the size and number of renders, as published."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from service.jobs.presets import PRESETS
from service.jobs.spec import DreamDpoMethod, SdsMethod
from tests.unit.service.jobs.job_samples import spec_of
from workers.presets import plan_stages, plan_training
from workers.stages import MVDREAM_STAGES

if TYPE_CHECKING:
    from service.jobs.spec import JobSpec


@dataclass
class Sizes:
    """All that a plan wants to know of a prior."""

    image_px: int = 256
    latent_shape: tuple[int, int, int] = (4, 32, 32)


def spec(preset: str, **changes: Any) -> JobSpec:
    return spec_of(preset=preset).model_copy(update=changes)


def test_every_preset_has_both_of_its_halves() -> None:
    from workers.presets import _APPEARANCES

    assert _APPEARANCES.keys() == PRESETS.keys()
    for name, look in _APPEARANCES.items():
        assert look.steps == PRESETS[name].steps


@pytest.mark.parametrize(
    ("preset", "shaded", "orient"),
    [
        ("mvdream-paper", True, (10, 1_000, 0.5)),
        ("dreamreward-guidance1", False, (0, 0, 0)),
        ("dreamdpo-paper", False, (10, 1_000, 0.5)),
    ],
)
def test_fields_are_lit_and_penalized_as_published(
    preset: str, shaded: bool, orient: tuple[float, float, float]
) -> None:
    training = plan_training(spec(preset), Sizes())
    assert (training.shaded, training.penalties.orient) == (shaded, orient)
    assert training.penalties.unit == 2 / (4 * 32 * 32)
    assert (training.encoding_rate, training.network_rate) == (0.01, 0.001)


def test_renders_grow_at_step_5000_and_a_judge_gets_one_group() -> None:
    assert plan_stages(spec("mvdream-paper"), Sizes()) == MVDREAM_STAGES
    small, large = plan_stages(spec("dreamdpo-paper"), Sizes())
    assert (small.render_px, small.num_groups, large.render_px, large.num_groups) == (64, 1, 256, 1)
    second = plan_stages(spec("dreamreward-guidance2"), Sizes())
    assert second[1].begin == 5_000 / 10_400
    changed = plan_stages(spec("mvdream-paper", method=DreamDpoMethod()), Sizes())
    assert changed[0].num_groups == 1
    assert plan_stages(spec("dreamdpo-paper", method=SdsMethod()), Sizes())[0].num_groups == 2


@pytest.mark.parametrize(("image_px", "renders"), [(16, (4, 16)), (256, (64, 256)), (512, (64, 256))])
def test_small_priors_get_small_renders_and_large_ones_the_published(
    image_px: int, renders: tuple[int, int]
) -> None:
    stages = plan_stages(spec("mvdream-paper"), Sizes(image_px))
    assert tuple(stage.render_px for stage in stages) == renders
