"""What a preset means for the scene: light and penalties of its hash grid, size and number of its renders.

The other half of `service/jobs/presets.py`, which says method, rewards and steps. All presets share the field, its
learning rates (`HashGridSizes`, `HashGridTraining`), the cameras (`VariedRig`) and the renders' sizes; sources there
and here: `configs/mvdream-sd21.yaml` and `configs/mvdream-sd21-shading.yaml` of MVDream-threestudio, the
configurations of DreamReward and DreamDPO, which agree in all of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from workers.fields.hashgrid import HashGridTraining
from workers.regularizers import Penalties
from workers.stages import MVDREAM_STAGES, Stage

if TYPE_CHECKING:
    from service.jobs.spec import JobSpec
    from workers.contracts import Prior

__all__ = ["NUM_SAMPLES", "plan_stages", "plan_training"]

NUM_SAMPLES = 296
"""Samples on a ray: 512 along the diagonal of the box, as published (`num_samples_per_ray`), are 296 along an edge."""
RESOLUTION_STEP = 5_000
"""The step from which renders are large and shading begins: `resolution_milestones`, `ambient_only_steps`."""
PUBLISHED_PX = 256
"""Size of MVDream's pictures, for which the published sizes of renders are."""
ONE_PAIR = ("dreamdpo", "psd")
"""Methods that compare two samples of one group of views: `batch_size` [4, 4] of DreamDPO's configuration."""


@dataclass(frozen=True, slots=True)
class _Appearance:
    """How a preset shows its field while it is trained."""

    steps: int = 10_000
    shaded: bool = False
    orient: bool = False
    """Whether `lambda_orient` is [0, 10, 1000, 5000] (step, start, end, step); else there is no penalty."""


_APPEARANCES = {
    "mvdream-paper": _Appearance(shaded=True, orient=True),
    "dreamreward-guidance1": _Appearance(),
    "dreamreward-guidance2": _Appearance(steps=10_400),
    "dreamdpo-paper": _Appearance(orient=True),
    "psd-paper": _Appearance(shaded=True, orient=True),  # ours: as MVDream's, on which the paper builds
}


def plan_training(spec: JobSpec, prior: Prior) -> HashGridTraining:
    """Say how a job's field is lit and what it is asked to be, by its preset; without one as `mvdream-sd21.yaml`."""
    look = _APPEARANCES.get(spec.preset or "", _Appearance())
    channels, height, width = prior.latent_shape
    orient = (10.0, 1_000.0, RESOLUTION_STEP / look.steps) if look.orient else (0.0, 0.0, 0.0)
    return HashGridTraining(
        shaded=look.shaded, penalties=Penalties(orient=orient, unit=2 / (channels * height * width))
    )


def plan_stages(spec: JobSpec, prior: Prior) -> tuple[Stage, ...]:
    """Say how large and how many a job's renders are.

    A prior with smaller pictures than MVDream's gets smaller renders; one with larger pictures the published ones,
    enlarged.
    """
    steps = _APPEARANCES.get(spec.preset or "", _Appearance()).steps
    scale = min(1.0, prior.image_px / PUBLISHED_PX)
    small, large = MVDREAM_STAGES
    groups = 1 if spec.method.name in ONE_PAIR else small.num_groups
    return (
        Stage(0.0, max(1, round(small.render_px * scale)), groups),
        Stage(RESOLUTION_STEP / steps, max(1, round(large.render_px * scale)), large.num_groups),
    )
