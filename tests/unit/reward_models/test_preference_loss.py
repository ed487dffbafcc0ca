"""The loss that trains a reward on what people preferred."""

from __future__ import annotations

import math

import pytest
import torch

from reward_models.preference_loss import preference_loss, prefers_rightly


def test_of_two_candidates_it_is_bradley_terrys() -> None:
    scores = torch.tensor([[1.0, 0.0], [0.5, 2.5]])
    better_first = preference_loss(scores, torch.tensor([0, 0]))
    by_hand = (math.log(1 + math.exp(-1)) + math.log(1 + math.exp(2))) / 2
    assert float(better_first) == pytest.approx(by_hand)


def test_candidates_that_are_not_there_count_nothing() -> None:
    scores = torch.tensor([[1.0, 0.0, -torch.inf], [1.0, 0.0, 3.0]])
    assert float(preference_loss(scores[:1], torch.tensor([1]))) == pytest.approx(math.log(1 + math.e))


def test_a_tie_is_no_right_preference() -> None:
    scores = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0], [2.0, 1.0]])
    assert prefers_rightly(scores, torch.zeros(4, dtype=torch.int64)).float().mean() == 0.5
