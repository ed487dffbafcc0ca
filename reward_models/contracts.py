"""What every reward is and declares: a frozen network that scores pictures of an object.

Shape legend: G groups (the views of one object), V views of a group, H height, W width.

A reward sees tensors and strings, never jobs. It is called from several places (in a worker's process, or by
`reward_models.actor` for all workers at once), so one batched call is all it offers: `score_batch`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = [
    "IN_RANGE",
    "VIEW_SUFFIXES",
    "NotFinite",
    "PosedViews",
    "RewardCard",
    "RewardModel",
    "ViewPrompt",
    "ViewsReward",
    "check_pixels",
    "score_and_gradient",
]

VIEW_SUFFIXES = {
    "side": ", side view",
    "front": ", front view",
    "back": ", back view",
    "overhead": ", overhead view",
}
"""What is appended to a prompt by the side that a view shows (threestudio's `prompts_vd`)."""
IN_RANGE = 1e-3
"""How far a rendered picture may leave [0, 1] by rounding."""


class NotFinite(ValueError):
    """Images hold what is no number: the scene that they show has diverged."""


@dataclass(frozen=True, slots=True)
class RewardCard:
    """What a reward says about itself: shown by `GET /v1/rewards`, checked at submit, kept as provenance."""

    name: str
    """The name a job uses in `rewards`, `judge` and `referee`."""
    value_range: tuple[float, float] | None
    """Bounds of a score; `None` when it is unbounded."""
    scale: str
    """What one unit of the score means, in a sentence for users."""
    views: int | None
    """How many views of an object it wants at once; `None` when any number will do."""
    uses_prompt: bool
    """Whether the score depends on the prompt (an aesthetic score does not)."""
    differentiable: bool
    """Whether d score / d image exists: DreamFL needs it, DreamDPO does not."""
    license: str
    """SPDX name of the license of the weights."""
    weights_sha256: str | None
    """Checksum of the weights file; `None` for a reward without weights."""
    prompt_tokens: int | None = None
    """How many tokens of a prompt are read, its start and end included; `None` if it counts otherwise."""
    prompt_per_view: bool = False
    """Whether it was trained with a text for each view: ask with a `ViewPrompt`, see `VIEW_SUFFIXES`."""
    preprocessing: str = "none"
    """What happens to a picture before the network sees it."""
    retrained: bool = False
    """Whether its owner has trained it further: then nobody knows where its scores usually lie."""


class ViewPrompt(str):
    """A prompt that also says what each of an object's views shows: "a cat" with "a cat, front view", …

    It is a plain prompt to everyone else, so it passes through actors and to rewards that read one text only.
    """

    views: tuple[str, ...]

    def __new__(cls, prompt: str, views: Sequence[str]) -> ViewPrompt:
        self = super().__new__(cls, prompt)
        self.views = tuple(views)
        return self

    def __getnewargs__(self) -> tuple[str, tuple[str, ...]]:  # type: ignore[override]  # pickle: both parts
        return str(self), self.views


class RewardModel(Protocol):
    """A frozen reward network, in `eval()` mode: rows never influence each other."""

    @property
    def card(self) -> RewardCard: ...

    def score_batch(
        self, images: Tensor, prompts: list[str], wants_gradient: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Score images (G, V, 3, H, W) in [0, 1] for prompts (G).

        Returns values, (G, V) or (G, 1), higher is better, and d values.sum() / d images, (G, V, 3, H, W),
        which is zero in the rows that `wants_gradient` (G,) bool does not name. Both are detached.
        """
        ...


class PosedViews(NamedTuple):
    """Renders of G objects with their geometry, in the space of glTF (+Y up, cameras look along their own −Z)."""

    rgb: Tensor
    """(G, V, 3, H, W) in [0, 1], premultiplied by `opacity`, without a background."""
    opacity: Tensor
    """(G, V, 1, H, W) accumulated alpha in [0, 1]."""
    depth: Tensor
    """(G, V, 1, H, W) distance from the camera along the ray, times alpha: Σ w t, 0 where nothing is hit."""
    c2w: Tensor
    """(G, V, 4, 4) camera-to-world matrices."""
    fov_y_deg: Tensor
    """(G, V) vertical field of view, degrees; pixels are square, the principal point is the center."""


class ViewsReward(Protocol):
    """A reward that needs more than pictures: it is asked with the renders of a field, not with a prior's images."""

    @property
    def card(self) -> RewardCard: ...

    def score_views(self, views: PosedViews) -> Tensor:
        """Score the views of G objects: (G, 1), higher is better, detached."""
        ...


def score_and_gradient(
    score: Callable[[Tensor, list[str]], Tensor], images: Tensor, prompts: list[str], wants_gradient: Tensor
) -> tuple[Tensor, Tensor]:
    """Answer a `score_batch` with one call of a differentiable score(images, prompts) → (G, V) or (G, 1)."""
    assert len(images) == len(prompts) == len(wants_gradient), "one prompt and one flag per row"
    if not bool(wants_gradient.any()):
        with torch.no_grad():
            return score(images, prompts), torch.zeros_like(images)
    with torch.enable_grad():
        images = images.detach().requires_grad_()
        values = score(images, prompts)
        (gradient,) = torch.autograd.grad(values[wants_gradient].sum(), images)
    return values.detach(), gradient


def check_pixels(card: RewardCard, images: Tensor) -> None:
    """Raise ValueError, saying what was found, unless these are images (G, V, 3, H, W) in [0, 1].

    For those that are not finite it is `NotFinite`.
    """
    if images.ndim != 5 or images.shape[2] != 3 or not images.numel():
        raise ValueError(
            f"reward {card.name!r} wants images (objects, views, 3, height, width), but got {tuple(images.shape)}"
        )
    low, high = (float(x) for x in images.detach().aminmax())
    if low >= -IN_RANGE and high <= 1 + IN_RANGE:
        return
    kind = ValueError if math.isfinite(low) and math.isfinite(high) else NotFinite
    raise kind(
        f"reward {card.name!r} wants finite images in [0, 1], but got values from {low:.4g} to {high:.4g}"
    )
