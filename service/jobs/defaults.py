"""From what a client sent to a complete job: every default, by the prior that is asked for and by its preset."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

from pydantic import ValidationError

from service.jobs.errors import FieldProblem, Refused
from service.jobs.presets import PRESETS
from service.jobs.spec import (
    Candidates,
    DreamDpoMethod,
    JobSpec,
    Limits,
    LimitsRequest,
    Mesh,
    Outputs,
    PsdMethod,
    RewardUse,
    SdsMethod,
)

if TYPE_CHECKING:
    from service.jobs.capabilities import Capabilities
    from service.jobs.presets import Preset
    from service.jobs.spec import AnyMethod, JobRequest, PriorName
    from service.settings import Settings

__all__ = ["Admitted", "judges", "steering", "with_defaults"]

Value = TypeVar("Value")

EMBEDDED: Final = "embedded"
STEPS_BY_EFFORT = {"preview": 0, "draft": 100, "full": 300}
"""Source: product (embedded column)."""
DRAFT_STEPS = 2_000
"""Of a preset, whose `full` is its own number of steps. Source: product (column of published models)."""
DEFAULT_METHOD: Final = SdsMethod()
DEFAULT_REWARD = "embedded-multiview"
DEFAULT_REFEREE, PUBLISHED_REFEREE = "embedded-alignment", "imagereward"
"""Source: product."""
PUBLISHED_DEADLINE_S = 86_400.0
PUBLISHED_MESH = Mesh(target_faces=50_000, texture_px=1_024)
"""Source: product (column of published models)."""
PRESET_OF_METHOD = {
    "sds": "mvdream-paper",
    "dreamfl": "dreamreward-guidance1",
    "dreamdpo": "dreamdpo-paper",
    "psd": "psd-paper",
}
"""What fills a request that names a published prior and no preset: the embedded knobs would not suit it."""
PUBLISHED_METHOD = "dreamdpo"
"""Source: product (column of published models)."""


class Admitted(NamedTuple):
    """A job that may be submitted."""

    spec: JobSpec
    warnings: list[dict[str, str]]
    """`{"code", "detail"}` each, for the job's document."""


def with_defaults(request: JobRequest, capabilities: Capabilities, settings: Settings, seed: int) -> Admitted:
    """Fill in every default (a pure function: `seed` is used when the request has none).

    What the request says wins over its preset, that over the defaults. Raises `Refused` for a preset that does not
    exist, or whose knobs contradict those of the request.
    """
    effort = request.effort or "full"
    preset = _preset(request)
    prior: PriorName = request.prior or (preset.prior if preset else EMBEDDED)
    rewards = request.rewards
    if rewards is None:
        rewards = preset.rewards if preset else (RewardUse(name=DEFAULT_REWARD),)
    method = _method(request, preset)
    if isinstance(method, DreamDpoMethod | PsdMethod) and method.judge is None and len(rewards) == 1:
        method = method.model_copy(update={"judge": rewards[0].name})
    referee, warnings = _referee(request, prior, method, rewards, capabilities)
    spec = JobSpec(
        prompt=request.prompt,
        negative_prompt=_first(request.negative_prompt, preset.negative_prompt if preset else ""),
        seed=_first(request.seed, seed),
        preset=preset.name if preset else None,
        method=method,
        prior=prior,
        rewards=rewards,
        referee=referee,
        steps=_first(request.steps, _steps(effort, preset)),
        effort=effort,
        candidates=request.candidates or Candidates(),
        mesh=_mesh(request, prior),
        outputs=request.outputs or Outputs(),
        priority=request.priority or "normal",
        limits=_limits(request.limits or LimitsRequest(), prior, settings),
        license_policy=request.license_policy or "any",
        metadata=request.metadata or {},
        webhook=request.webhook,
    )
    return Admitted(spec, warnings)


def _first(asked: Value | None, otherwise: Value) -> Value:
    return otherwise if asked is None else asked


def _preset(request: JobRequest) -> Preset | None:
    """Find the preset that a request names, or the one that suits the published prior that it names."""
    if request.preset is not None:
        if request.preset not in PRESETS:
            detail = f"found '{request.preset}', expected one of the presets {', '.join(PRESETS)}"
            raise Refused(
                "invalid-request", [FieldProblem("/preset", detail)], "Choose one, or leave it out."
            )
        return PRESETS[request.preset]
    if request.prior in (None, EMBEDDED):
        return None
    return PRESETS[PRESET_OF_METHOD[request.method.name if request.method else PUBLISHED_METHOD]]


def _method(request: JobRequest, preset: Preset | None) -> AnyMethod:
    """Choose the method: knobs that a request leaves out are its preset's, if that is of the same method."""
    asked = request.method
    if preset is None:
        return asked or DEFAULT_METHOD
    if asked is None:
        return preset.method
    if asked.name != preset.method.name:
        return asked
    knobs = {name: getattr(asked, name) for name in asked.model_fields_set}
    try:
        return type(asked)(**{**dict(preset.method), **knobs})
    except ValidationError as error:
        detail = f"with the knobs of preset '{preset.name}': {error.errors()[0]['msg']}"
        problem = FieldProblem("/method", detail)
        raise Refused("invalid-request", [problem], "Set the other knob too, or leave both out.") from None


def _steps(effort: str, preset: Preset | None) -> int:
    if preset is None or effort == "preview":
        return STEPS_BY_EFFORT[effort]
    return DRAFT_STEPS if effort == "draft" else preset.steps


def _mesh(request: JobRequest, prior: str) -> Mesh:
    asked = request.mesh or Mesh()
    if prior != EMBEDDED:
        asked = PUBLISHED_MESH.model_copy(
            update={name: getattr(asked, name) for name in asked.model_fields_set}
        )
    return asked.model_copy(update={"formats": ("glb", *(one for one in asked.formats if one != "glb"))})


def _limits(asked: LimitsRequest, prior: str, settings: Settings) -> Limits:
    deadline_s = settings.default_deadline_s
    if prior != EMBEDDED:
        deadline_s = max(deadline_s, PUBLISHED_DEADLINE_S)
    return Limits(
        deadline_s=asked.deadline_s or deadline_s,
        max_gpu_s=asked.max_gpu_s,
        max_attempts=asked.max_attempts or settings.default_max_attempts,
    )


def judges(method: object) -> list[tuple[str, str]]:
    """Name a method's judges, each with its pointer."""
    found = {
        "/method/judge": method.judge if isinstance(method, DreamDpoMethod | PsdMethod) else None,
        "/method/override": method.override if isinstance(method, DreamDpoMethod) else None,
    }
    return [(pointer, name) for pointer, name in found.items() if name is not None]


def steering(method: object, rewards: tuple[RewardUse, ...]) -> set[str]:
    """Name the rewards that take part in the optimization."""
    return {reward.name for reward in rewards} | {name for _, name in judges(method)}


def _referee(
    request: JobRequest,
    prior: str,
    method: object,
    rewards: tuple[RewardUse, ...],
    capabilities: Capabilities,
) -> tuple[str | None, list[dict[str, str]]]:
    """Choose the referee: the one asked for, else the prior's default if this server has it to spare."""
    if request.referee is not None:
        return request.referee, []
    usual = DEFAULT_REFEREE if prior == EMBEDDED else PUBLISHED_REFEREE
    if usual in capabilities.rewards and usual not in steering(method, rewards):
        return usual, []
    detail = (
        "this server has no reward to spare as a referee, so nothing that did not steer scores the result"
    )
    return None, [{"code": "no-referee", "detail": detail}]
