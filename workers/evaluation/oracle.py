"""A judge that sees the truth: the ceiling of every preference method.

It is a `contracts.Reward` like any other, but it knows from which cameras a scene is seen and what the described
object truly looks like from there. One oracle serves one scene.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from workers.cameras import CameraRig
from workers.contracts import Ask, Scores
from workers.embedded.truth import Truth
from workers.priors.rgba import latents_to_image

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from workers.cameras import Cameras
    from workers.embedded.world import Description

__all__ = ["Oracle", "WatchedRig"]

DEVIATION = 0.1
"""Standard deviation of a pixel (of 1) in the oracle's likelihood."""


@dataclass(frozen=True)
class WatchedRig(CameraRig):
    """A camera rig that remembers what it drew last."""

    seen: list[Cameras] = field(default_factory=list)
    """The last cameras, once there were any."""

    def draw(self, generator: torch.Generator) -> Cameras:
        """Draw as the plain rig does."""
        self.seen[:] = [CameraRig.draw(self, generator)]
        return self.seen[0]


class Oracle:
    """Score pictures by how likely they are under the truth: −mean (I − I*)² / (2 · .1²), in nats per pixel."""

    name = "oracle"

    def __init__(self, description: Description, rig: WatchedRig) -> None:
        self._truth, self._rig = Truth(description), rig

    def score(self, images: Tensor, prompts: list[str], wants_gradient: Tensor) -> Ask[Scores]:
        """Score images (G, V, 3, 32, 32) that are seen from the rig's last cameras."""
        return Ask("score", self, self._answer, (images, prompts, wants_gradient))

    def _answer(self, images: Tensor, prompts: list[str], wants_gradient: Tensor) -> Scores:
        (drawn,) = self._rig.seen
        cameras = type(drawn)(*(x[0] for x in drawn))
        difference = images.detach() - latents_to_image(self._truth.latents(cameras)[None])
        weight = 1 / (2 * DEVIATION**2)
        values = -weight * difference.square().mean((1, 2, 3, 4))[:, None]
        gradient = -2 * weight * difference / difference[0].numel()
        return Scores(values, gradient * wants_gradient.view(-1, 1, 1, 1, 1))
