from __future__ import annotations

import math

import pytest
import torch

from service.jobs.spec import SdsMethod
from tests.unit.workers.small_scenes import BLUE, PX, RED, ball_prior, constant, flat_views, make_scene
from workers.cameras import CameraRig
from workers.diffusion import add_noise, alpha_sigma
from workers.engine import Engine
from workers.methods import make_method
from workers.priors.analytic import AnalyticPrior, disk_latents
from workers.priors.rgba import BACKGROUND_RGB, composite, latents_to_image
from workers.render import render


def test_its_noise_is_the_equations() -> None:
    prior = AnalyticPrior({"a thing": torch.full((4, 1, 1), 0.5)}, spread=0.3)
    t = torch.tensor([400])
    latents = torch.full((1, 4, 4, 1, 1), 0.9)
    alpha, sigma = (x.item() for x in alpha_sigma(prior.schedule, t, latents))
    cameras = CameraRig().draw(torch.Generator())
    prediction = prior.predict(latents, t, prior.encode_text(["a thing"]), cameras).now()
    noise = sigma * (0.9 - alpha * 0.5) / (alpha**2 * 0.09 + sigma**2)
    assert prediction.noise.flatten().tolist() == pytest.approx([noise] * 16)
    assert prediction.x0.flatten().tolist() == pytest.approx([(0.9 - sigma * noise) / alpha] * 16)


def test_no_other_prediction_has_a_smaller_error_on_its_data() -> None:
    spread, mean = 0.4, 0.25
    prior = AnalyticPrior({"": torch.full((4, 1, 1), mean), "x": torch.zeros(4, 1, 1)}, spread)
    generator = torch.Generator().manual_seed(0)
    data = mean + spread * torch.randn(5000, 1, 4, 1, 1, generator=generator)
    noise = torch.randn(data.shape, generator=generator)
    t = torch.full((5000,), 500)
    noisy = add_noise(data, noise, t, prior.schedule)
    cameras = CameraRig(num_views=1).draw(torch.Generator())
    guess = prior.predict(noisy, t, prior.encode_text([""]).expand(5000, 1, 2), cameras).now().noise
    error = (guess - noise).square().mean()
    assert all((factor * guess - noise).square().mean() > error for factor in (0.95, 1.05))
    assert all((guess + shift - noise).square().mean() > error for shift in (-0.05, 0.05))


def test_the_prompt_chooses_the_mean_and_nothing_asks_for_their_average() -> None:
    prior = ball_prior(spread=0.0)
    text = prior.encode_text(["red", "blue", "", "a green thing"])
    noisy = torch.zeros(4, 1, *prior.latent_shape)
    cameras = CameraRig(num_views=1).draw(torch.Generator())
    x0 = prior.predict(noisy, torch.full((4,), 500), text, cameras).now().x0[:, 0]
    red, blue = disk_latents(RED, 0.5, PX), disk_latents(BLUE, 0.5, PX)
    torch.testing.assert_close(x0, torch.stack([red, blue, (red + blue) / 2, (red + blue) / 2]))
    assert prior.unknown_words("a red green a") == ["a", "green"]


def test_encoding_and_decoding_give_the_render_before_the_background() -> None:
    prior = ball_prior()
    latents = disk_latents(RED, 0.5, PX).expand(1, 4, 4, PX, PX)
    views = flat_views(latents, prior)
    torch.testing.assert_close(prior.encode(views).now(), latents)
    torch.testing.assert_close(prior.decode(latents).now(), prior.composite(views))
    picture = latents_to_image(latents)[0, 0]
    torch.testing.assert_close(picture[:, 0, 0], torch.tensor(BACKGROUND_RGB))
    torch.testing.assert_close(picture[:, PX // 2, PX // 2], torch.tensor(RED))


def test_the_background_shows_through_by_what_is_not_covered() -> None:
    rgb, opacity = torch.full((3, 1, 1), 0.25), torch.full((1, 1, 1), 0.25)
    expected = [0.25 + 0.75 * channel for channel in BACKGROUND_RGB]
    assert composite(rgb, opacity).flatten().tolist() == pytest.approx(expected)


def test_latents_beyond_the_colors_decode_to_colors() -> None:
    picture = latents_to_image(torch.tensor([9.0, -9.0, 0.0, 5.0]).view(4, 1, 1))
    assert picture.flatten().tolist() == [1.0, 0.0, 0.5]


def test_a_disk_covers_its_share_of_the_picture() -> None:
    opacity = (disk_latents(RED, 0.5, 64)[3] + 1) / 2
    assert opacity.mean().item() == pytest.approx(math.pi / 16, rel=0.01)


def test_a_field_under_it_becomes_the_ball_that_the_prompt_names() -> None:
    prior = ball_prior()
    method = make_method(SdsMethod(guidance_scale=constant(1.0)), None)
    scene = make_scene(prior, method, prompt="blue", steps_total=150)
    engine = Engine()
    engine.admit(scene)
    while not scene.finished:
        assert engine.step()[0].error is None
    views = render(scene.field, scene.rig.draw(torch.Generator().manual_seed(3)), PX, 48)
    wanted = disk_latents(BLUE, 0.5, PX)
    got = prior.encode(views).now()[0]
    assert (got - wanted).abs().mean() < 0.08
