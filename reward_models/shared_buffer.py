"""Pictures on their way to a reward in another process of the same machine: memory that both see, not a message.

Ray's object store makes, announces, pins and frees an object for each way, which takes several times as long as
copying the pictures. So a caller writes them into memory of its own and sends only `SharedImages`; the reward opens
that through /proc, which a process of the same user and container can, and leaves the gradient where the images were.
The kernel frees the memory when both have let go of it, also when they were killed.
"""

from __future__ import annotations

import math
import mmap
import os
import secrets
import weakref
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["CAN_SHARE", "Array", "Elsewhere", "SharedBuffer", "SharedImages"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
CAN_SHARE = hasattr(os, "memfd_create")
"""Linux can, macOS cannot."""


class Elsewhere(RuntimeError):
    """The memory belongs to a process that cannot be reached from here, such as one of another machine."""


class SharedImages(NamedTuple):
    """Where images lie, in words that can be sent to another process."""

    pid: int
    fd: int
    name: str
    """Of the memory: the same numbers mean something else in another container."""
    shape: tuple[int, ...]
    dtype: str

    @property
    def gradient_dtype(self) -> np.dtype[Any]:
        """Float64 for float64 images, else float32, as rewards answer."""
        return np.promote_types(self.dtype, np.float32)

    @property
    def num_bytes(self) -> int:
        """Room for the images, or for their gradient."""
        return max(1, math.prod(self.shape) * self.gradient_dtype.itemsize)

    def open(self) -> mmap.mmap:
        """Map this memory into the calling process; raises `Elsewhere`."""
        try:
            with open(f"/proc/{self.pid}/fd/{self.fd}", "r+b", buffering=0) as file:
                found = os.readlink(f"/proc/self/fd/{file.fileno()}")
                if not found.startswith(f"/memfd:{self.name} "):
                    raise Elsewhere(f"process {self.pid} is another one here")
                return mmap.mmap(file.fileno(), self.num_bytes)
        except OSError as error:
            raise Elsewhere(f"process {self.pid} cannot be reached: {error}") from error

    def arrays(self, memory: mmap.mmap) -> tuple[Array, Array]:
        """See the images in `memory`, and their gradient, which overwrites them."""
        return (
            np.ndarray(self.shape, self.dtype, memory),
            np.ndarray(self.shape, self.gradient_dtype, memory),
        )


class SharedBuffer:
    """Memory of this process that others can open, for one request after another; it grows as they need."""

    def __init__(self) -> None:
        self._name = f"dreamserve-{secrets.token_hex(8)}"
        self._fd = os.memfd_create(self._name)
        weakref.finalize(self, os.close, self._fd)
        self.memory = self._grown(1)

    def room(self, shape: Sequence[int], dtype: str) -> SharedImages:
        """Make room for images of this shape and type, and say where they lie."""
        shared = SharedImages(os.getpid(), self._fd, self._name, tuple(shape), dtype)
        if shared.num_bytes > len(self.memory):
            self.memory = self._grown(shared.num_bytes)
        return shared

    def _grown(self, num_bytes: int) -> mmap.mmap:
        os.ftruncate(self._fd, num_bytes)
        return mmap.mmap(self._fd, num_bytes)
