from __future__ import annotations

import math

import pytest
import torch

from workers.contracts import Schedule
from workers.diffusion import (
    add_noise,
    clamp_latents,
    cosine_schedule,
    draw_noise,
    draw_time,
    guide,
    linear_schedule,
    noise_from_x0,
    rescale_x0,
    x0_from_noise,
)

SCHEDULE = Schedule(torch.tensor([0.96, 0.64, 0.36]))
"""α, σ of the middle time are .8 and .6, of the last .6 and .8."""
T1 = torch.tensor([1])


def row(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64).view(1, 1, 1, 1, -1)


def test_noise_is_added_by_alpha_and_sigma() -> None:
    torch.testing.assert_close(add_noise(row(10, -5), row(1, 2), T1, SCHEDULE), row(8.6, -2.8))


def test_each_row_has_its_own_time() -> None:
    latents = torch.ones(2, 1, 1, 1, 1, dtype=torch.float64)
    noisy = add_noise(latents, torch.zeros_like(latents), torch.tensor([1, 2]), SCHEDULE)
    torch.testing.assert_close(noisy.flatten(), torch.tensor([0.8, 0.6], dtype=torch.float64))


def test_x0_and_noise_are_recovered_from_each_other() -> None:
    torch.testing.assert_close(x0_from_noise(row(8.6, -2.8), row(1, 2), T1, SCHEDULE), row(10, -5))
    torch.testing.assert_close(noise_from_x0(row(8.6, -2.8), row(10, -5), T1, SCHEDULE), row(1, 2))


def test_guidance_extrapolates_and_is_exact_at_its_ends() -> None:
    conditional, unconditional = row(3, 1), row(1, 2)
    torch.testing.assert_close(guide(conditional, unconditional, 5.0), row(11, -3))
    assert torch.equal(guide(conditional, unconditional, 1.0), conditional)
    assert torch.equal(guide(conditional, unconditional, 0.0), unconditional)


def test_guiding_the_noise_and_guiding_x0_agree() -> None:
    noisy, conditional, unconditional = row(1, 2), row(0.5, -1), row(0.25, 3)
    by_noise = x0_from_noise(noisy, guide(conditional, unconditional, 7.5), T1, SCHEDULE)
    x0_c, x0_u = (x0_from_noise(noisy, noise, T1, SCHEDULE) for noise in (conditional, unconditional))
    torch.testing.assert_close(by_noise, guide(x0_c, x0_u, 7.5))


def test_rescaling_mixes_in_the_spread_of_the_conditional_prediction() -> None:
    # Unbiased deviations: 4·√2/√2 = ... (−4, 4) has √32, (−1, 1) has √2, so f = ¼ and ½·¼ + ½ = .625.
    torch.testing.assert_close(rescale_x0(row(-4, 4), row(-1, 1), 0.5), row(-2.5, 2.5))
    assert torch.equal(rescale_x0(row(-4, 4), row(-1, 1), 0.0), row(-4, 4))
    torch.testing.assert_close(rescale_x0(row(-4, 4), row(-1, 1), 1.0), row(-1, 1))


def test_rescaling_treats_groups_apart_and_their_views_together() -> None:
    guided = torch.tensor([[[-4.0], [4.0]], [[-2.0], [2.0]]]).view(2, 2, 1, 1, 1)
    conditional = torch.tensor([[[-1.0], [1.0]], [[-2.0], [2.0]]]).view(2, 2, 1, 1, 1)
    torch.testing.assert_close(rescale_x0(guided, conditional, 1.0), conditional)


def test_clamping_needs_a_range() -> None:
    assert torch.equal(clamp_latents(row(-3, 0.5), (-1.0, 1.0)), row(-1, 0.5))
    assert torch.equal(clamp_latents(row(-3, 0.5), None), row(-3, 0.5))


def test_times_fill_their_window_with_both_ends() -> None:
    generator = torch.Generator().manual_seed(0)
    schedule = cosine_schedule(1000)
    times = draw_time(schedule, 0.02, 0.025, generator, 500)
    assert set(times.tolist()) == set(range(20, 26))
    assert draw_time(schedule, 1.0, 1.0, generator).tolist() == [999]


def test_a_crossed_window_is_refused() -> None:
    with pytest.raises(AssertionError, match="t_min <= t_max"):
        draw_time(cosine_schedule(), 0.5, 0.4, torch.Generator())


def test_noise_comes_from_the_generator_alone() -> None:
    like = torch.zeros(2, 3, dtype=torch.float64)
    one, same = (draw_noise(like, torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(one, same)
    assert one.dtype == torch.float64


def test_schedules_have_their_published_ends() -> None:
    linear, cosine = linear_schedule().alphas_cumprod, cosine_schedule().alphas_cumprod
    assert linear[0].item() == pytest.approx(1 - 0.00085, abs=1e-7)
    assert linear[-1].item() == pytest.approx(0.0046602, rel=1e-3)
    assert cosine[499:501].mean().item() == pytest.approx(0.5, abs=1e-6)
    assert cosine[0].item() == pytest.approx(math.cos(math.pi / 4000) ** 2)
    for alphas_cumprod in (linear, cosine):
        assert (alphas_cumprod.diff() < 0).all()
