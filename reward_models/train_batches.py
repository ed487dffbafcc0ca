"""Batches of comparisons, their pictures read and prepared while the step before is computed."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from reward_models.comparisons import READING_THREADS, load_views

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from reward_models.comparisons import Comparison

__all__ = ["Batch", "in_batches"]


class Batch(NamedTuple):
    """N comparisons."""

    pixels: Tensor
    """(2 N, V, 3, P, P), prepared for a reward: all of side a, then all of side b."""
    prompts: list[str]
    """2 N."""
    preferred: Tensor
    """(N,) int64: 0 is side a, 1 side b; 0 for a tie."""
    tie: Tensor
    """(N,) bool."""

    def to(self, device: str | torch.device) -> Batch:
        """Move the tensors."""
        return self._replace(
            pixels=self.pixels.to(device), preferred=self.preferred.to(device), tie=self.tie.to(device)
        )


def in_batches(groups: Iterable[list[Comparison]], prepare: Callable[[Tensor], Tensor]) -> Iterator[Batch]:
    """Make a batch of each group, in order; the next one is being read while the caller uses this one.

    `prepare` makes of an object's views (V, 3, H, W) what the reward sees. Raises ValueError, naming the file, for a
    picture that cannot be read.
    """
    with ThreadPoolExecutor(READING_THREADS) as readers, ThreadPoolExecutor(1) as ahead:

        def read(group: list[Comparison]) -> Batch:
            paths = [one.a for one in group] + [one.b for one in group]
            pixels = torch.stack(list(readers.map(lambda each: prepare(load_views(each)), paths)))
            preferred = torch.tensor([int(one.preferred == "b") for one in group])
            tie = torch.tensor([one.preferred == "tie" for one in group])
            return Batch(pixels, [one.prompt for one in group] * 2, preferred, tie)

        waiting = None
        for group in groups:
            ready, waiting = waiting, ahead.submit(read, group)
            if ready is not None:
                yield ready.result()
        if waiting is not None:
            yield waiting.result()
