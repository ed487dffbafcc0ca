from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from service.jobs.spec import DreamFlMethod, SdsMethod
from tests.unit.workers.small_scenes import (
    PX,
    RED,
    TinyReward,
    answer_at_once,
    ball_prior,
    constant,
    flat_views,
    make_scene,
    pictures,
)
from workers.contracts import Scores
from workers.methods import make_method
from workers.methods.dreamfl import PUBLISHED, digit_weight, follow, hinge, published_loss
from workers.priors.analytic import disk_latents
from workers.priors.rgba import BACKGROUND_RGB

if TYPE_CHECKING:
    from torch import Tensor

    from workers.contracts import Method
    from workers.priors.analytic import AnalyticPrior

PRIOR = ball_prior()


def loss_and_gradient(
    method: Method, step: int = 0, steps_total: int = 50, prior: AnalyticPrior = PRIOR
) -> tuple[float, Tensor]:
    """The loss of a method on given pictures, and its gradient with respect to them."""
    latents = pictures(PRIOR)
    scene = make_scene(prior, method, steps_total=steps_total)
    scene.step = step
    loss = answer_at_once(method(scene, flat_views(latents, prior), prior))
    (gradient,) = torch.autograd.grad(loss, latents)
    return loss.item(), gradient


def test_weight_zero_is_sds() -> None:
    sds = loss_and_gradient(make_method(SdsMethod(), None))
    dreamfl = loss_and_gradient(make_method(DreamFlMethod(reward_weight=0.0), TinyReward()))
    assert dreamfl[0] == sds[0]
    assert torch.equal(dreamfl[1], sds[1])


@pytest.mark.parametrize("form", ["guidance1", "guidance2"])
def test_published_forms_start_as_sds(form: Any) -> None:
    sds = loss_and_gradient(make_method(SdsMethod(), None))
    published = loss_and_gradient(make_method(DreamFlMethod(form=form), TinyReward()))
    assert torch.equal(published[1], sds[1])


@pytest.mark.parametrize("per_view", [False, True])
def test_the_reward_adds_minus_lambda_times_its_gradient(per_view: bool) -> None:
    reward = TinyReward(per_view)
    sds = loss_and_gradient(make_method(SdsMethod(), None))
    dreamfl = loss_and_gradient(make_method(DreamFlMethod(reward_weight=0.7), reward))

    latents = pictures(PRIOR)
    r = reward.values(PRIOR.composite(flat_views(latents, PRIOR))).mean()
    (gradient,) = torch.autograd.grad(r, latents)
    assert dreamfl[0] == pytest.approx(sds[0] - 0.7 * r.item())
    torch.testing.assert_close(dreamfl[1] - sds[1], -0.7 * gradient, atol=1e-8, rtol=1e-4)


def test_following_a_gradient_has_the_value_and_the_gradient_of_the_reward() -> None:
    reward = TinyReward()
    image = torch.rand(1, 4, 3, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scores = reward.score(image, [""], torch.ones(1, dtype=torch.bool)).now()
    image.requires_grad_()
    loss = follow(image, scores.values.mean(), scores.gradient)
    assert loss.item() == scores.values.item()
    (gradient,) = torch.autograd.grad(loss, image)
    for index in [(0, 0, 0, 2, 2), (0, 1, 2, 0, 4), (0, 3, 1, 4, 0)]:
        step = torch.zeros_like(image)
        step[index] = 1e-6
        with torch.no_grad():
            difference = (reward.values(image + step) - reward.values(image - step)) / 2e-6
        assert gradient[index].item() == pytest.approx(difference.item(), rel=1e-5)


def test_the_hinge_rises_only_where_a_score_is_below_four() -> None:
    scores = Scores(torch.tensor([[1.0, 5.0]]), torch.ones(1, 2, 3, 1, 1))
    loss, gradient = hinge(scores)
    assert loss.item() == 1.5
    assert gradient[0, 0].flatten().tolist() == [-0.5] * 3
    assert gradient[0, 1].abs().sum() == 0


@pytest.mark.parametrize(
    ("sds_loss", "reward_loss", "weight"),
    [(1234.5, 3.2, 1000), (999.99, 12.0, 10), (0.5, 3.9, 1), (250.0, 100.5, 1), (1e-05, 2.0, 10_000)],
)
def test_the_published_weight_counts_digits(sds_loss: float, reward_loss: float, weight: float) -> None:
    assert digit_weight(sds_loss, reward_loss) == weight


def test_the_published_loss_weighs_the_hinge_and_ends_without_sds() -> None:
    sds_loss, reward_loss = torch.tensor(1234.5), torch.tensor(3.0)
    before = published_loss(sds_loss, reward_loss, 9800, PUBLISHED["guidance1"])
    after = published_loss(sds_loss, reward_loss, 9801, PUBLISHED["guidance1"])
    assert before.item() == pytest.approx(1234.5 + 0.6 * 1000 * 3.0)
    assert after.item() == pytest.approx(3e6)


def test_published_phases_are_exact_at_the_published_number_of_steps() -> None:
    one, two = PUBLISHED["guidance1"], PUBLISHED["guidance2"]
    assert one.counter(5999, 10_000) < one.first_reward <= one.counter(6000, 10_000)
    assert two.counter(1000, 10_400) < two.first_reward <= two.counter(1001, 10_400)
    assert two.counter(9800, 10_400) <= two.last_sds < two.counter(9801, 10_400)
    assert one.scores_x0(9800, 100)
    assert not one.scores_x0(9801, 100)
    assert not one.scores_x0(9800, 101)


def test_the_published_end_phase_follows_the_reward_alone() -> None:
    reward = TinyReward()
    method = make_method(DreamFlMethod(form="guidance1"), reward)
    loss, gradient = loss_and_gradient(method, step=99, steps_total=100)
    _, sds = loss_and_gradient(make_method(SdsMethod(), None), step=99, steps_total=100)
    elements = 2 / (PRIOR.latent_shape[0] * PRIOR.image_px**2)
    assert loss == pytest.approx(1e6 * elements * 4, rel=0.1)
    assert not torch.allclose(gradient, sds)


def test_lambda_never_leaves_sds() -> None:
    method = make_method(DreamFlMethod(reward_weight=0.0), TinyReward())
    sds = loss_and_gradient(make_method(SdsMethod(), None), step=49)
    assert torch.equal(loss_and_gradient(method, step=49)[1], sds[1])


@pytest.mark.parametrize("t", [0.05, 0.9])
def test_the_decoded_x0_is_scored_at_small_times_only(t: float) -> None:
    seen: list[Tensor] = []
    reward = TinyReward()
    reward.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    knobs = DreamFlMethod(form="guidance2", t_min=constant(t), t_max=constant(t), rescale=0.0)
    loss_and_gradient(make_method(knobs, reward), step=30, prior=ball_prior(spread=0.0))
    # x̂₀ is the mean, whose corners are background; the given pictures' corners are noise.
    shows_background = torch.allclose(seen[0][:, :, 0, 0].float(), torch.tensor(BACKGROUND_RGB).expand(4, 3))
    assert shows_background == (t < 0.3)


def test_the_paper_form_adds_the_gradient_at_the_decoded_x0_straight_to_the_render() -> None:
    reward = TinyReward()
    seen: list[Tensor] = []
    reward.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    prior = ball_prior(spread=0.0)
    constants = {"guidance_scale": constant(1.0), "rescale": 0.0}
    sds = loss_and_gradient(make_method(SdsMethod(**constants), None), prior=prior)
    knobs = DreamFlMethod(form="paper", reward_weight=0.7, **constants)
    paper = loss_and_gradient(make_method(knobs, reward), prior=prior)

    # The prior knows one picture, so x̂₀ is that picture.
    ball = prior.decode(disk_latents(RED, 0.5, PX).expand(1, 4, -1, -1, -1)).now()
    torch.testing.assert_close(seen[0].view_as(ball).float(), ball)
    scores = reward.score(ball, [""], torch.ones(1, dtype=torch.bool)).now()
    latents = pictures(PRIOR)
    render = prior.composite(flat_views(latents, prior))
    (gradient,) = torch.autograd.grad(render, latents, scores.gradient)
    torch.testing.assert_close(paper[1] - sds[1], -0.7 * gradient, atol=1e-7, rtol=1e-3)
    assert paper[0] == pytest.approx(sds[0] - 0.7 * scores.values.item())


def test_only_the_published_guidances_end_without_sds() -> None:
    """The gradient of a reward that likes everything alike is none: what remains is SDS, or nothing."""

    class Indifferent(TinyReward):
        def values(self, images: Tensor) -> Tensor:
            return 0.0 * images.mean((1, 2, 3, 4))[:, None]

    for form, ends_without in (("lambda", False), ("paper", False), ("guidance1", True), ("guidance2", True)):
        method = make_method(DreamFlMethod(form=form), Indifferent())
        _, gradient = loss_and_gradient(method, step=99, steps_total=100)
        assert (gradient.abs().sum() == 0) == ends_without
