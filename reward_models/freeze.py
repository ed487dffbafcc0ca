"""Which part of a BLIP reward is kept fixed while its reward is trained: ImageReward's rule.

With rate r, of L text layers and D ViT blocks: the embeddings, the text layers below ⌊L r⌋ and the blocks below
⌊D r⌋, and BLIP's unused projections. The published loop freezes a tensor before it looks at its name, so the first
tensor of layer ⌊L r⌋ and of block ⌊D r⌋ is frozen too (source: THUDM/ImageReward, train/src/ImageReward.py).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from reward_models.blip import published_name

if TYPE_CHECKING:
    from collections.abc import Iterable

    from reward_models.blip import BlipReward

__all__ = ["freeze", "frozen_names"]

_TEXT, _VISION = "blip.text_encoder.", "blip.visual_encoder."
_FIRST_OF_LAYER = ("attention.self.query.weight", "norm1.weight")
"""The first tensor of a text layer and of a ViT block, in the published models' order."""


def freeze(reward: BlipReward, fix_rate: float) -> None:
    """Let all of a reward train but what the rule keeps fixed; raises ValueError unless 0 ≤ fix_rate ≤ 1."""
    parameters = {published_name(name).key: parameter for name, parameter in reward.named_parameters()}
    config = reward.config
    frozen = set(frozen_names(parameters, fix_rate, config.vision_layers, config.text_layers))
    for name, parameter in parameters.items():
        parameter.requires_grad_(name not in frozen)


def frozen_names(names: Iterable[str], fix_rate: float, vision_layers: int, text_layers: int) -> list[str]:
    """Pick, of a reward's published names, those that are kept fixed, sorted."""
    if not 0 <= fix_rate <= 1:
        raise ValueError(f"the share of frozen layers must be in [0, 1], but is {fix_rate}")
    first_text, first_vision = int(text_layers * fix_rate), int(vision_layers * fix_rate)

    def is_frozen(name: str) -> bool:
        if name.startswith(("blip.vision_proj.", "blip.text_proj.")):
            return True
        if not fix_rate or not name.startswith((_TEXT, _VISION)):
            return False
        boundary, count = (
            (first_text, text_layers) if name.startswith(_TEXT) else (first_vision, vision_layers)
        )
        layer = re.match(
            r"(?:encoder\.layer|blocks)\.(\d+)\.(.*)", name.removeprefix(_TEXT).removeprefix(_VISION)
        )
        if layer is None:  # embeddings come first, the ViT's final norm last
            return boundary == count or not name.startswith(f"{_VISION}norm.")
        return int(layer[1]) < boundary or (int(layer[1]) == boundary and layer[2] in _FIRST_OF_LAYER)

    return sorted(name for name in names if is_frozen(name))
