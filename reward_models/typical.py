"""Where a reward's scores usually lie: known without loading any network, needs no torch."""

from __future__ import annotations

__all__ = ["TYPICAL", "typical_scores"]

TYPICAL = {
    "imagereward": (0.0, 1.0, "its own mean and standard deviation are already taken out"),
    "reward3d": (0.0, 1.0, "as ImageReward's"),
    "hpsv2": (0.25, 0.03, "typical of its published score tables"),
    "hpsv2.1": (0.25, 0.03, "typical of its published score tables"),
    "pickscore": (21.0, 1.2, "typical of generated pictures"),
    "aesthetic": (5.5, 0.6, "typical of generated pictures"),
    "embedded-multiview": (-2.4, 1.3, "measured on the finished objects of `make eval`, SDS, 102 prompts"),
    "embedded-alignment": (-2.3, 2.4, "as embedded-multiview's"),
}
"""Center and spread of a reward's scores, and why: rough constants to mix rewards of different scales with."""


def typical_scores(reward: str) -> tuple[float, float] | None:
    """Tell the center and the spread of a reward's scores, by which it may be mixed with others; None: unknown."""
    return TYPICAL[reward][:2] if reward in TYPICAL else None
