"""Which published networks are in the weights folder, and what the others need: known without loading any."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from reward_models.typical import typical_scores
from service.jobs.capabilities import AbsentFacts, PartFacts, RewardFacts
from workers.artifacts import ARTIFACTS, file_hashes, fingerprint

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from workers.artifacts import Artifact

__all__ = ["Published", "survey"]


@dataclass(frozen=True, slots=True)
class Published:
    """What is known of published networks without loading them."""

    priors: Mapping[str, PartFacts] = field(default_factory=dict)
    rewards: Mapping[str, RewardFacts] = field(default_factory=dict)
    absent_priors: Mapping[str, AbsentFacts] = field(default_factory=dict)
    absent_rewards: Mapping[str, AbsentFacts] = field(default_factory=dict)


def survey(weights: Path) -> Published:
    """Look which published networks are in the weights folder, and which file each of the others needs."""
    there: list[Artifact] = []
    absent: list[Artifact] = []
    for artifact in ARTIFACTS.values():
        (absent if artifact.missing(weights) else there).append(artifact)
    return Published(
        priors={one.name: PartFacts(**_facts(one, weights)) for one in there if one.kind == "prior"},
        rewards={one.name: _reward(one, weights) for one in there if one.kind == "reward"},
        absent_priors={one.name: _absent(one, weights) for one in absent if one.kind == "prior"},
        absent_rewards={one.name: _absent(one, weights) for one in absent if one.kind == "reward"},
    )


def _absent(artifact: Artifact, weights: Path) -> AbsentFacts:
    return AbsentFacts(
        license=artifact.license,
        commercial_ok=artifact.commercial_ok,
        missing=tuple(artifact.missing(weights)),
        how=artifact.how(),
    )


def _reward(artifact: Artifact, weights: Path) -> RewardFacts:
    return RewardFacts(
        **_facts(artifact, weights),
        differentiable=True,
        multiview=artifact.views is not None,
        typical=typical_scores(artifact.name),
        details={"uses_prompt": artifact.uses_prompt, "views": artifact.views},
    )


def _facts(artifact: Artifact, weights: Path) -> dict[str, Any]:
    return {
        "license": artifact.license,
        "commercial_ok": artifact.commercial_ok,
        "weights": f"sha256:{fingerprint(artifact, file_hashes(artifact, weights))}",
        "about": f"published by {artifact.files[0].origin}",
        "views": artifact.views,
    }
