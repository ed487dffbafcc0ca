"""What a cluster can do now: published by each live worker as one document, merged for the frontend."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Capabilities", "PartFacts", "RewardFacts", "embedded_capabilities", "merge"]


class _Facts(BaseModel):
    # Unknown fields are ignored, so that an older frontend reads a newer worker's document.
    model_config = ConfigDict(frozen=True, extra="ignore")


class PartFacts(_Facts):
    """A method, prior or reward that a worker can run."""

    license: str = "Apache-2.0"
    commercial_ok: bool = True
    weights: str | None = Field(None, description="`sha256:…` of the weights file, if there is one.")
    about: str = ""


class RewardFacts(PartFacts):
    """A reward or judge that a worker can run."""

    version: str | None = None
    differentiable: bool = False
    multiview: bool = False
    score_range: tuple[float, float] | None = None
    details: dict[str, Any] = Field(default_factory=dict)


class Capabilities(_Facts):
    """What one worker, or all of them together, can run; keys are names as in a job request."""

    methods: dict[str, PartFacts] = Field(default_factory=dict)
    priors: dict[str, PartFacts] = Field(default_factory=dict)
    rewards: dict[str, RewardFacts] = Field(default_factory=dict)
    efforts: tuple[str, ...] = ("draft", "full")
    mesh_formats: tuple[str, ...] = ("glb",)


def merge(documents: list[Capabilities]) -> Capabilities:
    """Unite what several workers can do; of two descriptions of one part the later document's wins."""
    return Capabilities(
        methods={name: facts for one in documents for name, facts in one.methods.items()},
        priors={name: facts for one in documents for name, facts in one.priors.items()},
        rewards={name: facts for one in documents for name, facts in one.rewards.items()},
        efforts=tuple(sorted({effort for one in documents for effort in one.efforts})),
        mesh_formats=tuple(sorted({form for one in documents for form in one.mesh_formats})),
    )


def embedded_capabilities() -> Capabilities:
    """Say what a worker of the embedded default can do; used until a live worker has said it itself."""
    return Capabilities(
        methods={name: PartFacts() for name in ("sds", "dreamfl", "dreamdpo", "psd")},
        priors={"embedded": PartFacts()},
        rewards={
            "embedded-multiview": RewardFacts(differentiable=True, multiview=True),
            "embedded-alignment": RewardFacts(differentiable=True),
        },
        mesh_formats=("glb", "obj", "ply", "stl"),
    )
