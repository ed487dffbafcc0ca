from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import torch

from service.jobs.spec import SdsMethod
from tests.unit.workers.priors.tiny_priors import (
    TOKENS,
    random_views,
    write_mvdream_folder,
    write_stable_diffusion,
)
from workers.cameras import CameraRig, orbit_cameras
from workers.contracts import Schedule
from workers.diffusion import add_noise
from workers.fields.voxel import VoxelField
from workers.methods import make_method
from workers.priors.stable_diffusion import (
    StableDiffusionPrior,
    load_stable_diffusion,
    noise_from_velocity,
    x0_from_velocity,
)
from workers.priors.view_prompts import DIRECTIONS
from workers.scene import Scene

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from workers.contracts import Prior


@pytest.fixture(scope="module")
def prior(tmp_path_factory: pytest.TempPathFactory) -> StableDiffusionPrior:
    folder = tmp_path_factory.mktemp("sd")
    write_stable_diffusion(folder)
    return load_stable_diffusion(folder, TOKENS)


def test_it_is_a_prior_of_one_view(prior: StableDiffusionPrior) -> None:
    checked: Prior = prior
    assert checked.views_per_call == 1
    assert checked.latent_shape == (4, 8, 8)
    assert checked.image_px == 16
    assert len(prior.sha256) == 64


def test_velocity_and_noise_explain_the_same_latents() -> None:
    schedule = Schedule(torch.tensor([0.64]))
    t, x0, noise = torch.tensor([0]), torch.tensor([[2.0]]), torch.tensor([[-1.0]])
    noisy, velocity = torch.tensor([[0.8 * 2 + 0.6 * -1]]), torch.tensor([[0.8 * -1 - 0.6 * 2]])
    torch.testing.assert_close(add_noise(x0, noise, t, schedule), noisy)
    torch.testing.assert_close(x0_from_velocity(noisy, velocity, t, schedule), x0)
    torch.testing.assert_close(noise_from_velocity(noisy, velocity, t, schedule), noise)


@pytest.mark.parametrize(
    ("azimuth_deg", "elevation_deg", "direction"),
    [(0, 15, "front"), (90, 15, "side"), (180, 15, "back"), (270, 15, "side"), (0, 70, "overhead")],
)
def test_each_view_is_denoised_under_the_words_for_its_direction(
    prior: StableDiffusionPrior, azimuth_deg: float, elevation_deg: float, direction: str
) -> None:
    cameras = orbit_cameras(torch.tensor([[azimuth_deg]]), torch.tensor(elevation_deg), 3.0, 40.0)
    latents, t = torch.randn(1, 1, 4, 8, 8), torch.tensor([500])
    told = prior.predict(latents, t, prior.encode_text(["a cat"]), cameras).now().noise
    said = prior.encode_negative_text([f"a cat, {direction} view"])
    torch.testing.assert_close(told, prior.predict(latents, t, said, cameras).now().noise)
    others = [d for d in DIRECTIONS if d != direction]
    for other in others:
        said = prior.encode_negative_text([f"a cat, {other} view"])
        assert not torch.allclose(told, prior.predict(latents, t, said, cameras).now().noise)


def test_neither_the_empty_nor_a_negative_prompt_names_a_direction(prior: StableDiffusionPrior) -> None:
    for text in (prior.encode_text([""]), prior.encode_negative_text(["blurry"])):
        by_direction = text.unflatten(1, (4, 77))
        assert text.shape == (1, 308, 32)
        assert all(torch.equal(by_direction[:, 0], by_direction[:, d]) for d in range(4))


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_both_forms_of_a_prediction_explain_the_noisy_latents(tmp_path: Path, prediction_type: str) -> None:
    unet = write_stable_diffusion(tmp_path, prediction_type)
    prior = load_stable_diffusion(tmp_path, TOKENS)
    latents, t = torch.randn(3, 1, 4, 8, 8), torch.tensor([5, 500, 990])
    text = prior.encode_negative_text(["a cat"] * 3)
    answer = prior.predict(latents, t, text, random_views(3, 1).cameras).now()
    torch.testing.assert_close(
        add_noise(answer.x0, answer.noise, t, prior.schedule), latents, atol=1e-4, rtol=1e-4
    )
    raw: Tensor = unet(latents[:, 0], t, text[:, :77], return_dict=False)[0]
    alpha = prior.schedule.alphas_cumprod[t].sqrt().view(3, 1, 1, 1)
    sigma = (1 - alpha**2).sqrt()
    expected = raw if prediction_type == "epsilon" else sigma * latents[:, 0] + alpha * raw
    torch.testing.assert_close(answer.noise[:, 0], expected, atol=1e-4, rtol=1e-4)


def test_the_gradient_reaches_a_text_that_requires_it(prior: StableDiffusionPrior) -> None:
    text = prior.encode_text(["a cat"]).requires_grad_()
    front = orbit_cameras(torch.zeros(1, 1), torch.tensor(0.0), 3.0, 40.0)
    answer = prior.predict(torch.randn(1, 1, 4, 8, 8), torch.tensor([500]), text, front).now()
    (gradient,) = torch.autograd.grad(answer.noise.square().sum(), text)
    per_direction = gradient.unflatten(1, (4, 77)).abs().sum((0, 2, 3))
    assert [bool(total > 0) for total in per_direction] == [d == "front" for d in DIRECTIONS]


def test_a_folder_of_another_model_is_refused(tmp_path: Path) -> None:
    write_mvdream_folder(tmp_path)
    with pytest.raises(ValueError, match="describes a MultiViewUNetModel, expected Stable Diffusion's"):
        load_stable_diffusion(tmp_path, TOKENS)


@pytest.mark.parametrize(
    ("setting", "value"), [("prediction_type", "sample"), ("beta_schedule", "squaredcos_cap_v2")]
)
def test_another_diffusion_is_refused_by_its_setting(tmp_path: Path, setting: str, value: str) -> None:
    write_stable_diffusion(tmp_path)
    file = tmp_path / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), setting: value}))
    with pytest.raises(ValueError, match=f"{setting} is '{value}'"):
        load_stable_diffusion(tmp_path, TOKENS)


def test_missing_weights_are_named_with_the_candidates(tmp_path: Path) -> None:
    write_stable_diffusion(tmp_path)
    (tmp_path / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ValueError, match="no weights in 'vae'; expected one of diffusion_pytorch_model"):
        load_stable_diffusion(tmp_path, TOKENS)


def test_a_scene_avoids_its_negative_prompt_from_everywhere(prior: StableDiffusionPrior) -> None:
    scene = Scene(
        prompt="a cat",
        negative_prompt="blurry",
        prior=prior,
        method=make_method(SdsMethod(), None),
        field=VoxelField(coarse=4, fine=6),
        rig=CameraRig(num_views=1),
        seed=0,
        steps_total=1,
    )
    assert torch.equal(scene.text[:1], prior.encode_text(["a cat"]))
    assert torch.equal(scene.text[1:], prior.encode_negative_text(["blurry"]))
    assert not torch.equal(scene.text[1:], prior.encode_text(["blurry"]))
