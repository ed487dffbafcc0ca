"""The shipped reward: it prefers what the words say, sees damage, and its gradient is its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import Tensor

from reward_models.contracts import NotFinite
from reward_models.embedded import EmbeddedReward, SlotLogits, match_score
from workers.embedded.captions import plain_caption
from workers.embedded.damage import damaged
from workers.embedded.dataset import group_cameras
from workers.embedded.truth import Truth
from workers.evaluation.prompts import held_out_pairs
from workers.priors.rgba import latents_to_image
from workers.weights import load_reward

if TYPE_CHECKING:
    from workers.embedded.world import Description

NAME = "embedded-multiview"


@pytest.fixture(scope="module")
def reward() -> EmbeddedReward:
    torch.set_num_threads(1)
    loaded = load_reward(NAME)
    assert isinstance(loaded, EmbeddedReward)
    return loaded


def true_latents(descriptions: list[Description]) -> Tensor:
    """Exact pictures of descriptions: (N, 4, 4, 32, 32)."""
    rng = np.random.default_rng(3)
    angles = [torch.tensor([float(rng.uniform(0, 360)), 20.0]) for _ in descriptions]
    truths = zip(descriptions, angles, strict=True)
    return torch.stack([Truth(description).latents(group_cameras(angle)) for description, angle in truths])


def values(reward: EmbeddedReward, latents: Tensor, descriptions: list[Description]) -> Tensor:
    none = torch.zeros(len(latents), dtype=torch.bool)
    prompts = [plain_caption(description) for description in descriptions]
    return reward.score_batch(latents_to_image(latents), prompts, none)[0][:, 0]


PAIRS = [
    pair
    for pair in held_out_pairs(160)
    if pair.b and pair.a.name != pair.b.name and pair.a.color != pair.b.color
]


def swapped_colors(pair: Description) -> Description:
    assert pair.b is not None
    return pair._replace(a=pair.a._replace(color=pair.b.color), b=pair.b._replace(color=pair.a.color))


def other_relation(pair: Description) -> Description:
    return pair._replace(relation="next" if pair.relation == "on" else "on")


@pytest.mark.parametrize("wrong", [swapped_colors, other_relation], ids=lambda one: one.__name__)
def test_true_words_beat_wrong_ones_on_pairs_it_never_saw(reward: EmbeddedReward, wrong: object) -> None:
    assert callable(wrong)
    latents = true_latents(PAIRS)
    better = values(reward, latents, PAIRS) > values(reward, latents, [wrong(pair) for pair in PAIRS])
    assert better.float().mean() >= 0.85


def test_sound_pictures_beat_damaged_ones(reward: EmbeddedReward) -> None:
    latents = true_latents(PAIRS)
    worse, _ = damaged(latents, torch.Generator().manual_seed(0))
    assert (values(reward, latents, PAIRS) > values(reward, worse, PAIRS)).float().mean() >= 0.8


def test_its_gradient_is_the_slope_of_its_score_and_only_where_it_is_wanted(reward: EmbeddedReward) -> None:
    doubled = load_reward(NAME)
    assert isinstance(doubled, EmbeddedReward)
    doubled = doubled.double()
    images = latents_to_image(true_latents(PAIRS[:2])).double().clamp(0.01, 0.99)
    prompts = [plain_caption(pair) for pair in PAIRS[:2]]
    value, gradient = doubled.score_batch(images, prompts, torch.tensor([True, False]))
    assert value.shape == (2, 1)
    assert not gradient[1].any()
    direction = torch.randn(images.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    direction[1] = 0
    ends = [doubled.score(images + step * direction, prompts).sum() for step in (-1e-6, 1e-6)]
    assert float((ends[1] - ends[0]) / 2e-6) == pytest.approx(float((gradient * direction).sum()), rel=1e-4)


def test_larger_pictures_are_taken_to_its_size_and_other_numbers_of_views_refused(
    reward: EmbeddedReward,
) -> None:
    images = latents_to_image(true_latents(PAIRS[:1]))
    large = torch.nn.functional.interpolate(images[0], scale_factor=2)[None]
    prompts = [plain_caption(PAIRS[0])]
    assert torch.allclose(reward.score(large, prompts), reward.score(images, prompts), atol=0.5)
    with pytest.raises(ValueError, match=r"wants 4 views .* but got 3"):
        reward.score(images[:, :3], prompts)


@pytest.mark.parametrize(
    ("value", "kind", "told"),
    [
        (float("nan"), NotFinite, "wants finite images .* nan"),
        (float("inf"), NotFinite, "to inf"),
        (255.0, ValueError, "to 255"),
        (-0.5, ValueError, r"from -0\.5"),
    ],
)
def test_images_that_are_no_pictures_are_refused_and_have_no_score(
    reward: EmbeddedReward, value: float, kind: type[ValueError], told: str
) -> None:
    images = torch.full((2, 4, 3, 32, 32), 0.5)
    images[1, 2, 0, 5, 5] = value
    with pytest.raises(kind, match=told) as caught:
        reward.score_batch(images, ["a red cube"] * 2, torch.tensor([False, False]))
    assert type(caught.value) is kind


def test_next_to_counts_in_either_order_and_on_top_does_not() -> None:
    def logits(first: int, second: int, relation: int) -> SlotLogits:
        one_hot = torch.eye(4)[[first, second]] * 20
        return SlotLogits(one_hot[None], one_hot[None], torch.eye(3)[[relation]] * 20)

    for relation, least in ((2, -2.0), (1, -100.0)):
        straight = match_score(logits(0, 1, relation), logits(0, 1, relation))
        crossed = match_score(logits(0, 1, relation), logits(1, 0, relation))
        assert straight > -2.0
        assert crossed > least
        assert (relation == 2) == bool((straight - crossed).abs() < 0.1)


def test_its_card_tells_what_it_is(reward: EmbeddedReward) -> None:
    card = reward.card
    assert (card.name, card.views, card.differentiable, card.uses_prompt) == (NAME, 4, True, True)
    assert card.weights_sha256 is not None
    assert len(card.weights_sha256) == 64
