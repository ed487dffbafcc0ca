from __future__ import annotations

import copy
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import torch

from tests.unit.workers.priors.tiny_priors import random_views, tiny_mvdream
from workers.cameras import Cameras, orbit_cameras
from workers.diffusion import add_noise
from workers.priors.mvdream import MVDreamPrior, sample_views

if TYPE_CHECKING:
    from workers.contracts import Prior


@pytest.fixture(scope="module")
def prior() -> MVDreamPrior:
    return tiny_mvdream()


def test_it_is_a_prior(prior: MVDreamPrior) -> None:
    checked: Prior = prior
    assert checked.views_per_call == 4
    assert checked.latent_shape == (4, 8, 8)
    assert checked.image_px == 16
    assert checked.latent_range is None
    assert checked.schedule.num_timesteps == 1000


def test_text_has_the_same_shape_for_every_prompt_and_what_is_too_long_is_cut(prior: MVDreamPrior) -> None:
    text = prior.encode_text(["", "a cat", "x" * 200])
    assert text.shape == (3, 77, 32)
    assert torch.equal(prior.encode_text(["x " * 75]), prior.encode_text(["x " * 200]))
    assert not torch.equal(text[0], text[1])
    assert prior.is_truncated("x" * 76)
    assert not prior.is_truncated("x" * 74)
    assert prior.is_truncated("ab " * 38)
    assert not prior.is_truncated("ab " * 37)
    assert not prior.is_truncated("")
    assert prior.unknown_words("zyzzyva") == []


def test_noise_and_x0_of_a_prediction_explain_the_noisy_latents(prior: MVDreamPrior) -> None:
    latents, t = torch.randn(2, 4, 4, 8, 8), torch.tensor([20, 700])
    cameras = random_views(2, 4).cameras
    answer = prior.predict(latents, t, prior.encode_text(["a cat", "a dog"]), cameras).now()
    again = add_noise(answer.x0, answer.noise, t, prior.schedule)
    torch.testing.assert_close(again, latents, atol=1e-4, rtol=1e-4)
    assert not answer.noise.requires_grad


def test_groups_of_a_batch_do_not_see_each_other(prior: MVDreamPrior) -> None:
    latents, t = torch.randn(2, 4, 4, 8, 8), torch.tensor([20, 700])
    cameras, text = random_views(2, 4).cameras, prior.encode_text(["a cat", "a dog"])
    both = prior.predict(latents, t, text, cameras).now()
    for g in (0, 1):
        only = slice(g, g + 1)
        alone = prior.predict(latents[only], t[only], text[only], Cameras(*(x[only] for x in cameras))).now()
        torch.testing.assert_close(both.noise[only], alone.noise, atol=1e-5, rtol=1e-4)


def test_a_prediction_depends_on_the_cameras_pose_but_not_on_distance_or_field_of_view(
    prior: MVDreamPrior,
) -> None:
    latents, t, text = torch.randn(1, 4, 4, 8, 8), torch.tensor([500]), prior.encode_text(["a cat"])
    azimuths, elevation = torch.arange(4)[None] * 90.0, torch.tensor(15.0)
    near = orbit_cameras(azimuths, elevation, 1.5, 40.0)
    far = orbit_cameras(azimuths, elevation, 3.0, 20.0)
    turned = orbit_cameras(azimuths + 30, elevation, 1.5, 40.0)
    noise = [prior.predict(latents, t, text, cameras).now().noise for cameras in (near, far, turned)]
    torch.testing.assert_close(noise[0], noise[1], atol=1e-5, rtol=1e-5)
    assert (noise[0] - noise[2]).abs().max() > 1e-3


def test_the_gradient_reaches_a_text_that_requires_it(prior: MVDreamPrior) -> None:
    text = prior.encode_text(["a cat"]).requires_grad_()
    answer = prior.predict(
        torch.randn(1, 4, 4, 8, 8), torch.tensor([500]), text, random_views(1, 4).cameras
    ).now()
    (gradient,) = torch.autograd.grad(answer.noise.square().sum(), text)
    assert gradient.isfinite().all()
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize("px", [16, 10])
def test_renders_of_any_size_are_encoded_and_the_gradient_reaches_them(prior: MVDreamPrior, px: int) -> None:
    views = random_views(1, 4, px)
    rgb = views.rgb.requires_grad_()
    latents = prior.encode(views._replace(rgb=rgb)).now()
    assert latents.shape == (1, 4, 4, 8, 8)
    (gradient,) = torch.autograd.grad(latents.square().sum(), rgb)
    assert gradient.abs().amin((0, 1, 2)).max() > 0


def test_pictures_are_in_range_and_what_is_transparent_is_gray(prior: MVDreamPrior) -> None:
    pictures = prior.decode(3 * torch.randn(1, 4, 4, 8, 8)).now()
    assert pictures.shape == (1, 4, 3, 16, 16)
    assert 0 <= pictures.min() <= pictures.max() <= 1
    views = random_views(1, 4)
    nothing = views._replace(rgb=torch.zeros_like(views.rgb), opacity=torch.zeros_like(views.opacity))
    assert torch.equal(prior.composite(nothing), torch.full_like(views.rgb, 0.5))


def test_sampled_views_depend_on_the_seed_and_the_prompt_alone(prior: MVDreamPrior) -> None:
    cameras = random_views(1, 4).cameras

    def sample(prompt: str, seed: int) -> torch.Tensor:
        return sample_views(prior, prompt, cameras, torch.Generator().manual_seed(seed), steps=3)

    assert sample("a cat", 0).shape == (1, 4, 4, 8, 8)
    assert torch.equal(sample("a cat", 0), sample("a cat", 0))
    assert not torch.equal(sample("a cat", 0), sample("a cat", 1))
    assert not torch.equal(sample("a cat", 0), sample("a dog", 0))


def test_half_precision_agrees_with_float32(prior: MVDreamPrior) -> None:
    half = copy.deepcopy(prior).to(torch.bfloat16)
    latents, t = torch.randn(1, 4, 4, 8, 8), torch.tensor([500])
    cameras, text = random_views(1, 4).cameras, prior.encode_text(["a cat"])
    exact, rough = (p.predict(latents, t, text, cameras).now().noise for p in (prior, half))
    assert rough.dtype == torch.float32
    assert (exact - rough).abs().max() < 0.05 * exact.abs().max()


def test_whoever_uses_the_embedded_prior_imports_neither_diffusers_nor_transformers() -> None:
    code = (
        "import workers.networks, workers.priors.embedded, workers.engine, sys; "
        "print([name for name in ('diffusers', 'transformers') if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
