"""The shipped prior: its file, its text encoder on pairs it never saw, its predictions and its pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import safetensors.torch
import torch

from workers.cameras import Cameras, orbit_cameras
from workers.diffusion import add_noise
from workers.embedded.captions import plain_caption, random_caption
from workers.embedded.train_prior import described
from workers.embedded.world import NAMES
from workers.evaluation.prompts import held_out_pairs
from workers.priors.embedded import EmbeddedPrior, load_embedded_prior, sample_views
from workers.weights import EMBEDDED_PRIOR

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def prior() -> EmbeddedPrior:
    torch.set_num_threads(1)
    return load_embedded_prior(EMBEDDED_PRIOR)


def around(count: int) -> Cameras:
    return orbit_cameras(torch.arange(4).repeat(count, 1) * 90.0 + 30, torch.tensor(15.0), 3.6, 40.0)


def test_the_file_is_small_and_its_checksum_and_training_record_lie_beside_it(prior: EmbeddedPrior) -> None:
    assert EMBEDDED_PRIOR.stat().st_size < 15e6
    assert prior.sha256 in EMBEDDED_PRIOR.with_suffix(".sha256").read_text()
    assert prior.sha256 in EMBEDDED_PRIOR.with_suffix(".json").read_text()


def test_the_empty_prompt_is_the_unconditional_embedding(prior: EmbeddedPrior) -> None:
    text = prior.encode_text(["", "a red cube", "\u200f"])
    assert not text[0].any()
    assert text[1].any()
    assert not text[2].any()


def test_unknown_words_are_named_in_order_and_once(prior: EmbeddedPrior) -> None:
    assert prior.unknown_words("A red gryphon, on a GRYPHON of ${oc.env:HOME}!") == ["gryphon", "oc", "env"]
    assert prior.unknown_words("a red cube on top of a blue cylinder") == []


def test_words_beyond_the_encoder_are_told(prior: EmbeddedPrior) -> None:
    assert not prior.is_truncated("a red cube")
    assert prior.is_truncated("red " * 29)


@pytest.mark.parametrize(
    ("prompt", "count"),
    [
        ("a red cube", 1),
        ("an ice cream cone beside a christmas tree", 2),
        ("a snowman with a red hat on top of a table", 2),
        ("a cube with a ball on top", 2),
        ("a red cube, a blue ball and a green cone", 3),
        ("gryphons", 0),
    ],
)
def test_things_are_counted_by_their_nouns(prior: EmbeddedPrior, prompt: str, count: int) -> None:
    assert prior.num_things(prompt) == count


def test_pairs_that_were_never_trained_on_are_read_rightly(prior: EmbeddedPrior) -> None:
    rng = np.random.default_rng(0)
    pairs = held_out_pairs(200)
    logits = prior.text_encoder(prior.word_ids([random_caption(pair, rng) for pair in pairs]))
    truth, boxes = described(pairs)
    right = (logits.name.argmax(-1) == truth["name"]) & (logits.color.argmax(-1) == truth["color"])
    right &= (logits.relation.argmax(-1) == truth["relation"])[:, None]
    assert right.all(1).float().mean() >= 0.97
    assert (logits.boxes - boxes).abs().mean() < 0.02
    assert (truth["name"] < len(NAMES)).all()


def test_both_forms_of_a_prediction_are_of_one_picture(prior: EmbeddedPrior) -> None:
    generator = torch.Generator().manual_seed(0)
    latents, noise = (torch.randn(2, 4, 4, 32, 32, generator=generator) * s for s in (0.3, 1.0))
    t = torch.tensor([300, 600])
    noisy = add_noise(latents, noise, t, prior.schedule)
    text = prior.encode_text(["a red cube", "a green torus"])
    noise_pred, x0 = prior.predict(noisy, t, text, around(2)).now()
    assert x0.abs().max() <= 1
    unclamped = x0.abs() < 1
    rebuilt = add_noise(x0, noise_pred, t, prior.schedule)
    assert (rebuilt - noisy)[unclamped].abs().max() < 1e-4


def test_a_row_does_not_depend_on_its_neighbors(prior: EmbeddedPrior) -> None:
    latents = torch.randn(3, 4, 4, 32, 32, generator=torch.Generator().manual_seed(1))
    t, text = torch.tensor([100, 500, 900]), prior.encode_text(["a red cube", "", "a chair"])
    together = prior.predict(latents, t, text, around(3)).now().x0
    for row in range(3):
        one = slice(row, row + 1)
        cameras = Cameras(*(value[one] for value in around(3)))
        alone = prior.predict(latents[one], t[one], text[one], cameras).now().x0
        assert torch.allclose(alone[0], together[row], atol=1e-4)


def test_it_draws_the_demo_prompt_red_above_blue_though_it_never_saw_that_pair(prior: EmbeddedPrior) -> None:
    text = prior.encode_text([plain_caption(held_out_pairs(1)[0])])
    x = sample_views(prior, text, around(1), torch.Generator().manual_seed(0), steps=12)
    pictures = (x[0, :, :3] + (x[0, :, 3:] + 1) / 2) / 2  # (V, 3, H, W), premultiplied
    rows = torch.arange(32.0)[None, :, None]
    red, blue = ((pictures[:, a] - pictures[:, b]).clamp(min=0) for a, b in ((0, 2), (2, 0)))
    assert (red * rows).sum() / red.sum() < (blue * rows).sum() / blue.sum() - 5
    assert red.sum() > 50
    assert blue.sum() > 50


def test_damaged_and_foreign_weights_are_refused_by_file_and_key(tmp_path: Path) -> None:
    torn = tmp_path / "torn.safetensors"
    torn.write_bytes(EMBEDDED_PRIOR.read_bytes()[:100_000])
    with pytest.raises(ValueError, match=r"torn\.safetensors cannot be read"):
        load_embedded_prior(torn)
    foreign = tmp_path / "foreign.safetensors"
    safetensors.torch.save_file({"x": torch.zeros(1)}, foreign)
    with pytest.raises(ValueError, match="no key 'embedded_prior'"):
        load_embedded_prior(foreign)
    with safetensors.safe_open(EMBEDDED_PRIOR, "pt") as file:
        metadata = file.metadata()
    tensors = safetensors.torch.load_file(EMBEDDED_PRIOR)
    del tensors["unet.last.weight"]
    lacking = tmp_path / "lacking.safetensors"
    safetensors.torch.save_file(tensors, lacking, metadata)
    with pytest.raises(ValueError, match=r"lacking\.safetensors .* 'unet\.last\.weight'"):
        load_embedded_prior(lacking)
    safetensors.torch.save_file(tensors | {"unet.last.weight": torch.zeros(2)}, lacking, metadata)
    with pytest.raises(ValueError, match=r"misshapen tensor 'unet\.last\.weight'"):
        load_embedded_prior(lacking)
