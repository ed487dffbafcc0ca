"""How large and how many a step's renders are, and how they come to the size that the prior wants.

Source of `MVDREAM_STAGES`: `configs/mvdream-sd21.yaml` of MVDream-threestudio, at its 10,000 steps: 8 views of 64 px
up to step 5000, 4 views of 256 px from there on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from torch.nn.functional import interpolate

from workers.render import shrink

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from workers.contracts import Views

__all__ = ["MVDREAM_STAGES", "Stage", "fit", "stage_at", "supersampled"]


class Stage(NamedTuple):
    """A part of an optimization."""

    begin: float
    """The progress, from 0 to 1, from which on it holds."""
    render_px: int
    num_groups: int = 1
    """Groups of the prior's number of views, each with cameras of its own."""


MVDREAM_STAGES = (Stage(0.0, 64, num_groups=2), Stage(0.5, 256, num_groups=1))


def supersampled(image_px: int) -> tuple[Stage, ...]:
    """One group at the prior's size, with four rays per pixel from the middle on.

    A prior's pictures are averages over pixels: a field seen through one ray per pixel would have to blur itself to
    look like them (necks fill, tips round off).
    """
    return Stage(0.0, image_px), Stage(0.5, 2 * image_px)


def stage_at(stages: Sequence[Stage], step: int, steps_total: int) -> Stage:
    """Find the last stage that has begun at `step`; the first must begin at 0."""
    return next(stage for stage in reversed(stages) if step >= stage.begin * steps_total)


def fit(views: Views, image_px: int) -> Views:
    """Bring renders to `image_px`: averages of whole pixels where they are larger, bilinear where they are smaller.

    Differentiable to the views. What a field's regularizers look at stays as it was rendered when it is enlarged.
    """
    render_px = views.rgb.shape[-1]
    if render_px > image_px:
        assert render_px % image_px == 0, f"renders of {render_px} px do not average to {image_px} px"
        return shrink(views, render_px // image_px)
    if render_px == image_px:
        return views

    def enlarge(image: Tensor) -> Tensor:
        large = interpolate(image.flatten(0, 1), size=(image_px, image_px), mode="bilinear")
        return large.unflatten(0, image.shape[:2])

    rgb, opacity, depth = (enlarge(image) for image in (views.rgb, views.opacity, views.depth))
    return views._replace(rgb=rgb, opacity=opacity, depth=depth)
