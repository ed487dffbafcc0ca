"""How far scores are from what people preferred: cross-entropy over the candidates of one prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["preference_loss", "prefers_rightly"]


def preference_loss(scores: Tensor, preferred: Tensor) -> Tensor:
    """Mean of −log softmax(scores)[preferred] over N prompts; scores (N, K), preferred (N,) int64 → a scalar.

    For two candidates it is Bradley–Terry's −log σ(s_better − s_worse). A row with fewer than K candidates is filled
    up with −∞.
    """
    return F.cross_entropy(scores, preferred)


@torch.no_grad()
def prefers_rightly(scores: Tensor, preferred: Tensor) -> Tensor:
    """Tell for each of N prompts whether its preferred candidate scores above all others, (N,) bool; a tie is wrong."""
    of_preferred = scores.gather(1, preferred[:, None])
    others = scores.scatter(1, preferred[:, None], -torch.inf)
    return (of_preferred > others).all(1)
