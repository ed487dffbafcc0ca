"""What the multimodal judges of published methods ask, by the names that `ensemble_presets` uses.

The models: Qwen2.5-VL-7B for `category`, `appearance` and `consistency`, UnifiedReward-2.0-qwen-7b for `unified`, its
Think variant for `unified-alignment`. DreamDPO's judge is a `Checklist`, whose questions belong to prompts: it is
none of these. Source of the sub-scores: arXiv 2512.10949, appendix B and section 4; the wording is ours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from reward_models.multimodal_formats import Boxed, JsonScore, Unified

if TYPE_CHECKING:
    from reward_models.multimodal_formats import AnswerFormat

__all__ = ["FORMATS"]

FORMATS: dict[str, AnswerFormat] = {
    "unified": Unified(),
    "unified-alignment": Unified(("Alignment",)),
    "category": Boxed("the object is of the category that the text names"),
    "appearance": JsonScore(
        (
            "its colors are smooth and go over into each other naturally",
            "its materials are realistic and fit together",
            "its textures are where they make sense",
        )
    ),
    "consistency": JsonScore(
        (
            "its outline is that of one object from all sides",
            "its appearance is the same from all sides",
            "its parts are the same from all sides",
        )
    ),
    "quality": JsonScore(),
}
