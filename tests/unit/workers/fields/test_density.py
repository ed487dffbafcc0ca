from __future__ import annotations

import math
from typing import get_args

import pytest
import torch

from workers.fields.density import Activation, Blob, activate, blob_bias

POINTS = torch.tensor([[0.0, 0.0, 0.0], [0.3, 0.0, 0.4], [0.0, 1.0, 0.0]])


def test_blobs_are_a_cone_a_bell_or_the_same_everywhere() -> None:
    assert blob_bias(POINTS, Blob()).tolist() == pytest.approx([10.0, 0.0, -10.0], abs=1e-5)
    bell = blob_bias(POINTS, Blob("dreamfusion", 5.0, 0.25))
    assert bell.tolist() == pytest.approx([5.0, 5 * math.exp(-2), 5 * math.exp(-8)])
    assert blob_bias(POINTS, Blob("constant", -1.5)).tolist() == [-1.5] * 3


@pytest.mark.parametrize("activation", get_args(Activation))
def test_activations_are_differentiable_twice(activation: Activation) -> None:
    raw = torch.tensor([-1.3, 0.4, 2.2], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: activate(x, activation), (raw,))
    assert torch.autograd.gradgradcheck(lambda x: activate(x, activation), (raw,))


def test_activations_have_the_values_of_their_names() -> None:
    raw = torch.tensor([2.0])
    values = {name: activate(raw, name).item() for name in get_args(Activation)}
    assert values == pytest.approx(
        {
            "softplus": math.log1p(math.e**2),
            "shifted_softplus": math.log1p(math.e),
            "exp": math.e**2,
            "trunc_exp": math.e**2,
            "shifted_trunc_exp": math.e,
            "relu": 2.0,
            "none": 2.0,
        }
    )


def test_the_gradient_of_the_truncated_exponential_stops_growing() -> None:
    raw = torch.tensor([20.0], requires_grad=True)
    density = activate(raw, "trunc_exp")
    density.backward()
    assert density.item() == pytest.approx(math.exp(20))
    assert raw.grad is not None
    assert raw.grad.item() == pytest.approx(math.exp(15))
