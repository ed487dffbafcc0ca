from __future__ import annotations

import json
from typing import Any

import pytest

from service.jobs.admission import admit
from service.jobs.capabilities import Capabilities, PartFacts, RewardFacts, embedded_capabilities
from service.jobs.defaults import with_defaults
from service.jobs.errors import Refused
from service.jobs.runnable import check_runnable
from service.jobs.spec import JobRequest, SdsMethod
from service.settings import Settings
from tests.unit.service.jobs.job_samples import spec_of

SETTINGS = Settings()
RICH = Capabilities(
    methods={name: PartFacts() for name in ("sds", "dreamfl", "dreamdpo")},
    priors={"embedded": PartFacts()},
    rewards={
        "embedded-multiview": RewardFacts(differentiable=True, typical=(0, 1)),
        "embedded-alignment": RewardFacts(differentiable=True, typical=(0, 1)),
        "lmm": RewardFacts(),
        "consistency3d": RewardFacts(steers=False),
        "private": RewardFacts(license="CC-BY-NC-4.0", commercial_ok=False, version="v1"),
    },
    mesh_formats=("glb", "stl"),
)


def refusal(capabilities: Capabilities | None = None, **fields: Any) -> Refused:
    with pytest.raises(Refused) as caught:
        admit({"prompt": "a red cube", **fields}, capabilities, SETTINGS)
    json.dumps(caught.value.problems[0].detail).encode()
    str(caught.value).encode("utf-8")
    return caught.value


def test_a_prompt_alone_is_enough_and_gets_the_embedded_defaults() -> None:
    spec, warnings = admit({"prompt": "a red cube"}, None, SETTINGS)
    assert spec.method == SdsMethod()
    assert (spec.prior, spec.effort, spec.steps, spec.priority) == ("embedded", "full", 300, "normal")
    assert [(reward.name, reward.weight) for reward in spec.rewards] == [("embedded-multiview", 1.0)]
    assert (spec.limits.deadline_s, spec.limits.max_attempts) == (3_600, 3)
    assert (spec.mesh.target_faces, spec.mesh.texture_px, spec.mesh.formats) == (20_000, 512, ("glb",))
    assert spec.referee == "embedded-alignment"
    assert warnings == []


def test_the_referee_is_the_alignment_scorer_where_there_is_one_to_spare() -> None:
    assert admit({"prompt": "x"}, RICH, SETTINGS).spec.referee == "embedded-alignment"
    steered = admit({"prompt": "x", "rewards": [{"name": "embedded-alignment"}]}, RICH, SETTINGS)
    assert steered.spec.referee is None
    assert [warning["code"] for warning in steered.warnings] == ["no-referee"]


def test_a_seed_is_drawn_when_there_is_none_and_kept_when_there_is() -> None:
    seeds = {admit({"prompt": "x"}, None, SETTINGS).spec.seed for _ in range(4)}
    assert len(seeds) == 4
    assert admit({"prompt": "x", "seed": 0}, None, SETTINGS).spec.seed == 0


def test_filling_in_defaults_is_pure() -> None:
    request = JobRequest(prompt="x")
    can = embedded_capabilities()
    assert with_defaults(request, can, SETTINGS, 5) == with_defaults(request, can, SETTINGS, 5)


@pytest.mark.parametrize(("effort", "steps"), [("draft", 100), ("full", 300)])
def test_effort_decides_the_steps_unless_they_are_given(effort: str, steps: int) -> None:
    assert admit({"prompt": "x", "effort": effort}, None, SETTINGS).spec.steps == steps
    assert admit({"prompt": "x", "effort": effort, "steps": 17}, None, SETTINGS).spec.steps == 17


def test_a_method_is_named_or_described() -> None:
    named = spec_of(method="dreamdpo").method
    described = spec_of(method={"name": "dreamdpo", "push": 2.0}).method
    assert named == described
    assert named.name == "dreamdpo"
    assert named.judge == "embedded-multiview"


def test_null_means_as_if_left_out() -> None:
    body = {
        "prompt": "x",
        "method": None,
        "steps": None,
        "rewards": None,
        "limits": {"deadline_s": None},
        "seed": 1,
    }
    assert admit(body, None, SETTINGS).spec == spec_of(prompt="x", seed=1)


def test_the_glb_is_always_among_the_formats() -> None:
    assert spec_of(mesh={"formats": ["stl"]}).mesh.formats == ("glb", "stl")


BAD_FIELDS: list[tuple[dict[str, Any], str, str]] = [
    ({"prompt": ""}, "/prompt", "at least 1"),
    ({"prompt": " \t\n\u3000"}, "/prompt", "blank"),
    ({"prompt": "x" * 1_001}, "/prompt", "1001 characters"),
    ({"prompt": "a\0b"}, "/prompt", "NUL"),
    ({"prompt": "\ud800"}, "/prompt", "surrogate"),
    ({"prompt": None}, "/prompt", "null"),
    ({"prompt": 7}, "/prompt", "string"),
    ({"prompt": [[[]]]}, "/prompt", "an array"),
    ({"negative_prompt": "\udfff"}, "/negative_prompt", "surrogate"),
    ({"metadata": {"k": "a\0"}}, "/metadata/k", "NUL"),
    ({"metadata": {"a b": "c"}}, "/metadata/a b", "pattern"),
    ({"metadata": {str(n): "" for n in range(17)}}, "/metadata", "16"),
    ({"metadata": {"k": 1}}, "/metadata/k", "string"),
    ({"stepz": 3}, "/stepz", "no such field"),
    ({"a/b~c": 3}, "/a~1b~0c", "no such field"),
    ({"\ud800": 3}, "/\\ud800", "surrogate"),
    ({"steps": "100"}, "/steps", "integer"),
    ({"steps": 100.5}, "/steps", "integer"),
    ({"steps": True}, "/steps", "integer"),
    ({"steps": -1}, "/steps", "greater"),
    ({"steps": 0}, "/steps", "greater"),
    ({"steps": 10**30}, "/steps", "100000"),
    ({"steps": 20_001}, "/steps", "20000"),
    ({"seed": -1}, "/seed", "greater"),
    ({"seed": 2**53}, "/seed", "less"),
    ({"method": "sdss"}, "/method", "sds, dreamfl, dreamdpo, psd"),
    ({"method": {"name": "sdss"}}, "/method/name", '"sdss"'),
    ({"method": {"tau": 1}}, "/method/name", "needs its name"),
    ({"method": 3}, "/method", "expected one of"),
    ({"method": {"name": "sds", "tau": 1}}, "/method/tau", "no such field"),
    ({"method": {"name": "dreamdpo", "tau": -1}}, "/method/tau", "greater"),
    ({"method": {"name": "sds", "guidance_scale": {"start": 1}}}, "/method/guidance_scale/end", "needed"),
    ({"method": {"name": "sds", "guidance_scale": "7"}}, "/method/guidance_scale", "object"),
    ({"method": {"name": "sds", "guidance_scale": 10**400}}, "/method/guidance_scale/start", "number"),
    ({"method": {"name": "sds", "t_min": 0.9}}, "/method", "t_min exceeds t_max"),
    ({"prior": "sdxl"}, "/prior", "'embedded'"),
    ({"preset": "dreamdpo"}, "/preset", "expected one of the presets mvdream-paper"),
    (
        {"preset": "mvdream-paper", "method": {"name": "sds", "t_min": 0.55}},
        "/method",
        "of preset 'mvdream-paper'",
    ),
    ({"rewards": "embedded-multiview"}, "/rewards", "array"),
    ({"rewards": [{"name": "A B"}]}, "/rewards/0/name", "pattern"),
    ({"rewards": [{"name": "x", "weight": 0}]}, "/rewards/0/weight", "greater"),
    ({"effort": "max"}, "/effort", "'draft'"),
    ({"candidates": {"keep": 2}}, "/candidates", "keep is 2"),
    ({"mesh": {"formats": ["fbx"]}}, "/mesh/formats/0", "'glb'"),
    ({"mesh": {"formats": ["glb", "glb"]}}, "/mesh/formats", "once"),
    ({"mesh": {"target_faces": 1}}, "/mesh/target_faces", "100"),
    ({"limits": {"deadline_s": float("inf")}}, "/limits/deadline_s", "finite"),
    ({"limits": {"deadline_s": 0}}, "/limits/deadline_s", "greater"),
    ({"webhook": "ftp://plain"}, "/webhook", "pattern"),
    ({"webhook": "http://plain.example"}, "/webhook", "https://"),
    ({"webhook": "https://127.0.0.1/hook"}, "/webhook", "not a public address"),
]


@pytest.mark.parametrize(
    ("fields", "pointer", "words"), BAD_FIELDS, ids=[pointer for _, pointer, _ in BAD_FIELDS]
)
def test_a_wrong_field_is_named(fields: dict[str, Any], pointer: str, words: str) -> None:
    refused = refusal(**fields)
    assert refused.code == "invalid-request"
    assert refused.pointer == pointer
    assert words in refused.detail


@pytest.mark.parametrize("body", [None, 3, "a red cube", ["a red cube"], True])
def test_a_body_that_is_no_object_is_refused(body: object) -> None:
    with pytest.raises(Refused, match="expected an object"):
        admit(body, None, SETTINGS)


def test_all_wrong_fields_are_named_at_once() -> None:
    refused = refusal(steps=-1, seed="x", prior="sdxl")
    assert {problem.pointer for problem in refused.problems} == {"/steps", "/seed", "/prior"}


def test_a_body_nested_deeply_is_refused_and_breaks_nothing() -> None:
    nested: list[Any] = []
    for _ in range(900):
        nested = [nested]
    assert refusal(prompt=nested).pointer == "/prompt"


UNAVAILABLE: list[tuple[dict[str, Any], str, str]] = [
    ({"method": "psd"}, "/method", "no worker has the method 'psd'"),
    ({"prior": "mvdream"}, "/prior", "there is: embedded"),
    ({"rewards": [{"name": "hpsv2.1"}]}, "/rewards/0/name", "hpsv2.1"),
    ({"rewards": [{"name": "private", "version": "v2"}]}, "/rewards/0/version", "'v2'"),
    ({"method": {"name": "dreamdpo", "judge": "oracle"}}, "/method/judge", "oracle"),
    ({"method": {"name": "dreamdpo", "override": "oracle"}}, "/method/override", "oracle"),
    ({"referee": "oracle"}, "/referee", "oracle"),
    ({"method": "dreamfl", "rewards": [{"name": "lmm"}]}, "/rewards/0/name", "gradient"),
    ({"effort": "preview"}, "/effort", "preview"),
    ({"mesh": {"formats": ["obj"]}}, "/mesh/formats/1", "obj"),
    ({"preset": "dreamdpo-paper"}, "/prior", "there is: embedded"),
    ({"outputs": {"turntable": True}}, "/outputs/turntable", "turntables"),
]


@pytest.mark.parametrize(
    ("fields", "pointer", "words"), UNAVAILABLE, ids=[pointer for _, pointer, _ in UNAVAILABLE]
)
def test_what_this_server_cannot_do_is_refused_and_never_ignored(
    fields: dict[str, Any], pointer: str, words: str
) -> None:
    refused = refusal(RICH, **fields)
    assert (refused.code, refused.pointer) == ("method-unavailable", pointer)
    assert words in refused.detail
    assert refused.suggestion


@pytest.mark.parametrize(
    "fields",
    [
        {"referee": "embedded-multiview"},
        {"method": {"name": "dreamdpo", "judge": "lmm"}, "referee": "lmm"},
        {"method": {"name": "dreamdpo", "override": "lmm"}, "referee": "lmm"},
    ],
)
def test_a_referee_that_steers_is_refused(fields: dict[str, Any]) -> None:
    refused = refusal(RICH, **fields)
    assert (refused.code, refused.pointer) == ("referee-is-reward", "/referee")


@pytest.mark.parametrize(
    ("fields", "pointer"),
    [
        ({"rewards": [{"name": "private"}]}, "/rewards/0/name"),
        ({"method": {"name": "dreamdpo", "judge": "private"}}, "/method/judge"),
        ({"method": {"name": "dreamdpo", "override": "private"}}, "/method/override"),
        ({"referee": "private"}, "/referee"),
    ],
)
def test_parts_that_forbid_commercial_use_are_refused_when_it_is_asked_for(
    fields: dict[str, Any], pointer: str
) -> None:
    admit({"prompt": "x", **fields}, RICH, SETTINGS)
    refused = refusal(RICH, license_policy="commercial_ok", **fields)
    assert (refused.code, refused.pointer) == ("license-refused", pointer)
    assert "CC-BY-NC-4.0" in refused.detail


@pytest.mark.parametrize(
    ("fields", "pointer"),
    [
        ({"method": "dreamdpo", "rewards": []}, "/rewards"),
        ({"rewards": [{"name": "lmm"}, {"name": "lmm"}]}, "/rewards"),
        ({"effort": "preview", "steps": 5}, "/steps"),
    ],
)
def test_contradictions_are_refused(fields: dict[str, Any], pointer: str) -> None:
    refused = refusal(RICH, **fields)
    assert (refused.code, refused.pointer) == ("invalid-request", pointer)


def test_sds_needs_no_reward() -> None:
    check_runnable(spec_of(rewards=[]), RICH)


def test_the_server_of_the_embedded_default_runs_all_its_methods() -> None:
    for method in ("sds", "dreamfl", "dreamdpo", "psd"):
        assert admit({"prompt": "x", "method": method}, None, SETTINGS).spec.method.name == method


def test_several_rewards_judge_together_unless_one_is_named() -> None:
    both = [{"name": "embedded-multiview"}, {"name": "embedded-alignment"}]
    together = admit({"prompt": "x", "method": "dreamdpo", "rewards": both}, RICH, SETTINGS).spec
    assert together.method.judge is None
    judge = {"name": "dreamdpo", "judge": "embedded-alignment"}
    assert (
        admit({"prompt": "x", "method": judge, "rewards": both}, RICH, SETTINGS).spec.method.judge
        == judge["judge"]
    )


def test_a_reward_without_a_known_scale_steers_only_alone() -> None:
    mixed = [{"name": "embedded-multiview"}, {"name": "lmm"}]
    refused = refusal(RICH, method="dreamdpo", rewards=mixed)
    assert (refused.code, refused.problems[0].pointer) == ("method-unavailable", "/rewards/1/name")
    assert "embedded-multiview" in refused.suggestion
    assert admit({"prompt": "x", "method": "dreamdpo", "rewards": mixed[1:]}, RICH, SETTINGS)
    assert admit({"prompt": "x", "method": "sds", "rewards": mixed}, RICH, SETTINGS)


@pytest.mark.parametrize(
    ("fields", "pointer"),
    [
        ({"rewards": [{"name": "consistency3d"}]}, "/rewards/0/name"),
        ({"method": {"name": "dreamdpo", "judge": "consistency3d"}}, "/method/judge"),
        ({"method": {"name": "dreamdpo", "override": "consistency3d"}}, "/method/override"),
    ],
)
def test_what_scores_finished_objects_referees_but_never_steers(fields: dict[str, Any], pointer: str) -> None:
    refused = refusal(RICH, **fields)
    assert (refused.code, refused.problems[0].pointer) == ("method-unavailable", pointer)
    assert admit({"prompt": "x", "referee": "consistency3d"}, RICH, SETTINGS).spec.referee == "consistency3d"
