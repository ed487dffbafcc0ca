"""Could a worker of this server run a job? If not, the field that is the matter, and a way out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from service.jobs.defaults import judges, steering
from service.jobs.errors import FieldProblem, RefusalCode, Refused
from service.jobs.spec import MAX_EMBEDDED_STEPS, DreamFlMethod, JobSpec, SdsMethod

if TYPE_CHECKING:
    from collections.abc import Mapping

    from service.jobs.capabilities import AbsentFacts, Capabilities, PartFacts

__all__ = ["check_runnable", "has_parts"]


def check_runnable(spec: JobSpec, capabilities: Capabilities) -> None:
    """Raise `Refused` when no worker of this server could run `spec`, naming the field and a way out."""
    _check_whole(spec)
    _check_parts(spec, capabilities)
    _check_steering(spec, capabilities)
    _check_licenses(spec, capabilities)


def has_parts(spec: JobSpec, capabilities: Capabilities) -> bool:
    """Tell whether a worker that can do this has the method, prior, rewards and formats of a job."""
    try:
        _check_parts(spec, capabilities)
    except Refused:
        return False
    return True


def _refusal(code: RefusalCode, pointer: str, detail: str, suggestion: str) -> Refused:
    return Refused(code, [FieldProblem(pointer, detail)], suggestion)


def _check_whole(spec: JobSpec) -> None:
    """Refuse what does not go together in any job: nothing asked for is silently ignored."""
    if (spec.effort == "preview") != (spec.steps == 0):
        raise _refusal(
            "invalid-request",
            "/steps",
            f"effort 'preview' optimizes nothing, but steps is {spec.steps}",
            "Leave steps out, or choose effort 'draft' or 'full'.",
        )
    if spec.candidates.count > 1 and (spec.effort == "preview" or not _rewards_that_choose(spec)):
        raise _refusal(
            "invalid-request",
            "/candidates/count",
            "the best candidates are chosen by reward, but this job "
            + ("makes no objects" if spec.effort == "preview" else "has none"),
            "Name a reward, and choose effort 'draft' or 'full'; or ask for one candidate.",
        )
    if spec.effort == "preview" and spec.outputs.turntable:
        raise _refusal(
            "invalid-request",
            "/outputs/turntable",
            "effort 'preview' makes no object that could turn",
            "Leave the turntable out, or choose effort 'draft' or 'full'.",
        )
    if spec.prior == "embedded" and spec.steps > MAX_EMBEDDED_STEPS:
        raise _refusal(
            "invalid-request",
            "/steps",
            f"found {spec.steps}, but the embedded prior takes {MAX_EMBEDDED_STEPS} steps at most",
            "Ask for fewer; it has drawn what it can after a few hundred.",
        )


def _rewards_that_choose(spec: JobSpec) -> list[str]:
    return [reward.name for reward in spec.rewards] + [name for _, name in judges(spec.method)]


def _check_parts(spec: JobSpec, can: Capabilities) -> None:
    """Refuse a method, prior, reward, effort, mesh format or turntable that no worker has."""
    # The prior first: without its weights nothing else of a published job is worth a sentence.
    _check_known("/prior", "prior", spec.prior, can.priors, can.absent_priors)
    for pointer, name in _rewards(spec):
        _check_known(
            pointer, "judge" if "method" in pointer else "reward", name, can.rewards, can.absent_rewards
        )
    _check_known("/method", "method", spec.method.name, can.methods)
    for index, reward in enumerate(spec.rewards):
        version = can.rewards[reward.name].version
        if reward.version is not None and reward.version != version:
            raise _refusal(
                "method-unavailable",
                f"/rewards/{index}/version",
                f"found {reward.version!r}, but this server has {version or 'only the unversioned one'}",
                "Leave the version out to use the one that is there.",
            )
    _check_known("/effort", "effort", spec.effort, can.efforts)
    for index, form in enumerate(spec.mesh.formats):
        _check_known(f"/mesh/formats/{index}", "mesh format", form, can.mesh_formats)
    if spec.outputs.turntable and not can.turntables:
        detail = "no worker of this server makes turntables"
        raise _refusal("method-unavailable", "/outputs/turntable", detail, "Leave it out.")


def _rewards(spec: JobSpec) -> list[tuple[str, str]]:
    """Name all rewards that a job asks, each with its pointer."""
    named = [(f"/rewards/{index}/name", reward.name) for index, reward in enumerate(spec.rewards)]
    named += judges(spec.method)
    return named if spec.referee is None else [*named, ("/referee", spec.referee)]


def _check_known(
    pointer: str,
    what: str,
    name: str,
    known: Mapping[str, object] | tuple[str, ...],
    absent: Mapping[str, AbsentFacts] | None = None,
) -> None:
    if name in known:
        return
    if absent and name in absent:
        facts = absent[name]
        detail = f"{what} '{name}' needs {' and '.join(facts.missing)}, which no worker has"
        raise _refusal("method-unavailable", pointer, detail, facts.how)
    have = ", ".join(sorted(known)) or "none"
    raise _refusal(
        "method-unavailable",
        pointer,
        f"no worker has the {what} '{name}'; there is: {have}",
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
    _check_steers(spec, can)
    if isinstance(method, DreamFlMethod):
        _check_differentiable(names, can)
    if not isinstance(method, SdsMethod):
        _check_views(spec, can)
        _check_joint(spec, can)
    if spec.referee is not None and spec.referee in steering(method, spec.rewards):
        raise _refusal(
            "referee-is-reward",
            "/referee",
            f"'{spec.referee}' steers this job, so its score would flatter the result",
            "Choose a referee that is neither among the rewards nor the judge, or leave it out.",
        )


def _check_steers(spec: JobSpec, can: Capabilities) -> None:
    for pointer, name in _rewards(spec):
        if pointer != "/referee" and not can.rewards[name].steers:
            raise _refusal(
                "method-unavailable",
                pointer,
                f"'{name}' scores renders of a finished object, so it cannot steer",
                f"Name '{name}' as the referee, or leave it out: every result has its score.",
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


def _check_views(spec: JobSpec, can: Capabilities) -> None:
    """Refuse a reward that scores several views together, on a prior that makes another number of them."""
    made = can.priors[spec.prior].views
    asked = judges(spec.method) or [
        (f"/rewards/{index}/name", one.name) for index, one in enumerate(spec.rewards)
    ]
    for pointer, name in asked:
        wanted = can.rewards[name].views
        if made is not None and wanted is not None and wanted != made:
            raise _refusal(
                "method-unavailable",
                pointer,
                f"'{name}' scores {wanted} views of an object together, but prior '{spec.prior}' makes {made} a call",
                "Choose a reward that scores single views, or another prior.",
            )


def _check_joint(spec: JobSpec, can: Capabilities) -> None:
    """Refuse a reward that is to steer together with others, but of whose scores nobody knows where they lie."""
    if len(spec.rewards) < 2 or judges(spec.method):
        return
    fit = sorted(name for name, facts in can.rewards.items() if facts.typical)
    for index, one in enumerate(spec.rewards):
        if can.rewards[one.name].typical is None:
            raise _refusal(
                "method-unavailable",
                f"/rewards/{index}/name",
                f"'{one.name}' cannot be mixed with other rewards: nobody knows where its scores usually lie",
                f"Let it steer alone, or mix only {', '.join(fit) or 'none (this server has none that can be)'}.",
            )


def _check_licenses(spec: JobSpec, can: Capabilities) -> None:
    """Refuse parts whose licenses do not allow commercial use when the job asks for `commercial_ok`."""
    if spec.license_policy == "any":
        return
    parts: list[tuple[str, str, PartFacts]] = [
        ("/method", spec.method.name, can.methods[spec.method.name]),
        ("/prior", spec.prior, can.priors[spec.prior]),
        *((pointer, name, can.rewards[name]) for pointer, name in _rewards(spec)),
    ]
    problems = [
        FieldProblem(
            pointer, f"'{name}' is licensed as {_said(facts.license)}, which does not allow commercial use"
        )
        for pointer, name, facts in parts
        if not facts.commercial_ok
    ]
    if problems:
        raise Refused(
            "license-refused", problems, "Choose parts whose license allows it, or license_policy 'any'."
        )


def _said(license_: str) -> str:
    return (
        "NOASSERTION (nobody has said how its weights may be used)" if license_ == "NOASSERTION" else license_
    )
