"""Presets: what they fill in, what wins over them, and what a server without their weights says."""

from __future__ import annotations

from typing import Any

import pytest

from service.jobs.admission import admit
from service.jobs.capabilities import AbsentFacts, Capabilities, PartFacts, RewardFacts, merge
from service.jobs.errors import Refused
from service.jobs.presets import NEGATIVE_PROMPT, PRESETS, preset_changes
from service.jobs.spec import DreamDpoMethod, DreamFlMethod, JobSpec, PsdMethod, SdsMethod
from service.settings import Settings

REWARD3D = RewardFacts(
    license="NOASSERTION", commercial_ok=False, differentiable=True, multiview=True, views=4
)
RICH = Capabilities(
    methods={name: PartFacts() for name in ("sds", "dreamfl", "dreamdpo", "psd")},
    priors={
        "embedded": PartFacts(views=4),
        "mvdream": PartFacts(license="OpenRAIL", views=4),
        "stable-diffusion-2.1": PartFacts(license="CreativeML-OpenRAIL++-M", views=1),
    },
    rewards={
        "embedded-multiview": RewardFacts(differentiable=True, views=4),
        "hpsv2.1": RewardFacts(differentiable=True),
        "imagereward": RewardFacts(differentiable=True),
        "reward3d": REWARD3D,
    },
    efforts=("preview", "draft", "full"),
)
POOR = RICH.model_copy(
    update={
        "priors": {"embedded": PartFacts(views=4)},
        "absent_priors": {
            "mvdream": AbsentFacts(
                license="OpenRAIL",
                commercial_ok=True,
                missing=("sd-v2.1-base-4view.pt (from MVDream/MVDream)",),
                how="Fetch it, and run `dreamserve weights import PATH`.",
            )
        },
    }
)


def spec_of(capabilities: Capabilities = RICH, **fields: Any) -> JobSpec:
    return admit({"prompt": "a cat", "seed": 1, **fields}, capabilities, Settings()).spec


def refusal(capabilities: Capabilities = RICH, **fields: Any) -> Refused:
    with pytest.raises(Refused) as caught:
        spec_of(capabilities, **fields)
    return caught.value


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_fills_in_all_that_it_says(name: str) -> None:
    spec, preset = spec_of(preset=name), PRESETS[name]
    assert (spec.preset, spec.prior, spec.steps) == (name, "mvdream", preset.steps)
    assert (spec.rewards, spec.negative_prompt) == (preset.rewards, NEGATIVE_PROMPT)
    assert spec.method.model_dump(exclude={"judge"}) == preset.method.model_dump(exclude={"judge"})
    assert preset_changes(spec) == ()
    assert (spec.mesh.target_faces, spec.mesh.texture_px) == (50_000, 1_024)
    assert spec.limits.deadline_s == 86_400
    assert JobSpec.model_validate_json(spec.model_dump_json()) == spec


def test_their_numbers_are_the_published_ones() -> None:
    methods = {name: preset.method for name, preset in PRESETS.items()}
    mvdream, first, second, dreamdpo, psd = methods.values()
    assert isinstance(mvdream, SdsMethod)
    assert isinstance(first, DreamFlMethod)
    assert isinstance(second, DreamFlMethod)
    assert isinstance(dreamdpo, DreamDpoMethod)
    assert isinstance(psd, PsdMethod)
    assert [method.guidance_scale.at(0.7) for method in methods.values()] == [50, 50, 50, 7.5, 50]
    assert [method.rescale for method in methods.values()] == [0.5, 0.5, 0.5, 0.0, 0.5]
    assert [preset.steps for preset in PRESETS.values()] == [10_000, 10_000, 10_400, 10_000, 10_000]
    assert (first.form, second.form, dreamdpo.form) == ("guidance1", "guidance2", "paper")
    assert (dreamdpo.tau, psd.tau) == (0.001, 0.001)
    # step 6000 of the published annealing: [260, 620] of 1000
    for name, method in methods.items():
        steps = PRESETS[name].steps
        window = [ramp.at_step(6_000, steps) for ramp in (method.t_min, method.t_max)]
        assert window == pytest.approx([0.26, 0.62]), name
        assert method.t_min.at_step(8_000, steps) == pytest.approx(0.02)
    assert [[use.name for use in preset.rewards] for preset in PRESETS.values()] == [
        [],
        ["reward3d"],
        ["reward3d"],
        ["hpsv2.1"],
        ["hpsv2.1"],
    ]


def test_what_a_request_says_wins_over_its_preset_knob_by_knob() -> None:
    spec = spec_of(
        preset="dreamdpo-paper",
        steps=20,
        negative_prompt="",
        method={"name": "dreamdpo", "tau": 0.1},
        mesh={"target_faces": 500},
    )
    assert (spec.steps, spec.negative_prompt, spec.mesh.target_faces) == (20, "", 500)
    assert spec.mesh.texture_px == 1_024
    assert isinstance(spec.method, DreamDpoMethod)
    assert (spec.method.tau, spec.method.form, spec.method.judge) == (0.1, "paper", "hpsv2.1")
    assert preset_changes(spec) == ("steps", "negative_prompt", "method.tau")
    judged = spec_of(preset="dreamdpo-paper", rewards=[{"name": "imagereward"}])
    assert judged.method.model_dump()["judge"] == "imagereward"
    assert preset_changes(judged) == ("rewards",)
    other = spec_of(preset="dreamdpo-paper", method="sds", prior="embedded")
    assert (other.method, other.prior) == (SdsMethod(), "embedded")
    assert preset_changes(other) == ("prior", "method")


@pytest.mark.parametrize(("effort", "steps"), [("preview", 0), ("draft", 2_000), ("full", 10_400)])
def test_effort_chooses_a_share_of_a_presets_steps(effort: str, steps: int) -> None:
    assert spec_of(preset="dreamreward-guidance2", effort=effort).steps == steps


@pytest.mark.parametrize(
    ("method", "preset"),
    [
        (None, "dreamdpo-paper"),
        ("sds", "mvdream-paper"),
        ("dreamfl", "dreamreward-guidance1"),
        ("psd", "psd-paper"),
    ],
)
def test_a_published_prior_without_a_preset_gets_that_of_its_method(method: str | None, preset: str) -> None:
    assert spec_of(prior="mvdream", method=method).preset == preset


def test_the_referee_of_published_jobs_is_imagereward_where_it_is_to_spare() -> None:
    assert spec_of(preset="dreamdpo-paper").referee == "imagereward"
    assert spec_of(preset="dreamdpo-paper", rewards=[{"name": "imagereward"}]).referee is None


def test_absent_weights_are_refused_by_file_with_the_way_to_get_them() -> None:
    refused = refusal(POOR, preset="mvdream-paper")
    assert (refused.code, refused.pointer) == ("method-unavailable", "/prior")
    assert "prior 'mvdream' needs sd-v2.1-base-4view.pt (from MVDream/MVDream)" in refused.detail
    assert refused.suggestion is not None
    assert "dreamserve weights import" in refused.suggestion


def test_what_one_worker_has_is_not_absent() -> None:
    assert merge([POOR, RICH]).absent_priors == {}
    assert merge([POOR]).absent_priors.keys() == {"mvdream"}


def test_a_fleet_makes_turntables_once_no_worker_is_left_that_would_ignore_the_wish() -> None:
    old, new = Capabilities(), Capabilities(turntables=True)
    assert merge([new, new]).turntables
    assert not merge([old, new]).turntables


def test_a_license_that_nobody_stated_does_not_allow_commercial_use() -> None:
    assert spec_of(preset="dreamdpo-paper", license_policy="commercial_ok").license_policy == "commercial_ok"
    refused = refusal(preset="dreamreward-guidance1", license_policy="commercial_ok")
    assert (refused.code, refused.pointer) == ("license-refused", "/rewards/0/name")
    assert "'reward3d' is licensed as NOASSERTION" in refused.detail


def test_a_reward_of_four_views_is_refused_on_a_prior_that_makes_one() -> None:
    refused = refusal(preset="dreamreward-guidance1", prior="stable-diffusion-2.1")
    assert (refused.code, refused.pointer) == ("method-unavailable", "/rewards/0/name")
    assert "scores 4 views of an object together" in refused.detail
    assert spec_of(preset="dreamdpo-paper", prior="stable-diffusion-2.1").prior == "stable-diffusion-2.1"
