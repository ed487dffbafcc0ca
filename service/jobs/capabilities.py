"""What a cluster can do now: published by each live worker as one document, merged for the frontend.

When the pool has scaled to zero, what its last workers could do still holds: the next ones will be like them. A worker
also says which published priors and rewards it could have, if it had their weights.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["AbsentFacts", "Capabilities", "PartFacts", "RewardFacts", "embedded_capabilities", "merge"]


class _Facts(BaseModel):
    # Unknown fields are ignored, so that an older frontend reads a newer worker's document.
    model_config = ConfigDict(frozen=True, extra="ignore")


class PartFacts(_Facts):
    """A method, prior or reward that a worker can run."""

    license: str = "Apache-2.0"
    commercial_ok: bool = True
    weights: str | None = Field(None, description="`sha256:…` of the weights file, if there is one.")
    about: str = ""
    views: int | None = Field(
        None,
        description="Views of an object that are denoised, or scored, together; null: any number, one by one.",
    )


class AbsentFacts(_Facts):
    """A published prior or reward that a worker knows, but has no weights of."""

    license: str
    commercial_ok: bool
    missing: tuple[str, ...] = Field(description="What is not there, each with where it comes from.")
    how: str = Field(description="How to get it, a sentence.")


class RewardFacts(PartFacts):
    """A reward or judge that a worker can run."""

    version: str | None = None
    differentiable: bool = False
    multiview: bool = False
    score_range: tuple[float, float] | None = None
    typical: tuple[float, float] | None = Field(
        None,
        description="Center and spread of its scores, by which several rewards are brought to one scale; null: it can "
        "only steer alone.",
    )
    steers: bool = Field(
        True, description="Whether it can steer; false: it scores finished objects, as a referee."
    )
    details: dict[str, Any] = Field(default_factory=dict)


class Capabilities(_Facts):
    """What one worker, or all of them together, can run; keys are names as in a job request."""

    methods: dict[str, PartFacts] = Field(default_factory=dict)
    priors: dict[str, PartFacts] = Field(default_factory=dict)
    rewards: dict[str, RewardFacts] = Field(default_factory=dict)
    absent_priors: dict[str, AbsentFacts] = Field(default_factory=dict)
    absent_rewards: dict[str, AbsentFacts] = Field(default_factory=dict)
    efforts: tuple[str, ...] = ("draft", "full")
    mesh_formats: tuple[str, ...] = ("glb",)
    turntables: bool = False


def merge(documents: list[Capabilities]) -> Capabilities:
    """Unite what several workers can do; of two descriptions of one part the later document's wins.

    What one of them has is not absent.
    """
    priors = {name: facts for one in documents for name, facts in one.priors.items()}
    rewards = {name: facts for one in documents for name, facts in one.rewards.items()}
    return Capabilities(
        methods={name: facts for one in documents for name, facts in one.methods.items()},
        priors=priors,
        rewards=rewards,
        absent_priors={
            n: facts for one in documents for n, facts in one.absent_priors.items() if n not in priors
        },
        absent_rewards={
            n: facts for one in documents for n, facts in one.absent_rewards.items() if n not in rewards
        },
        efforts=tuple(sorted({effort for one in documents for effort in one.efforts})),
        mesh_formats=tuple(sorted({form for one in documents for form in one.mesh_formats})),
        turntables=all(
            one.turntables for one in documents
        ),  # workers before them do not know to leave such jobs
    )


def embedded_capabilities() -> Capabilities:
    """Say what a worker of the embedded default can do; used until the first worker has said it itself."""
    return Capabilities(
        methods={name: PartFacts() for name in ("sds", "dreamfl", "dreamdpo", "psd")},
        priors={"embedded": PartFacts(views=4)},
        rewards={
            "embedded-multiview": RewardFacts(
                differentiable=True, multiview=True, views=4, typical=(-2.4, 1.3)
            ),
            "embedded-alignment": RewardFacts(differentiable=True, typical=(-2.3, 2.4)),
        },
        mesh_formats=("glb", "obj", "ply", "stl"),
        turntables=True,
    )
