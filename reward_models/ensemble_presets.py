"""The rewards of published methods as complete ensembles, each number with its source.

Judges of the multimodal kind are named as members only: what they ask and how their answers become numbers is
theirs.
"""

from __future__ import annotations

from reward_models.ensemble import EnsembleSpec, Member

__all__ = ["PRESETS", "dreamdpo", "dreamreward", "higrpo_step1", "higrpo_step2", "psd"]

HIGRPO = "arXiv 2512.10949, appendix B"


def dreamreward() -> EnsembleSpec:
    """Steer by Reward3D alone, as the paper's Scorer variant gives it; DreamFL's hinge and weight are the method's."""
    member = Member("reward3d", reduce=None, source="weight 1: DreamReward_guidance1.py, mean of relu(4 − r)")
    return EnsembleSpec("dreamreward", (member,), source="arXiv 2403.14613; liuff19/DreamReward 975864b")


def dreamdpo() -> EnsembleSpec:
    """Compare two candidates by HPS v2.1 view by view; the published code always uses one reward at a time."""
    member = Member(
        "hpsv2.1", reduce=None, source="its default judge is hpsv2-score; v2.1 is named by its README"
    )
    return EnsembleSpec("dreamdpo", (member,), source="arXiv 2502.04370; ZhenglinZhou/DreamDPO e297853")


def psd() -> EnsembleSpec:
    """Rank by HPS v2.1, its judge of single pictures."""
    member = Member("hpsv2.1", reduce="mean", source="the paper's judge; the mean over views is ours")
    return EnsembleSpec("psd", (member,), source="arXiv 2603.01594")


def higrpo_step1() -> EnsembleSpec:
    """Score a coarse shape: preference in [0, 1], alignment 1 to 5, the right category 0 or 1; a plain sum."""
    members = (
        Member("hpsv2.1", reduce="max", source=f"[0, 1], best of 6 views: {HIGRPO}"),
        Member("unified-alignment", reduce="max", source=f"Think-qwen-7B, [1, 5], best of 6 views: {HIGRPO}"),
        Member("category", source=f"Qwen2.5-VL-7B on all views together, 0 or 1: {HIGRPO}"),
    )
    return EnsembleSpec("higrpo-step1", members, source=HIGRPO)


def higrpo_step2() -> EnsembleSpec:
    """Score a refined object: preference, quality over 3, appearance over 3, parts over 2; a plain sum.

    λ, by which this sum is also added to step 1's reward (1.0 in the paper), belongs to the optimizer.
    """
    members = (
        Member("hpsv2.1", reduce="max", source=f"[0, 1], best of 6 views: {HIGRPO}"),
        Member("unified", scale=3, reduce="max", source=f"2.0-qwen-7b, sum of three, [3, 15], ÷ 3: {HIGRPO}"),
        Member(
            "appearance", scale=3, source=f"Qwen2.5-VL-7B: color, material, texture, [0, 3], ÷ 3: {HIGRPO}"
        ),
        Member(
            "parts", scale=2, source=f"ShapeLLM on points: existence + completeness, [0, 2], ÷ 2: {HIGRPO}"
        ),
    )
    return EnsembleSpec("higrpo-step2", members, source=HIGRPO)


PRESETS = {spec.name: spec for spec in (dreamreward(), dreamdpo(), psd(), higrpo_step1(), higrpo_step2())}
