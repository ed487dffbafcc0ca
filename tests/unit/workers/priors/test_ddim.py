from __future__ import annotations

import pytest
import torch

from workers.contracts import Schedule
from workers.diffusion import alpha_sigma, linear_schedule
from workers.priors.ddim import ddim_sample, ddim_tables


def test_times_start_at_1_and_the_first_step_ends_at_the_first_alpha() -> None:
    tables = ddim_tables(linear_schedule(), 50)
    alphas = linear_schedule().alphas_cumprod.double()
    assert tables.times.tolist() == list(range(1, 1000, 20))
    assert tables.alphas_before[0] == alphas[0]
    assert torch.equal(tables.alphas_before[1:], tables.alphas[:-1])
    assert tables.sigmas.eq(0).all()


def test_a_number_of_steps_that_does_not_divide_gives_a_few_more_within_the_schedule() -> None:
    assert len(ddim_tables(linear_schedule(), 30).times) == 31
    assert ddim_tables(linear_schedule(), 3).times.tolist() == [1, 334, 667]
    assert ddim_tables(linear_schedule(), 1000).times.tolist() == list(range(1, 1000))


def test_sigma_by_hand() -> None:
    schedule = Schedule(torch.tensor([0.9, 0.8, 0.5, 0.2]))
    tables = ddim_tables(schedule, 2, eta=1.0)
    assert tables.times.tolist() == [1, 3]
    expected = [(0.1 / 0.2 * (1 - 0.8 / 0.9)) ** 0.5, (0.2 / 0.8 * (1 - 0.2 / 0.8)) ** 0.5]
    torch.testing.assert_close(tables.sigmas, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("steps", [0, 1001])
def test_impossible_numbers_of_steps_are_refused(steps: int) -> None:
    with pytest.raises(ValueError, match=f"not {steps}"):
        ddim_tables(linear_schedule(), steps)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_sampling_with_the_exact_denoiser_of_a_gaussian_gives_that_gaussian(eta: float) -> None:
    mean, spread, schedule = 2.0, 0.5, linear_schedule()

    def denoise(x: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        alpha, sigma = alpha_sigma(schedule, t, x)
        noise = sigma * (x - alpha * mean) / (alpha**2 * spread**2 + sigma**2)
        return noise, torch.zeros_like(noise)

    generator = torch.Generator().manual_seed(0)
    last = ddim_tables(schedule, 200).alphas[-1]
    start = last.sqrt() * mean + (last * spread**2 + 1 - last).sqrt() * torch.randn(
        20_000, 1, generator=generator, dtype=torch.float64
    )
    sample = ddim_sample(
        denoise, start.float(), schedule, steps=200, guidance_scale=1.0, eta=eta, generator=generator
    )
    assert sample.mean() == pytest.approx(mean, abs=0.03)
    assert sample.std() == pytest.approx(spread, abs=0.02)
