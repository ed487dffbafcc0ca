"""Several rewards as one: sums by hand, gradients by finite differences, groups, presets."""

from __future__ import annotations

import pickle
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from reward_models.contracts import RewardCard, ViewPrompt, score_and_gradient
from reward_models.ensemble import Ensemble, EnsembleSpec, Member, group_scores, standard_member
from reward_models.ensemble_presets import PRESETS, dreamdpo, higrpo_step1, higrpo_step2

CARD = RewardCard("brightness", (0.0, 1.0), "mean of all pixels", None, False, True, "MIT", "ab" * 32)


class Brightness:
    """Each view's mean, or with `views=4` the product of the four views' means."""

    def __init__(self, name: str, *, views: int | None = None, differentiable: bool = True) -> None:
        self.card = replace(CARD, name=name, views=views, differentiable=differentiable)

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        means = images.square().mean((2, 3, 4))
        return means if self.card.views is None else means.prod(1, keepdim=True)

    def score_batch(
        self, images: Tensor, prompts: list[str], wants_gradient: Tensor
    ) -> tuple[Tensor, Tensor]:
        return score_and_gradient(self.score, images, prompts, wants_gradient)


REWARDS = {
    "each": Brightness("each"),
    "all": Brightness("all", views=4),
    "ranks": Brightness("ranks", differentiable=False),
}
IMAGES = torch.rand(3, 4, 3, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
PROMPTS = ["a", "b", "c"]
NONE, EVERY = torch.zeros(3, dtype=torch.bool), torch.ones(3, dtype=torch.bool)


def ensemble(*members: Member, normalization: str = "affine") -> Ensemble:
    return Ensemble(EnsembleSpec("both", members, normalization), REWARDS)


def test_the_score_is_the_weighted_sum_of_normalized_reductions() -> None:
    both = ensemble(Member("each", 2.0, center=0.5, scale=0.1, reduce="max"), Member("all", -1.0))
    values, gradient = both.score_batch(IMAGES, PROMPTS, NONE)
    means = IMAGES.square().mean((2, 3, 4))
    torch.testing.assert_close(values, (2 * (means.amax(1) - 0.5) / 0.1 - means.prod(1))[:, None])
    assert gradient.abs().max() == 0


@pytest.mark.parametrize("reduce", ["mean", "max", "min", "first", None])
def test_the_gradient_is_that_of_the_summed_score(reduce: str | None) -> None:
    both = ensemble(Member("each", 2.0, 0.5, 0.1, reduce), Member("all", -1.0, reduce=None))
    values, gradient = both.score_batch(IMAGES, PROMPTS, torch.tensor([True, True, False]))
    assert values.shape == ((3, 4) if reduce is None else (3, 1))
    assert gradient[2].abs().max() == 0
    direction = torch.randn(IMAGES.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ahead, behind = (
        both.score_batch(IMAGES + sign * 1e-6 * direction, PROMPTS, NONE)[0][:2].sum() for sign in (1, -1)
    )
    assert float((gradient * direction).sum()) == pytest.approx(float(ahead - behind) / 2e-6, rel=1e-6)


def test_z_scores_are_taken_within_each_group() -> None:
    scores = [
        torch.tensor([[1.0], [3.0], [7.0], [5.0], [5.0]]),
        torch.tensor([[0.0], [1.0], [9.0], [2.0], [4.0]]),
    ]
    groups = torch.tensor([0, 0, 1, 2, 2])
    members = (Member("each", 1.0), Member("all", 10.0))
    total = group_scores(members, scores, groups)
    torch.testing.assert_close(total, torch.tensor([-11.0, 11.0, 0.0, -10.0, 10.0]), rtol=2e-3, atol=0)


def test_group_normalization_ignores_the_scale_of_a_reward() -> None:
    groups = torch.tensor([4, 4, 4])
    plain = ensemble(Member("each"), normalization="group").score_groups(IMAGES, PROMPTS, groups)
    scaled = ensemble(Member("each", center=7.0), normalization="group").score_groups(IMAGES, PROMPTS, groups)
    assert torch.equal(plain, scaled)
    assert float(plain.sum()) == pytest.approx(0, abs=1e-9)
    affine = ensemble(Member("each")).score_groups(IMAGES, PROMPTS, groups)
    torch.testing.assert_close(affine, IMAGES.square().mean((1, 2, 3, 4)))


def test_a_group_ensemble_has_no_score_of_one_object() -> None:
    with pytest.raises(ValueError, match="'both' compares the candidates of a prompt"):
        ensemble(Member("each"), normalization="group").score_batch(IMAGES, PROMPTS, NONE)


def test_an_ensemble_with_a_judge_ranks_but_has_no_gradient() -> None:
    both = ensemble(Member("each"), Member("ranks"))
    assert not both.card.differentiable
    assert both.score_batch(IMAGES, PROMPTS, NONE)[0].shape == (3, 1)
    with pytest.raises(ValueError, match="has no gradient, as ranks only ranks images"):
        both.score_batch(IMAGES, PROMPTS, EVERY)


def test_the_card_joins_the_members_cards() -> None:
    card = ensemble(Member("each", -2.0, center=0.5), Member("all")).card
    assert card.name == "both"
    assert card.value_range == (-1.0, 2.0)
    assert (card.views, card.license) == (4, "MIT")
    assert card.scale == "-2·each + 1·all, affine normalization"
    other = Ensemble(EnsembleSpec("both", (Member("all"),)), {"all": Brightness("all", views=4)}).card
    assert other.weights_sha256 != card.weights_sha256


def test_impossible_ensembles_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"needs 'parts', but only these rewards are loaded: each, all, ranks"
    ):
        ensemble(Member("parts"))
    with pytest.raises(ValueError, match="has no members"):
        EnsembleSpec("empty", ())
    with pytest.raises(ValueError, match="the scale of 'each' must be above 0"):
        EnsembleSpec("flat", (Member("each", scale=0.0),))
    six = {"all": REWARDS["all"], "six": Brightness("six", views=6)}
    with pytest.raises(ValueError, match=r"want different numbers of views \(all 4, six 6\)"):
        Ensemble(EnsembleSpec("odd", (Member("all"), Member("six"))), six)


def test_standard_members_are_about_standard_normal() -> None:
    member = standard_member("hpsv2.1", 2.0)
    assert (member.weight, member.center, member.scale) == (2.0, 0.25, 0.03)
    with pytest.raises(ValueError, match=r"no typical center and spread of 'brightness' are known"):
        standard_member("brightness")


def test_every_number_of_a_preset_has_its_source() -> None:
    assert set(PRESETS) == {"dreamreward", "dreamdpo", "psd", "higrpo-step1", "higrpo-step2"}
    assert all(spec.source and all(member.source for member in spec.members) for spec in PRESETS.values())
    assert [member.scale for member in higrpo_step1().members] == [1, 1, 1]
    assert [member.scale for member in higrpo_step2().members] == [1, 3, 3, 2]
    assert dreamdpo().members[0].reduce is None  # compared view by view


def test_a_view_prompt_survives_the_way_to_another_process() -> None:
    sent = pickle.loads(pickle.dumps([ViewPrompt("a cat", ["a cat, front view", "a cat, back view"]), "red"]))
    assert sent == ["a cat", "red"]
    assert sent[0].views == ("a cat, front view", "a cat, back view")
