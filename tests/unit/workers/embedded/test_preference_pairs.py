"""Pairs with a known winner: the better pictures are the truth of the prompt, the worse differ as their kind says."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from reward_models.contracts import RewardCard
from workers.embedded import preference_pairs
from workers.embedded.preference_pairs import (
    PAIR_KINDS,
    draw_preference_pair,
    held_out_description,
    pair_accuracy,
)
from workers.embedded.truth import Truth
from workers.embedded.world import Description, is_held_out


def differing_views(kind: str, seed: int) -> list[bool]:
    pair = draw_preference_pair(kind, np.random.default_rng(seed))
    return [bool((a - b).abs().max() > 0.1) for a, b in zip(pair.better, pair.worse, strict=True)]


@pytest.mark.parametrize("kind", PAIR_KINDS)
def test_worse_pictures_differ_from_the_true_ones(kind: str) -> None:
    assert all(any(differing_views(kind, seed)) for seed in range(4))


def test_a_two_faced_object_is_right_from_one_side_only() -> None:
    assert [differing_views("two-faced", seed)[:2] for seed in range(4)] == [[False, False]] * 4
    assert any(all(differing_views("two-faced", seed)[2:]) for seed in range(4))


def test_every_pair_was_held_out_of_training() -> None:
    rng = np.random.default_rng(0)
    descriptions = [held_out_description(rng) for _ in range(50)]
    assert all(d.b is not None and is_held_out(d.a, d.b) for d in descriptions)


@pytest.mark.parametrize("kind", PAIR_KINDS)
def test_a_pair_for_training_shows_no_combination_that_was_held_out(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = []

    def watched(description: Description, rng: np.random.Generator) -> Truth:
        shown.append(description)
        return Truth(description, rng)

    monkeypatch.setattr(preference_pairs, "Truth", watched)
    rng = np.random.default_rng(0)
    for _ in range(25):
        draw_preference_pair(kind, rng, held_out=False)
    assert len(shown) == 50
    assert not any(d.b is None or is_held_out(d.a, d.b) for d in shown)


class Brightest:
    """Prefers brighter pictures, whatever the words say."""

    card = RewardCard("brightest", None, "mean", 4, False, False, "Apache-2.0", None)

    def score_batch(
        self, images: torch.Tensor, prompts: list[str], wants_gradient: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return images.mean((2, 3, 4)), torch.zeros_like(images)


def test_a_reward_that_reads_nothing_is_at_chance_on_color_swaps() -> None:
    shares = pair_accuracy(Brightest(), 40, seed=1)
    assert shares.keys() == set(PAIR_KINDS)
    assert 0.2 < shares["color-swap"] < 0.8


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="no kind of pair is called 'taste'"):
        draw_preference_pair("taste", np.random.default_rng(0))
