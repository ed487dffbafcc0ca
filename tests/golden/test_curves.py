"""Every method's first 50 losses on the shipped networks are those on record."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.golden.curves import METHODS, RECORD, STEPS, curve_of, local_networks, weights_of

if TYPE_CHECKING:
    from workers.networks import Networks

STEP_TOLERANCE, MEAN_TOLERANCE = 0.05, 0.01
"""Relative. Other processors sum in another order, and 50 steps carry that on; an error of a formula moves the mean."""


@pytest.fixture(scope="module")
def networks() -> Networks:
    return local_networks()


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_a_methods_losses_are_those_on_record(name: str, networks: Networks) -> None:
    record = json.loads(RECORD.read_text())
    assert record["weights"] == weights_of(networks), "other weights: run `python -m tests.golden.curves`"
    expected = np.array(record["curves"][name])
    found = np.array(curve_of(METHODS[name], networks))
    assert expected.shape == found.shape == (STEPS,)
    difference = (found - expected) / expected
    assert np.abs(difference).max() < STEP_TOLERANCE
    assert abs(difference.mean()) < MEAN_TOLERANCE
