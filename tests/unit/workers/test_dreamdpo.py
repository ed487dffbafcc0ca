from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from service.jobs.spec import DreamDpoMethod, PsdMethod, SdsMethod
from tests.unit.workers.small_scenes import (
    Fixed,
    TinyReward,
    answer_at_once,
    ball_prior,
    flat_views,
    gradients_of_sds,
    make_scene,
    pictures,
)
from workers.contracts import Schedule
from workers.diffusion import add_noise, x0_from_noise
from workers.engine import Engine
from workers.methods import make_method
from workers.methods.dreamdpo import (
    Preference,
    override_preference,
    override_released,
    paper_gradient,
    prefer,
    preferred_target,
    released_gradient,
)
from workers.methods.sds import reconstruction_loss
from workers.render import render

if TYPE_CHECKING:
    from torch import Tensor

    from workers.contracts import Method

PRIOR = ball_prior()


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).view(-1, 1, 1, 1)


def test_the_target_is_pushed_from_the_loser_beyond_the_winner() -> None:
    target = preferred_target(
        column(1, 1), column(3, 3), prefer(*torch.tensor([[5.0], [4.0]])), tau=0.5, push=2.0
    )
    assert target.flatten().tolist() == [-3.0, -3.0]


def test_each_view_has_its_own_winner_when_the_judge_answers_per_view() -> None:
    preference = prefer(torch.tensor([1.0, 0.0, 0.5]), torch.tensor([0.0, 1.0, 0.5]))
    assert preference.a_wins.tolist() == [True, False, True]
    target = preferred_target(column(1, 1, 1), column(3, 3, 3), preference, tau=0.5, push=2.0)
    assert target.flatten().tolist() == [-3.0, 7.0, 1.0]


def test_a_tie_prefers_a_and_a_gap_of_exactly_tau_pushes() -> None:
    tie = prefer(torch.tensor([2.0]), torch.tensor([2.0]))
    assert tie.a_wins.item()
    assert preferred_target(column(1), column(3), tie, tau=0.0, push=1.0).item() == -1.0
    at_tau = Preference(torch.tensor([True]), torch.tensor([0.25]))
    assert preferred_target(column(1), column(3), at_tau, tau=0.25, push=1.0).item() == -1.0


def test_the_gradient_is_the_papers_times_the_push_anchored_by_sds_on_the_winner() -> None:
    schedule, t = Schedule(torch.tensor([0.64])), torch.tensor([0])
    generator = torch.Generator().manual_seed(0)
    latents, noise_w, noise_l, pred_w, pred_l = torch.randn(5, 1, 2, 4, 3, 3, generator=generator).double()
    latents.requires_grad_()
    winner, loser = (
        x0_from_noise(add_noise(latents.detach(), noise, t, schedule), pred, t, schedule)
        for noise, pred in ((noise_w, pred_w), (noise_l, pred_l))
    )
    preference = prefer(torch.tensor([1.0]), torch.tensor([0.0]))
    target = preferred_target(winner[0], loser[0], preference, tau=0.1, push=2.0)
    reconstruction_loss(latents, target[None]).backward()
    paper = (pred_w - noise_w) - (pred_l - noise_l)
    torch.testing.assert_close(latents.grad, (0.6 / 0.8) * ((pred_w - noise_w) + 2.0 * paper) / 2)


def gradient_of_dreamdpo(judge: Fixed, **knobs: Any) -> Tensor:
    latents = pictures(PRIOR)
    method = make_method(DreamDpoMethod(**knobs), judge)
    loss = answer_at_once(method(make_scene(PRIOR, method), flat_views(latents, PRIOR), PRIOR))
    return torch.autograd.grad(loss, latents)[0]


@pytest.mark.parametrize("opinion", [([1.0], [0.9]), ([0.9], [1.0])], ids=["first wins", "second wins"])
def test_below_tau_it_is_sds_on_the_winner(opinion: tuple[list[float], list[float]]) -> None:
    winner = int(opinion[1] > opinion[0])
    below = gradient_of_dreamdpo(Fixed(*opinion), tau=0.2)
    torch.testing.assert_close(below, gradients_of_sds(PRIOR)[winner], atol=1e-9, rtol=1e-5)
    beyond = gradient_of_dreamdpo(Fixed(*opinion), tau=0.05)
    assert not torch.allclose(beyond, below, rtol=0.01)


def test_below_tau_with_the_first_as_winner_it_is_the_sds_method() -> None:
    latents = pictures(PRIOR)
    method = make_method(SdsMethod(), None)
    loss = answer_at_once(method(make_scene(PRIOR, method), flat_views(latents, PRIOR), PRIOR))
    (gradient,) = torch.autograd.grad(loss, latents)
    below = gradient_of_dreamdpo(Fixed([1.0], [1.0]), tau=0.2)
    torch.testing.assert_close(below, gradient, atol=1e-9, rtol=1e-5)


def test_without_push_tau_does_not_matter() -> None:
    judge = Fixed([1.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 1.0])
    gradients = [gradient_of_dreamdpo(judge, tau=tau, push=0.0) for tau in (0.0, 9.0)]
    assert torch.equal(*gradients)


def test_a_judge_per_view_mixes_the_winners_of_both_noises() -> None:
    first, second = gradients_of_sds(PRIOR)
    mixed = gradient_of_dreamdpo(Fixed([1.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 1.0]), push=0.0)
    expected = torch.stack([first[:, 0], second[:, 1], first[:, 2], second[:, 3]], 1)
    torch.testing.assert_close(mixed, expected, atol=1e-9, rtol=1e-5)


@pytest.mark.parametrize("pair", ["noise", "timestep"])
def test_a_pair_differs_in_its_noise_or_in_its_time(pair: Any) -> None:
    seen: list[tuple[Tensor, Tensor]] = []
    prior = ball_prior()
    prior.denoiser.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[:2]))
    knobs = DreamDpoMethod(pair=pair)
    judge = Fixed([1.0], [0.0])
    scene = make_scene(prior, make_method(knobs, judge))
    answer_at_once(scene.loss())
    ((noisy, alpha),) = seen
    assert noisy.shape[0] == 4
    assert torch.equal(noisy[:2], noisy[2:])
    assert not torch.equal(noisy[0], noisy[1])
    assert (alpha[0].item() == alpha[1].item()) == (pair == "noise")
    assert judge.images is not None
    assert judge.images.shape == (2, 4, 3, prior.image_px, prior.image_px)


def test_it_prefers_what_its_judge_prefers() -> None:
    """A judge that wants blue turns an undecided prior's object bluer than SDS does, the more the harder it pushes."""

    class WantsBlue(TinyReward):
        def values(self, images: Tensor) -> Tensor:
            return (images[:, :, 2] - images[:, :, 0]).mean((1, 2, 3))[:, None]

    prior = ball_prior(spread=0.5)

    def blueness(method: Method) -> float:
        scene = make_scene(prior, method, prompt="", steps_total=60)
        engine = Engine()
        engine.admit(scene)
        while not scene.finished:
            engine.step()
        views = render(scene.field, scene.rig.draw(torch.Generator()), 8, 24)
        return (views.rgb[:, :, 2] - views.rgb[:, :, 0]).mean().item()

    sds = blueness(make_method(SdsMethod(), None))
    weak, strong = (
        blueness(make_method(DreamDpoMethod(tau=0.0, push=push), WantsBlue())) for push in (2.0, 20.0)
    )
    assert weak > sds + 0.001
    assert strong > weak + 0.003


# ---- the paper's and the published form


def test_the_papers_gradient_is_a_difference_of_residuals_or_the_winners() -> None:
    residual_a, residual_b = column(1, 1, 1), column(5, 5, 5)
    preference = prefer(torch.tensor([1.0, 0.0, 0.5]), torch.tensor([0.0, 1.0, 0.45]))
    gradient = paper_gradient(torch.stack([residual_a, residual_b]), preference, tau=0.1)
    assert gradient.flatten().tolist() == [1.0 - 5.0, 5.0 - 1.0, 1.0]


def test_the_published_gradient_does_not_guide_its_loser_and_keeps_the_noise_below_tau() -> None:
    guided, conditional, noise = (torch.stack([column(a), column(b)]) for a, b in ((10, 20), (1, 2), (3, 5)))
    clear, unclear = (prefer(torch.tensor([0.0]), torch.tensor([gap])) for gap in (1.0, 0.01))
    assert released_gradient(guided, conditional, noise, clear, 0.1).item() == (20 - 5) - (1 - 3)
    assert released_gradient(guided, conditional, noise, unclear, 0.1).item() == 20


def test_below_tau_the_paper_is_classic_sds_on_the_winner() -> None:
    latents = pictures(PRIOR)
    knobs = SdsMethod(form="classic")
    method = make_method(knobs, None)
    loss = answer_at_once(method(make_scene(PRIOR, method), flat_views(latents, PRIOR), PRIOR))
    (gradient,) = torch.autograd.grad(loss, latents)
    below = gradient_of_dreamdpo(Fixed([1.0], [0.9]), tau=0.2, form="paper")
    torch.testing.assert_close(below, gradient, atol=1e-9, rtol=1e-5)


def test_the_papers_form_forgets_which_pair_came_first() -> None:
    one = gradient_of_dreamdpo(Fixed([1.0], [0.0]), tau=0.1, form="paper")
    other = gradient_of_dreamdpo(Fixed([0.0], [1.0]), tau=0.1, form="paper")
    torch.testing.assert_close(one, -other, atol=1e-9, rtol=1e-5)


def test_an_object_has_one_winner_when_it_is_ranked_as_a_whole() -> None:
    first, second = gradients_of_sds(PRIOR)
    judge = Fixed([1.0, 0.0, 1.0, 0.0], [0.0, 1.1, 0.0, 1.1])
    whole = gradient_of_dreamdpo(judge, push=0.0, per="object")
    torch.testing.assert_close(whole, second, atol=1e-9, rtol=1e-5)
    per_view = gradient_of_dreamdpo(judge, push=0.0)
    torch.testing.assert_close(per_view[:, 0], first[:, 0], atol=1e-9, rtol=1e-5)


# ---- a second judge


def test_a_second_judge_decides_where_it_is_not_undecided() -> None:
    judged = prefer(torch.tensor([1.0, 1.0, 1.0]), torch.tensor([0.9, 0.9, 0.9]))
    both = override_preference(judged, torch.tensor([3.0, 2.0, 1.0]), torch.tensor([2.0, 2.0, 4.0]), tau=0.5)
    assert both.a_wins.tolist() == [True, True, False]
    assert both.gap.tolist() == pytest.approx([0.5, 0.1, 0.5])


def test_a_second_judge_of_the_whole_object_decides_for_all_views() -> None:
    judged = prefer(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]))
    both = override_preference(judged, torch.tensor([0.0]), torch.tensor([1.0]), tau=0.0)
    assert both.a_wins.tolist() == [False, False]


def test_the_published_override_only_helps_the_first() -> None:
    judged = prefer(torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 1.0, 1.0]))
    both = override_released(judged, torch.tensor([0.0, 5.0, 0.0]), torch.tensor([9.0, 0.0, 0.0]))
    assert both.a_wins.tolist() == [True, True, False]
    assert both.gap.tolist() == [1.0, -1.0, 1.0]


def with_second_judge(step: int, **knobs: Any) -> tuple[Tensor, Tensor | None]:
    """The gradient of a step in which a second judge disagrees, and the pictures that it saw."""
    latents = pictures(PRIOR)
    second = Fixed([0.0], [1.0])
    method = make_method(DreamDpoMethod(override="second", **knobs), Fixed([1.0], [0.0]), second)
    scene = make_scene(PRIOR, method)
    scene.step = step
    loss = answer_at_once(method(scene, flat_views(latents, PRIOR), PRIOR))
    return torch.autograd.grad(loss, latents)[0], second.images


def test_a_second_judge_is_asked_from_its_progress_on_and_overrules() -> None:
    knobs = {"override_share": 1.0, "override_from": 0.5, "push": 0.0}
    before, seen_before = with_second_judge(24, **knobs)
    after, seen_after = with_second_judge(25, **knobs)
    assert seen_before is None
    assert seen_after is not None
    never, _ = with_second_judge(25, **(knobs | {"override_share": 0.0}))
    assert not torch.allclose(after, never)
    assert torch.isfinite(before).all()


def test_a_second_judge_is_asked_in_its_share_of_the_steps() -> None:
    asked_in = 0
    for seed in range(40):
        second = Fixed([0.0], [1.0])
        method = make_method(
            DreamDpoMethod(override="second", override_from=0.0), Fixed([1.0], [0.0]), second
        )
        latents = pictures(PRIOR)
        answer_at_once(method(make_scene(PRIOR, method, seed=seed), flat_views(latents, PRIOR), PRIOR))
        asked_in += second.images is not None
    assert 8 <= asked_in <= 24


def test_a_second_judge_is_neither_forgotten_nor_smuggled_in() -> None:
    judge = Fixed([1.0], [0.0])
    with pytest.raises(ValueError, match="second judge is 'lmm' by its knobs, but None was given"):
        make_method(DreamDpoMethod(override="lmm"), judge)
    with pytest.raises(ValueError, match="second judge is None by its knobs"):
        make_method(DreamDpoMethod(), judge, judge)


@pytest.mark.parametrize("knobs", [DreamDpoMethod(), DreamDpoMethod(pair="timestep"), PsdMethod()])
def test_pairs_are_of_one_group(knobs: DreamDpoMethod | PsdMethod) -> None:
    latents = pictures(PRIOR).expand(2, -1, -1, -1, -1)
    method = make_method(knobs, Fixed([1.0], [0.0]))
    with pytest.raises(ValueError, match="found 2 groups of views"):
        answer_at_once(method(make_scene(PRIOR, method), flat_views(latents, PRIOR), PRIOR))
