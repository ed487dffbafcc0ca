"""How an actor gets its reward ready, and what travels to it; the actor itself is tested on Ray in tests/cluster."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from reward_models.actor import RewardOptions, load_ready, pack
from reward_models.contracts import RewardCard, score_and_gradient


class Brightness(torch.nn.Module):
    """The mean of all pixels, as often as it was asked, times a weight."""

    def __init__(self, weight: float = 1.0, views: int | None = None) -> None:
        super().__init__()
        self.weight = weight
        self.asked: list[tuple[int, ...]] = []
        self.card = RewardCard(
            name="brightness",
            value_range=None,
            scale="mean",
            views=views,
            uses_prompt=False,
            differentiable=True,
            license="Apache-2.0",
            weights_sha256=None,
        )

    def score_batch(self, images, prompts, wants_gradient):
        self.asked.append(tuple(images.shape))

        def score(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
            return self.weight * images.mean((-3, -2, -1))

        return score_and_gradient(score, images, prompts, wants_gradient)


@pytest.mark.parametrize(("views", "asked"), [(None, 4), (6, 6)])
def test_a_reward_is_ready_when_it_has_answered_one_batch_of_its_size(views: int | None, asked: int) -> None:
    model, device = load_ready(lambda: Brightness(views=views), RewardOptions())
    assert device == "cpu"
    assert model.asked == [(1, asked, 3, 256, 256)]


def test_a_reward_that_answers_no_number_is_never_ready() -> None:
    with pytest.raises(ValueError, match=r"'brightness' scores a gray picture with.*expected finite"):
        load_ready(lambda: Brightness(weight=float("nan")), RewardOptions())


@pytest.mark.parametrize(
    ("dtype", "travels_as"),
    [
        (torch.float64, np.float64),
        (torch.float32, np.float32),
        (torch.float16, np.float16),
        (torch.bfloat16, np.float32),
    ],
)
def test_images_travel_without_losing_a_digit(dtype: torch.dtype, travels_as: type) -> None:
    images = torch.rand(1, 2, 3, 4, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    array = pack(images.requires_grad_())
    assert array.dtype == travels_as
    assert torch.equal(torch.from_numpy(array).to(dtype), images.detach())
