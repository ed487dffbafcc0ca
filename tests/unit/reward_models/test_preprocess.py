"""Pictures reach a network as they did in its training."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from reward_models.preprocess import CLIP_MEAN, CLIP_STD, picture_tensor, prepare_images, prepare_picture


def noise_picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).convert(mode)


@pytest.mark.parametrize(("width", "height"), [(40, 60), (60, 40), (16, 16), (9, 12), (33, 16)])
def test_both_paths_give_a_centered_square(width: int, height: int) -> None:
    picture = noise_picture(width, height)
    assert prepare_picture(picture, 16).shape == (3, 16, 16)
    assert prepare_images(picture_tensor(picture)[None], 16).shape == (1, 3, 16, 16)


def test_a_plain_color_is_only_normalized() -> None:
    color = torch.tensor([0.2, 0.4, 0.6])
    prepared = prepare_images(color[None, :, None, None].expand(1, 3, 30, 20), 16)[0]
    expected = (color - torch.tensor(CLIP_MEAN)) / torch.tensor(CLIP_STD)
    torch.testing.assert_close(prepared, expected[:, None, None].expand(3, 16, 16))


def test_the_tensor_path_is_differentiable() -> None:
    images = torch.rand(1, 3, 10, 12, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: prepare_images(x, 8), images)


def test_the_three_ways_to_shrink_differ_as_the_published_codes_do() -> None:
    picture = noise_picture(64, 64)
    image = picture_tensor(picture)[None]
    smooth, rough = prepare_images(image, 32)[0], prepare_images(image, 32, antialias=False)[0]
    assert (prepare_picture(picture, 32) - smooth).abs().max() < 0.1  # 8-bit rounding
    assert (smooth - rough).abs().max() > 0.5


def test_a_transparent_picture_is_put_on_white() -> None:
    clear = Image.new("RGBA", (20, 20), (255, 0, 0, 0))
    white = Image.new("RGB", (20, 20), (255, 255, 255))
    assert torch.equal(prepare_picture(clear, 16), prepare_picture(white, 16))
    assert torch.equal(picture_tensor(clear), torch.ones(3, 20, 20))


def test_a_gray_picture_is_read_as_color() -> None:
    assert prepare_picture(noise_picture(20, 20, "L"), 16).shape == (3, 16, 16)
