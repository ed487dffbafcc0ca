"""Real outputs for reward training: what fields look like while a prior optimizes them, and what they should be.

Each object is a training description (never a held-out pair), optimized by SDS under the weak and the finished prior
in turn. It is rendered four times on its way, and the truth is painted from the same cameras.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from workers.cameras import Cameras
from workers.embedded.dataset import draw_elevation_deg, group_cameras
from workers.embedded.train_prior import described
from workers.embedded.truth import Truth
from workers.embedded.world import NAMES, random_description
from workers.priors.rgba import encode_rgba
from workers.render import render

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from workers.networks import Networks
    from workers.priors.embedded import EmbeddedPrior
    from workers.scene import Scene

__all__ = ["Outputs", "collect_outputs"]

STEPS = 150
LOOK_AT = (60, 90, 120, 150)
"""Steps after which a scene is rendered."""


class Outputs(NamedTuple):
    """N groups of four rendered views, and what they should show."""

    latents: Tensor
    """(N, 4, 4, 32, 32) premultiplied RGBA in [−1, 1]."""
    truth: Tensor
    """The true pictures from the same cameras."""
    names: Tensor
    """(N, 2) as in `dataset.Batch`."""
    colors: Tensor
    relation: Tensor
    """(N,)."""

    @classmethod
    def load(cls, folder: Path) -> Outputs | None:
        """Read all that was collected; None where nothing was."""
        files = sorted(folder.glob("output-*.pt"))
        if not files:
            return None
        loaded = [torch.load(file, weights_only=True) for file in files]
        outputs = cls(*(torch.cat([one[name] for one in loaded]) for name in cls._fields))
        return outputs._replace(latents=outputs.latents.float(), truth=outputs.truth.float())

    def sample(self, count: int, generator: torch.Generator) -> Outputs:
        """Draw `count` groups."""
        rows = torch.randint(len(self.relation), (count,), generator=generator)
        return Outputs(*(column[rows] for column in self))


def collect_outputs(folder: Path, priors: Sequence[EmbeddedPrior], count: int, seed: int = 30) -> None:
    """Make `count` objects under `priors` in turn, one file each in `folder`; those that are there already are kept."""
    from workers.networks import Networks, hold_embedded_prior

    held = [Networks({"embedded": hold_embedded_prior(prior)}, rewards={}) for prior in priors]
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        path = folder / f"output-{seed}-{index:03}.pt"
        if not path.exists():
            made = _make(held[index % len(held)], np.random.default_rng((seed, index)), index)
            partial = path.with_suffix(".partial")
            torch.save(made._asdict(), partial)
            partial.rename(path)


def _make(networks: Networks, rng: np.random.Generator, seed: int) -> Outputs:
    from workers.evaluation.arms import Arm, Case
    from workers.evaluation.objects import make_object

    description = random_description(rng)
    looks: list[tuple[Tensor, Tensor]] = []

    def watch(scene: Scene) -> None:
        if scene.step in LOOK_AT:
            looks.append(_look(scene, Truth(description), rng))

    finished = make_object(Case(description, Arm("sds", steps=STEPS), seed), networks, watch)
    print(
        f"output {seed}: {'right' if finished.verdict.right else '; '.join(finished.verdict.faults)}",
        flush=True,
    )
    words, _ = described([description])
    number = len(looks)
    latents, truth = (torch.stack(column).half() for column in zip(*looks, strict=True))
    return Outputs(
        latents,
        truth,
        torch.where(words["name"] < len(NAMES), words["name"], -1).repeat(number, 1),
        words["color"].repeat(number, 1),
        words["relation"].repeat(number),
    )


@torch.no_grad()
def _look(scene: Scene, truth: Truth, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Render the scene, and paint the truth, from four random cameras: (4, 4, 32, 32) each."""
    angles = torch.tensor([rng.uniform(0, 360), draw_elevation_deg(rng)], dtype=torch.float32)
    cameras = group_cameras(angles)
    views = render(scene.field, Cameras(*(x[None] for x in cameras)), scene.prior.image_px, scene.num_samples)
    return encode_rgba(views)[0], truth.latents(cameras)
