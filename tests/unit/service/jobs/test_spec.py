from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from service.jobs.spec import DreamDpoMethod, JobRequest, JobSpec, Ramp, SdsMethod
from tests.unit.service.jobs.job_samples import spec_of


def test_a_ramp_goes_from_start_to_end() -> None:
    ramp = Ramp(start=0.98, end=0.6, power=0.5)
    assert [ramp.at(0.0), ramp.at(0.25), ramp.at(1.0)] == pytest.approx([0.98, 0.79, 0.6])


def test_a_ramp_may_begin_late_and_end_early() -> None:
    ramp = Ramp(start=10.0, end=20.0, begin=0.2, until=0.6)
    assert [ramp.at(at) for at in (0.0, 0.2, 0.4, 0.6, 1.0)] == pytest.approx([10, 10, 15, 20, 20])
    with pytest.raises(ValidationError, match=r"begin is 0.5, but it must lie before until, which is 0.5"):
        Ramp(start=0.0, end=1.0, begin=0.5, until=0.5)


def test_a_ramp_is_exact_at_whole_steps() -> None:
    # Three quarters of the way: 0.6/0.8, as floating-point progress, falls short of it.
    assert Ramp(start=0.0, end=1.0, until=0.8).at_step(6_000, 10_000) == 0.75
    assert Ramp(start=0.0, end=1.0, until=0.8).at(0.6) < 0.75


def test_a_plain_number_is_a_ramp_that_stays() -> None:
    method = SdsMethod.model_validate({"guidance_scale": 7})
    assert method.guidance_scale == Ramp(start=7.0, end=7.0)
    assert method.guidance_scale.at(0.3) == 7.0


def test_the_embedded_defaults_are_those_of_the_design() -> None:
    method = SdsMethod()
    assert [method.guidance_scale.at(0), method.guidance_scale.at(1)] == [2.5, 1.5]
    assert [method.t_max.at(0), method.t_max.at(1)] == pytest.approx([0.98, 0.6])
    assert [method.t_min.at(0), method.t_min.at(1)] == pytest.approx([0.5, 0.02])
    assert method.rescale == 0.5
    assert (DreamDpoMethod().push, DreamDpoMethod().pair) == (2.0, "noise")


@pytest.mark.parametrize(
    "knobs", [{"t_min": 0.99}, {"t_max": 1.5}, {"guidance_scale": -1}, {"t_min": float("nan")}]
)
def test_diffusion_times_and_guidance_stay_in_their_bounds(knobs: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        SdsMethod.model_validate(knobs)


def test_a_spec_survives_json_unchanged() -> None:
    spec = spec_of(
        method={"name": "dreamdpo", "guidance_scale": {"start": 4, "end": 2}},
        rewards=[{"name": "embedded-multiview", "weight": 2}],
        mesh={"formats": ["stl"]},
        metadata={"order": "7"},
    )
    assert JobSpec.model_validate(json.loads(spec.model_dump_json())) == spec


def test_every_knob_tells_its_meaning_bounds_and_source() -> None:
    schema = JobRequest.model_json_schema()["$defs"]
    for name in ("SdsMethod", "DreamFlMethod", "DreamDpoMethod", "PsdMethod"):
        for knob, described in schema[name]["properties"].items():
            if knob not in ("name", "judge"):
                assert "Source: " in described["description"], f"{name}.{knob}"


def test_a_spec_knows_no_host_and_no_path() -> None:
    assert not {"url", "path", "host", "device"} & set(JobSpec.model_fields)
