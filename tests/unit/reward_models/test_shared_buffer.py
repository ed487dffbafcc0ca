"""Memory that another process opens by what it is told; Ray carries the words in tests/cluster."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys

import numpy as np
import pytest

from reward_models.shared_buffer import CAN_SHARE, Elsewhere, SharedBuffer

pytestmark = pytest.mark.skipif(
    not CAN_SHARE, reason="this system has no memory without a name: pictures are sent"
)

DOUBLE = """
import pickle, sys
place = pickle.loads(sys.stdin.buffer.read())
images, gradient = place.arrays(place.open())
gradient[:] = 2.0 * images
"""


@pytest.mark.parametrize(
    ("dtype", "answered"), [("float16", "float32"), ("float32", "float32"), ("float64", "float64")]
)
def test_another_process_reads_the_images_and_leaves_their_gradient_in_their_place(
    dtype: str, answered: str
) -> None:
    buffer = SharedBuffer()
    place = buffer.room((2, 1, 3, 4, 4), dtype)
    images, gradient = place.arrays(buffer.memory)
    images[:] = given = np.random.default_rng(0).random(images.shape).astype(dtype)
    subprocess.run([sys.executable, "-c", DOUBLE], input=pickle.dumps(place), check=True)
    assert gradient.dtype == answered
    np.testing.assert_array_equal(gradient, 2.0 * given.astype(answered))


def test_a_buffer_grows_for_larger_images_and_ends_with_its_owner() -> None:
    before = set(os.listdir("/proc/self/fd"))
    buffer = SharedBuffer()
    small, large = buffer.room((1, 1, 3, 2, 2), "float32"), buffer.room((1, 1, 3, 64, 64), "float32")
    for place in (small, large):
        place.arrays(buffer.memory)[0][:] = 0.5
        assert place.arrays(place.open())[0].mean() == 0.5
    del buffer
    assert set(os.listdir("/proc/self/fd")) == before
    with pytest.raises(Elsewhere, match="cannot be reached"):
        large.open()


def test_memory_of_another_container_is_never_taken_for_ours() -> None:
    buffer, other = SharedBuffer(), SharedBuffer()
    place = buffer.room((1, 1, 3, 2, 2), "float32")
    there = other.room((1, 1, 3, 2, 2), "float32")
    for wrong in (place._replace(fd=there.fd), place._replace(pid=2**22)):
        with pytest.raises(Elsewhere):
            wrong.open()
