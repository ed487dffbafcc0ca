from __future__ import annotations

import pytest
import torch

from service.jobs.spec import Ramp, SdsMethod
from tests.unit.workers.small_scenes import (
    PX,
    RED,
    answer_at_once,
    ball_prior,
    constant,
    flat_views,
    make_scene,
)
from workers.contracts import Method, Schedule
from workers.diffusion import add_noise, x0_from_noise
from workers.methods import make_method
from workers.methods.sds import (
    Sample,
    distillation_loss,
    draw_times,
    per_element,
    reconstruction_loss,
    sds,
)
from workers.priors.analytic import AnalyticPrior, disk_latents

CONDITIONAL = SdsMethod(guidance_scale=constant(1.0))


def test_the_loss_and_its_gradient_are_those_of_the_equation() -> None:
    latents = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64).view(1, 2, 2, 1, 1).requires_grad_()
    x0 = torch.tensor([0.0, 4.0, 3.0, 1.0], dtype=torch.float64).view(1, 2, 2, 1, 1).requires_grad_()
    loss = reconstruction_loss(latents, x0)
    assert loss.item() == 0.5 * (1 + 4 + 0 + 9) / 2
    loss.backward()
    assert latents.grad is not None
    assert latents.grad.flatten().tolist() == [0.5, -1.0, 0.0, 1.5]
    assert x0.grad is None
    assert per_element(loss, latents).item() == ((latents - x0).square().mean()).item()


def test_the_gradient_is_that_of_score_distillation_with_weight_sigma_over_alpha() -> None:
    schedule, t = Schedule(torch.tensor([0.64])), torch.tensor([0])
    generator = torch.Generator().manual_seed(0)
    latents, noise, noise_pred = torch.randn(3, 1, 2, 4, 3, 3, generator=generator, dtype=torch.float64)
    latents.requires_grad_()
    noisy = add_noise(latents.detach(), noise, t, schedule)
    reconstruction_loss(latents, x0_from_noise(noisy, noise_pred, t, schedule)).backward()
    torch.testing.assert_close(latents.grad, (0.6 / 0.8) * (noise_pred - noise) / 2)


def test_gradients_reach_the_views_as_finite_differences_say() -> None:
    prior = ball_prior()
    generator = torch.Generator().manual_seed(0)
    latents, x0 = torch.randn(2, 1, 1, 4, 3, 3, generator=generator, dtype=torch.float64)
    views = flat_views(latents, prior)

    def loss(rgb: torch.Tensor, opacity: torch.Tensor) -> torch.Tensor:
        return reconstruction_loss(prior.encode(views._replace(rgb=rgb, opacity=opacity)).now(), x0)

    assert torch.autograd.gradcheck(loss, (views.rgb.requires_grad_(), views.opacity.requires_grad_()))


@pytest.mark.parametrize("spread", [0.0, 0.3], ids=["one picture", "a Gaussian"])
def test_it_converges_to_the_mean_of_gaussian_data(spread: float) -> None:
    """E[z − x̂₀] is (z − μ) times a positive number, whatever t: descent finds μ, here without any field."""
    prior = ball_prior(spread)
    mean = disk_latents(RED, 0.5, PX)
    latents = torch.zeros(1, 4, *mean.shape, requires_grad=True)
    scene = make_scene(prior, make_method(CONDITIONAL, None), steps_total=400)
    optimizer = torch.optim.SGD([latents])
    while not scene.finished:
        optimizer.param_groups[0]["lr"] = 0.5 * latents.numel() / (1 + scene.step)
        optimizer.zero_grad()
        answer_at_once(sds(scene, flat_views(latents, prior), prior, CONDITIONAL)).backward()
        optimizer.step()
        scene.step += 1
    assert (latents - mean).abs().mean() < 0.01 + 0.1 * spread


def loss_of(prior: AnalyticPrior, method: Method, latents: torch.Tensor) -> float:
    scene = make_scene(prior, method)
    return answer_at_once(method(scene, flat_views(latents, prior), prior)).item()


def test_guidance_one_is_the_conditional_prediction() -> None:
    means = {name: torch.full((4, 2, 2), value) for name, value in (("red", 0.5), ("blue", -0.5))}
    latents = torch.randn(1, 4, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    losses = []
    for unconditional in (-9.0, 0.0, 9.0):
        prior = AnalyticPrior({**means, "": torch.full((4, 2, 2), unconditional)})
        losses.append(loss_of(prior, make_method(CONDITIONAL, None), latents))
    assert losses[0] == losses[1] == losses[2]
    guided = loss_of(prior, make_method(SdsMethod(guidance_scale=constant(2.0)), None), latents)
    assert guided != pytest.approx(losses[0])


def test_the_target_is_clamped_to_the_range_of_the_latents() -> None:
    class Bounded(AnalyticPrior):
        latent_range = (-1.0, 1.0)

    prior = Bounded({"red": torch.full((4, 2, 2), 3.0)}, spread=0.0)
    assert loss_of(prior, make_method(CONDITIONAL, None), torch.ones(1, 4, 4, 2, 2)) == pytest.approx(0)


def test_a_method_without_its_reward_is_refused() -> None:
    from service.jobs.spec import DreamFlMethod, PsdMethod

    with pytest.raises(ValueError, match="'dreamfl' needs a reward"):
        make_method(DreamFlMethod(), None)
    with pytest.raises(ValueError, match="'psd' needs a reward"):
        make_method(PsdMethod(), None)


def test_the_classic_gradient_is_w_times_the_guided_residual() -> None:
    prior, noisy = ball_prior(), torch.Generator().manual_seed(0)
    latents = (0.3 * torch.randn(1, 4, *prior.latent_shape, generator=noisy)).requires_grad_()
    noise = torch.randn(1, 4, *prior.latent_shape, generator=noisy)
    t = torch.tensor([600])
    views = flat_views(latents, prior)
    text = prior.encode_text(["red", ""])
    x_t = add_noise(latents.detach(), noise, t, prior.schedule)
    conditional, negative = (prior.predict(x_t, t, one[None], views.cameras).now().noise for one in text)
    for weighting, weight in (("variance", 1 - prior.schedule.alphas_cumprod[600]), ("uniform", 1.0)):
        knobs = SdsMethod(form="classic", weighting=weighting, guidance_scale=constant(3.0))
        scene = make_scene(prior, make_method(knobs, None))
        sample = Sample(latents, views.cameras, t, noise)
        loss = answer_at_once(distillation_loss(scene, sample, prior, knobs))
        (gradient,) = torch.autograd.grad(loss, latents)
        guided = negative + 3.0 * (conditional - negative)
        torch.testing.assert_close(gradient, weight * (guided - noise) / 4, atol=1e-5, rtol=1e-4)


def test_the_reconstruction_is_the_classic_form_with_weight_sigma_over_alpha() -> None:
    prior, generator = ball_prior(), torch.Generator().manual_seed(0)
    latents = (0.3 * torch.randn(1, 4, *prior.latent_shape, generator=generator)).requires_grad_()
    noise = torch.randn(1, 4, *prior.latent_shape, generator=generator)
    sample = Sample(latents, flat_views(latents, prior).cameras, torch.tensor([300]), noise)
    gradients = []
    for form in ("reconstruction", "classic"):
        knobs = SdsMethod(form=form, weighting="uniform", rescale=0.0)
        loss = answer_at_once(
            distillation_loss(make_scene(prior, make_method(knobs, None)), sample, prior, knobs)
        )
        gradients += torch.autograd.grad(loss, latents)
    alphas_cumprod = prior.schedule.alphas_cumprod[300]
    ratio = ((1 - alphas_cumprod) / alphas_cumprod).sqrt()
    torch.testing.assert_close(gradients[0], ratio * gradients[1], atol=1e-5, rtol=1e-4)


def test_times_follow_their_window_as_the_steps_go_by() -> None:
    knobs = SdsMethod(t_min=Ramp(start=0.9, end=0.1, until=0.8), t_max=Ramp(start=0.9, end=0.2, until=0.8))
    scene = make_scene(ball_prior(), make_method(knobs, None), steps_total=10)
    drawn = []
    for scene.step in range(10):
        drawn.append(draw_times(scene, scene.prior, knobs, 50))
    assert set(drawn[0].tolist()) == {900}
    assert 500 <= drawn[4].min() <= drawn[4].max() <= 550
    assert 100 <= drawn[9].min() <= drawn[9].max() <= 200
