"""From a job's specification to a scene at step 0, made of the networks that the worker holds."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from workers.failures import WeightsMissing
from workers.judging import JointReward
from workers.methods import make_method
from workers.networks import ScenePlan
from workers.scene import NUM_SAMPLES, Scene
from workers.steering import ENSEMBLE, ensemble_members, steering_reward

if TYPE_CHECKING:
    from collections.abc import Iterable

    from service.jobs.spec import JobSpec
    from workers.contracts import Reward
    from workers.networks import LoadedPrior, LoadedReward, Networks

__all__ = ["make_scene", "prior_of", "prompt_warnings", "steering"]


def make_scene(spec: JobSpec, networks: Networks) -> Scene:
    """Set up step 0 of a job; raises `WeightsMissing` when it needs a network that is not held, or cannot be loaded."""
    loaded = prior_of(spec, networks)
    if spec.referee not in (None, *networks.rewards, *networks.views_rewards):
        raise _missing("referee", str(spec.referee), (*networks.rewards, *networks.views_rewards))
    try:
        networks.scoring(spec)  # loads them all: a damaged referee is not to be found out at the end of hours
    except (ValueError, FileNotFoundError) as error:
        raise WeightsMissing(f"a reward cannot be loaded: {error}") from error
    plan = loaded.plan(spec) if loaded.plan else ScenePlan(loaded.make_field(loaded.device), (), NUM_SAMPLES)
    return Scene(
        prompt=spec.prompt,
        negative_prompt=spec.negative_prompt,
        prior=loaded.prior,
        method=make_method(
            spec.method,
            steering(spec, networks),
            _override(spec, networks),
        ),
        field=plan.field,
        rig=loaded.rig,
        stages=plan.stages,
        num_samples=plan.num_samples,
        seed=spec.seed,
        steps_total=spec.steps,
        spec_hash=hashlib.sha256(spec.model_dump_json().encode()).hexdigest(),
    )


def prior_of(spec: JobSpec, networks: Networks) -> LoadedPrior:
    """Find a job's prior; raises `WeightsMissing`."""
    if spec.prior not in networks.priors:
        raise _missing("prior", spec.prior, networks.priors)
    try:
        return networks.priors[spec.prior]
    except (ValueError, FileNotFoundError) as error:  # it is loaded now, and cannot be
        raise WeightsMissing(f"prior '{spec.prior}' cannot be loaded: {error}") from error


def prompt_warnings(spec: JobSpec, loaded: LoadedPrior) -> list[dict[str, str]]:
    """Say which part of a prompt will have no effect: never in silence."""
    warnings = []
    if unknown := loaded.prior.unknown_words(spec.prompt):
        detail = f"prior '{spec.prior}' has no meaning for these words: {', '.join(unknown)}"
        warnings.append({"code": "unknown-words", "detail": detail})
    warnings += [{"code": code, "detail": detail} for code, detail in loaded.warn(spec.prompt).items()]
    return warnings


def steering(spec: JobSpec, networks: Networks) -> Reward | None:
    """Find the reward that steers a job, several of them as one, None where none does; raises `WeightsMissing`."""
    name = steering_reward(spec)
    if name != ENSEMBLE:
        return None if name is None else _held(name, networks).reward
    held = [_held(use.name, networks) for use in spec.rewards]
    if retrained := [one.card.name for one in held if one.card.retrained]:
        raise WeightsMissing(
            f"'{retrained[0]}' was retrained after this job was accepted, and nobody knows where its scores lie: it "
            "cannot be mixed with other rewards any more. Let it steer alone"
        )
    return JointReward(name, ensemble_members(spec), [one.reward for one in held])


def _override(spec: JobSpec, networks: Networks) -> Reward | None:
    name = getattr(spec.method, "override", None)
    if name is None:
        return None
    held = _held(name, networks)
    return held.as_override or held.reward


def _held(name: str, networks: Networks) -> LoadedReward:
    if name not in networks.rewards:
        raise _missing("reward", name, networks.rewards)
    return networks.rewards[name]


def _missing(kind: str, name: str, held: Iterable[str]) -> WeightsMissing:
    names = ", ".join(held) or "none"
    return WeightsMissing(f"this worker holds no {kind} '{name}' (only: {names}); choose one that it holds")
