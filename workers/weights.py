"""Which networks this release ships, where their weights lie, and how to load a reward; itself it needs no torch.

The published ones, of which it ships none, are in `artifacts.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from reward_models.published import PUBLISHED, load_published
from workers.artifacts import ARTIFACTS, RETRAINED, retrained_in

if TYPE_CHECKING:
    from reward_models.contracts import RewardModel

__all__ = [
    "EMBEDDED_PRIOR",
    "EMBEDDED_REWARDS",
    "EMBEDDED_WEAK_PRIOR",
    "REWARD_NAMES",
    "check_weights",
    "load_reward",
    "reward_file",
]

_EMBEDDED = Path(__file__).parent / "embedded" / "weights"
EMBEDDED_PRIOR = _EMBEDDED / "embedded-prior.safetensors"
EMBEDDED_WEAK_PRIOR = _EMBEDDED / "embedded-prior-weak.safetensors"
"""The first 400 steps of an earlier run of its recipe, on which evaluations compare methods; no job uses it."""
EMBEDDED_REWARDS = {
    "embedded-multiview": _EMBEDDED / "embedded-multiview-reward.safetensors",
    "embedded-alignment": _EMBEDDED / "embedded-alignment-reward.safetensors",
}
REWARD_NAMES = tuple(EMBEDDED_REWARDS)
"""Of the shipped rewards."""


def check_weights() -> None:
    """Raise FileNotFoundError, saying what to do, unless all shipped files are there."""
    missing = [path for path in (EMBEDDED_PRIOR, *EMBEDDED_REWARDS.values()) if not path.exists()]
    if missing:
        names = " and ".join(path.name for path in missing)
        raise FileNotFoundError(
            f"the embedded models are not whole: {names} is not in {_EMBEDDED}. "
            "Restore the shipped files, or make them anew with `make train-embedded`"
        )


def reward_file(name: str, weights: Path | None = None) -> Path:
    """Find the weights of an embedded reward: a retrained one in the weights folder takes the shipped one's place.

    Raises ValueError when that has a folder but no file: it got lost, and nobody has said that the shipped one will do.
    """
    retrained = RETRAINED[name]
    if weights is None or retrained not in retrained_in(weights):
        return EMBEDDED_REWARDS[name]
    folder, (file,) = retrained.folder(weights), retrained.files
    if found := retrained.find(folder, file.name):
        return found
    raise ValueError(
        f"{file.name} is missing in {folder}: import the retrained '{name}' again, or remove the folder to go back to "
        "the shipped one"
    )


def load_reward(name: str, weights: Path | None = None) -> RewardModel:
    """Load one reward network into this process: a shipped one, or one of the weights folder.

    Raises ValueError when a file is missing or damaged, or holds another reward, naming it.
    """
    if name in EMBEDDED_REWARDS:
        from reward_models.embedded import load_embedded_reward

        return load_embedded_reward(reward_file(name, weights), name)
    if name in PUBLISHED and weights is not None:
        return load_published(name, ARTIFACTS[name].folder(weights))
    raise ValueError(
        f"there is no reward '{name}'; this release has {', '.join((*REWARD_NAMES, *PUBLISHED))}"
    )
