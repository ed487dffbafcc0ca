"""The gate between a request and the queue: read it, fill in the defaults, refuse what could not run."""

from __future__ import annotations

import json
import secrets
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import ValidationError

from service.jobs.capabilities import embedded_capabilities
from service.jobs.errors import FieldProblem, RefusalCode, Refused
from service.jobs.spec import (
    METHOD_NAMES,
    Candidates,
    DreamDpoMethod,
    DreamFlMethod,
    JobRequest,
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
    from collections.abc import Iterator

    from service.jobs.capabilities import Capabilities, PartFacts
    from service.settings import Settings

__all__ = ["Admitted", "admit", "check_runnable", "parse_request", "with_defaults"]

STEPS_BY_EFFORT = {"preview": 0, "draft": 100, "full": 300}
"""Source: product (embedded column)."""
DEFAULT_REWARD = "embedded-multiview"
DEFAULT_REFEREE = "embedded-alignment"
_SEEDS = 2**32
"""Seeds drawn here are short enough to read aloud."""
_MAX_DETAIL = 300


class Admitted(NamedTuple):
    """A job that may be submitted."""

    spec: JobSpec
    warnings: list[dict[str, str]]
    """`{"code", "detail"}` each, for the job's document."""


def admit(body: object, capabilities: Capabilities | None, settings: Settings) -> Admitted:
    """Turn a request's parsed JSON into a job that this server can run, or raise `Refused`.

    `capabilities` is `JobStore.capabilities()`: None when no live worker has spoken, which means that what the
    embedded default can do decides. A seed is drawn here when the request has none.
    """
    can = capabilities or embedded_capabilities()
    admitted = with_defaults(parse_request(body), can, settings, secrets.randbelow(_SEEDS))
    check_runnable(admitted.spec, can)
    return admitted


# ---- reading


def parse_request(body: object) -> JobRequest:
    """Read parsed JSON as a `JobRequest`; raise `Refused` (`invalid-request`) naming every wrong field."""
    unusable = [FieldProblem(pointer, detail) for pointer, detail in _unusable_texts(body)]
    if unusable:
        raise Refused("invalid-request", unusable, "Send plain Unicode text.")
    if not isinstance(body, dict):
        problem = FieldProblem("", f"found {_shown(body)}, expected an object")
        raise Refused("invalid-request", [problem], 'The smallest job request is {"prompt": "a red cube"}.')
    try:
        return JobRequest.model_validate(body)
    except ValidationError as error:
        problems = [_field_problem(body, dict(one)) for one in error.errors(include_url=False)]
        raise Refused(
            "invalid-request", problems, "GET /v1/methods lists methods, knobs and bounds."
        ) from None


def _unusable_texts(body: object) -> Iterator[tuple[str, str]]:
    """Find texts that cannot be stored or answered: with NUL, or with half a surrogate pair."""
    waiting: list[tuple[str, object]] = [("", body)]
    while waiting:
        pointer, value = waiting.pop()
        match value:
            case str():
                if "\0" in value:
                    yield pointer, "the text contains NUL (U+0000)"
                if any("\ud800" <= character <= "\udfff" for character in value):
                    yield pointer, "the text contains half of a surrogate pair, which is not a character"
            case dict():
                for key, held in value.items():
                    inside = f"{pointer}/{_escaped(key)}"
                    if _encodable(key) != key:
                        yield inside, "the field's name contains half of a surrogate pair"
                    waiting.append((inside, held))
            case list():
                waiting.extend((f"{pointer}/{index}", held) for index, held in enumerate(value))
            case _:
                pass


def _encodable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _escaped(part: object) -> str:
    """Write one step of a JSON pointer (RFC 6901)."""
    return _encodable(str(part)).replace("~", "~0").replace("/", "~1")[:_MAX_DETAIL]


def _field_problem(body: dict[str, Any], error: dict[str, Any]) -> FieldProblem:
    """Translate one of pydantic's errors into the field and the words of the user."""
    path = [part for part in error["loc"] if part != "[key]"]
    if path[:1] == ["method"] and len(path) > 1 and path[1] in METHOD_NAMES:
        del path[1]  # pydantic names the member of the union; the request has no such level
    if error["type"] in ("union_tag_invalid", "union_tag_not_found", "model_attributes_type"):
        return _method_problem(body["method"])
    pointer = "".join(f"/{_escaped(part)}" for part in path)
    return FieldProblem(pointer, _detail(error))


def _method_problem(method: object) -> FieldProblem:
    names = ", ".join(METHOD_NAMES)
    if isinstance(method, dict):
        if "name" not in method:
            return FieldProblem("/method/name", f"a method needs its name, one of {names}")
        return FieldProblem("/method/name", f"found {_shown(method['name'])}, expected one of {names}")
    return FieldProblem(
        "/method", f"found {_shown(method)}, expected one of {names}, or an object with a name"
    )


def _shown(value: object) -> str:
    """Write what was found as short JSON; nested values are named only."""
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "an array"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:59] + "…"


def _detail(error: dict[str, Any]) -> str:
    match error["type"]:
        case "extra_forbidden":
            detail = "there is no such field"
        case "missing":
            detail = "this field is needed"
        case "tuple_type":
            detail = f"found {_shown(error['input'])}, expected an array"
        case "value_error":
            detail = str(error["ctx"]["error"])
        case "string_too_long" | "string_too_short":
            detail = f"found {len(error['input'])} characters, but it {_lower(error['msg'])}"
        case "dict_type" | "model_type" | "model_attributes_type":
            detail = f"found {_shown(error['input'])}, expected an object"
        case _:
            detail = f"found {_shown(error['input'])}, but it {_lower(error['msg'])}"
    return _encodable(detail)[:_MAX_DETAIL]


def _lower(message: str) -> str:
    """Drop pydantic's subject: "Input should be …" becomes "should be …"."""
    return message.partition(" ")[2]


# ---- defaults


def with_defaults(request: JobRequest, capabilities: Capabilities, settings: Settings, seed: int) -> Admitted:
    """Fill in every default (a pure function: `seed` is used when the request has none)."""
    effort = request.effort or "full"
    method = request.method or SdsMethod()
    rewards = (RewardUse(name=DEFAULT_REWARD),) if request.rewards is None else request.rewards
    if isinstance(method, DreamDpoMethod | PsdMethod) and method.judge is None and rewards:
        method = method.model_copy(update={"judge": rewards[0].name})
    referee, warnings = _referee(request, method, rewards, capabilities)
    mesh = request.mesh or Mesh()
    limits = request.limits or LimitsRequest()
    spec = JobSpec(
        prompt=request.prompt,
        negative_prompt=request.negative_prompt or "",
        seed=seed if request.seed is None else request.seed,
        preset=request.preset,
        method=method,
        prior=request.prior or "embedded",
        rewards=rewards,
        referee=referee,
        steps=STEPS_BY_EFFORT[effort] if request.steps is None else request.steps,
        effort=effort,
        candidates=request.candidates or Candidates(),
        mesh=mesh.model_copy(update={"formats": ("glb", *(one for one in mesh.formats if one != "glb"))}),
        outputs=request.outputs or Outputs(),
        priority=request.priority or "normal",
        limits=Limits(
            deadline_s=limits.deadline_s or settings.default_deadline_s,
            max_gpu_s=limits.max_gpu_s,
            max_attempts=limits.max_attempts or settings.default_max_attempts,
        ),
        license_policy=request.license_policy or "any",
        metadata=request.metadata or {},
        webhook=request.webhook,
    )
    return Admitted(spec, warnings)


def _steering(method: object, rewards: tuple[RewardUse, ...]) -> set[str]:
    """Name the rewards that take part in the optimization."""
    return {reward.name for reward in rewards} | {name for _, name in _judges(method)}


def _judges(method: object) -> list[tuple[str, str]]:
    """Name a method's judges, each with its pointer."""
    judges = {
        "/method/judge": method.judge if isinstance(method, DreamDpoMethod | PsdMethod) else None,
        "/method/override": method.override if isinstance(method, DreamDpoMethod) else None,
    }
    return [(pointer, name) for pointer, name in judges.items() if name is not None]


def _referee(
    request: JobRequest, method: object, rewards: tuple[RewardUse, ...], capabilities: Capabilities
) -> tuple[str | None, list[dict[str, str]]]:
    """Choose the referee: the one asked for, else the default if this server has it to spare."""
    if request.referee is not None:
        return request.referee, []
    if DEFAULT_REFEREE in capabilities.rewards and DEFAULT_REFEREE not in _steering(method, rewards):
        return DEFAULT_REFEREE, []
    detail = (
        "this server has no reward to spare as a referee, so nothing that did not steer scores the result"
    )
    return None, [{"code": "no-referee", "detail": detail}]


# ---- can it run?


def check_runnable(spec: JobSpec, capabilities: Capabilities) -> None:
    """Raise `Refused` when no worker of this server could run `spec`, naming the field and a way out."""
    _check_release(spec)
    _check_parts(spec, capabilities)
    _check_steering(spec, capabilities)
    _check_licenses(spec, capabilities)


def _refusal(code: RefusalCode, pointer: str, detail: str, suggestion: str) -> Refused:
    return Refused(code, [FieldProblem(pointer, detail)], suggestion)


def _check_release(spec: JobSpec) -> None:
    """Refuse what the job format has but this release has not: nothing asked for is silently ignored."""
    absent = [
        ("/preset", "presets", spec.preset is not None),
        ("/candidates/count", "more than one candidate", spec.candidates.count > 1),
        ("/outputs/turntable", "turntables", spec.outputs.turntable),
        ("/limits/max_gpu_s", "budgets in GPU seconds", spec.limits.max_gpu_s is not None),
        ("/webhook", "webhooks", spec.webhook is not None),
    ]
    problems = [
        FieldProblem(where, f"this release has no {what} yet") for where, what, asked in absent if asked
    ]
    if problems:
        raise Refused("method-unavailable", problems, "Leave it out.")
    if (spec.effort == "preview") != (spec.steps == 0):
        raise _refusal(
            "invalid-request",
            "/steps",
            f"effort 'preview' optimizes nothing, but steps is {spec.steps}",
            "Leave steps out, or choose effort 'draft' or 'full'.",
        )


def _check_parts(spec: JobSpec, can: Capabilities) -> None:
    """Refuse a method, prior, reward, effort or mesh format that no worker has."""
    _check_known("/method", "method", spec.method.name, can.methods)
    _check_known("/prior", "prior", spec.prior, can.priors)
    for index, reward in enumerate(spec.rewards):
        pointer = f"/rewards/{index}/name"
        _check_known(pointer, "reward", reward.name, can.rewards)
        version = can.rewards[reward.name].version
        if reward.version is not None and reward.version != version:
            raise _refusal(
                "method-unavailable",
                f"/rewards/{index}/version",
                f"found {reward.version!r}, but this server has {version or 'only the unversioned one'}",
                "Leave the version out to use the one that is there.",
            )
    for pointer, name in _judges(spec.method):
        _check_known(pointer, "judge", name, can.rewards)
    if spec.referee is not None:
        _check_known("/referee", "referee", spec.referee, can.rewards)
    _check_known("/effort", "effort", spec.effort, can.efforts)
    for index, form in enumerate(spec.mesh.formats):
        _check_known(f"/mesh/formats/{index}", "mesh format", form, can.mesh_formats)


def _check_known(pointer: str, what: str, name: str, known: dict[str, Any] | tuple[str, ...]) -> None:
    if name not in known:
        have = ", ".join(sorted(known)) or "none"
        raise _refusal(
            "method-unavailable",
            pointer,
            f"no live worker has the {what} '{name}'; there is: {have}",
            "GET /v1/methods and /v1/rewards list what this server can do now.",
        )


def _check_steering(spec: JobSpec, can: Capabilities) -> None:
    """Refuse a method without the reward that it needs, and a referee that is not impartial."""
    method = spec.method
    names = [reward.name for reward in spec.rewards]
    if len(set(names)) != len(names):
        raise _refusal(
            "invalid-request",
            "/rewards",
            f"a reward is named twice: {', '.join(names)}",
            "Add the weights up.",
        )
    if not isinstance(method, SdsMethod) and not names:
        raise _refusal(
            "invalid-request",
            "/rewards",
            f"method '{method.name}' follows rewards, but the list is empty",
            f"Name one of {', '.join(sorted(can.rewards))}, or choose method 'sds'.",
        )
    if isinstance(method, DreamFlMethod):
        _check_differentiable(names, can)
    if spec.referee is not None and spec.referee in _steering(method, spec.rewards):
        raise _refusal(
            "referee-is-reward",
            "/referee",
            f"'{spec.referee}' steers this job, so its score would flatter the result",
            "Choose a referee that is neither among the rewards nor the judge, or leave it out.",
        )


def _check_differentiable(names: list[str], can: Capabilities) -> None:
    fit = sorted(name for name, facts in can.rewards.items() if facts.differentiable)
    for index, name in enumerate(names):
        if not can.rewards[name].differentiable:
            raise _refusal(
                "method-unavailable",
                f"/rewards/{index}/name",
                f"method 'dreamfl' follows the reward's gradient, but '{name}' has none",
                f"Choose a differentiable reward ({', '.join(fit) or 'this server has none'}), "
                "or method 'dreamdpo'.",
            )


def _check_licenses(spec: JobSpec, can: Capabilities) -> None:
    """Refuse parts whose licenses forbid commercial use when the job asks for `commercial_ok`."""
    if spec.license_policy == "any":
        return
    rewards = [(f"/rewards/{index}/name", reward.name) for index, reward in enumerate(spec.rewards)]
    rewards += _judges(spec.method)
    if spec.referee is not None:
        rewards.append(("/referee", spec.referee))
    parts: list[tuple[str, str, PartFacts]] = [
        ("/method", spec.method.name, can.methods[spec.method.name]),
        ("/prior", spec.prior, can.priors[spec.prior]),
        *((pointer, name, can.rewards[name]) for pointer, name in rewards),
    ]
    problems = [
        FieldProblem(pointer, f"'{name}' is licensed as {facts.license}, which forbids commercial use")
        for pointer, name, facts in parts
        if not facts.commercial_ok
    ]
    if problems:
        raise Refused(
            "license-refused", problems, "Choose parts whose license allows it, or license_policy 'any'."
        )
