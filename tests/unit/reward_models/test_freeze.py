"""The published rule says what stays fixed while a reward is trained (its names: golden case freeze_fixrate70)."""

from __future__ import annotations

import pytest

from reward_models.blip import BlipReward, published_name
from reward_models.freeze import freeze
from reward_models.reward3d import Reward3DScorer
from tests.unit.reward_models.small_networks import make_blip_reward


def trainable(reward: BlipReward) -> set[str]:
    return {published_name(name).key for name, p in reward.named_parameters() if p.requires_grad}


def test_layers_below_the_boundary_are_fixed_and_the_first_tensor_at_it() -> None:
    reward = make_blip_reward(Reward3DScorer)
    freeze(reward, 0.7)  # of 3 layers: the first two
    names = trainable(reward)
    assert "blip.text_encoder.encoder.layer.2.attention.self.query.bias" in names
    assert "blip.visual_encoder.blocks.2.norm1.bias" in names
    assert "blip.visual_encoder.norm.weight" in names
    assert {"Scorer.fc1.weight", "mlp.layers.0.weight"} <= names
    fixed = {
        "blip.text_encoder.encoder.layer.2.attention.self.query.weight",
        "blip.visual_encoder.blocks.2.norm1.weight",
        "blip.visual_encoder.blocks.1.mlp.fc2.bias",
        "blip.visual_encoder.pos_embed",
        "blip.text_encoder.embeddings.word_embeddings.weight",
        "blip.vision_proj.weight",
    }
    assert not fixed & names


def test_everything_but_the_unused_projections_trains_at_rate_0_and_only_heads_at_1() -> None:
    reward = make_blip_reward(Reward3DScorer)
    freeze(reward, 0.0)
    all_names = {published_name(name).key for name, _ in reward.named_parameters()}
    assert trainable(reward) == {name for name in all_names if "_proj." not in name}
    freeze(reward, 1.0)
    assert trainable(reward) == {name for name in all_names if name.startswith(("mlp.", "Scorer."))}


def test_a_rate_outside_0_and_1_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must be in \[0, 1\], but is 70"):
        freeze(make_blip_reward(Reward3DScorer), 70)
