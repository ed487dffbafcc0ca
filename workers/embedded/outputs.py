"""Real outputs for reward training: what fields look like while a prior optimizes them, and whether they end right.

Each object is a training description (never a held-out pair), optimized by SDS under the weak prior, where more goes
wrong. It is rendered four times on its way, and the judge compares its finished surface with the truth.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from workers.embedded.dataset import draw_elevation_deg, group_cameras
from workers.embedded.train_prior import described
from workers.embedded.world import NAMES, random_description
from workers.priors.rgba import encode_rgba
from workers.render import render

if TYPE_CHECKING:
    from pathlib import Path

    from workers.networks import Networks
    from workers.scene import Scene

__all__ = ["Outputs", "collect_outputs"]

STEPS = 150
LOOK_AT = (60, 90, 120, 150)
"""Steps after which a scene is rendered."""


class Outputs(NamedTuple):
    """N groups of four rendered views, and what they should show."""

    latents: Tensor
    """(N, 4, 4, 32, 32) premultiplied RGBA in [−1, 1]."""
    names: Tensor
    """(N, 2) as in `dataset.Batch`."""
    colors: Tensor
    relation: Tensor
    """(N,)."""
    right: Tensor
    """(N,) bool: the object that these views belong to ended right."""

    @classmethod
    def load(cls, folder: Path) -> Outputs | None:
        """Read all that was collected; None where nothing was."""
        files = sorted(folder.glob("output-*.pt"))
        if not files:
            return None
        loaded = [torch.load(file, weights_only=True) for file in files]
        columns = (torch.cat([one[name] for one in loaded]) for name in cls._fields)
        outputs = cls(*columns)
        return outputs._replace(latents=outputs.latents.float())

    def sample(self, count: int, generator: torch.Generator) -> Outputs:
        """Draw `count` groups."""
        rows = torch.randint(len(self.right), (count,), generator=generator)
        return Outputs(*(column[rows] for column in self))


def collect_outputs(folder: Path, prior_folder: Path, count: int, seed: int = 30) -> None:
    """Make `count` objects, one file each in `folder`; those that are there already are kept."""
    from workers.embedded.export import weak_prior
    from workers.networks import Networks, hold_embedded_prior

    networks = Networks({"embedded": hold_embedded_prior(weak_prior(prior_folder))}, rewards={})
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        path = folder / f"output-{seed}-{index:03}.pt"
        if not path.exists():
            made = _make(networks, np.random.default_rng((seed, index)), index)
            partial = path.with_suffix(".partial")
            torch.save(made._asdict(), partial)
            partial.rename(path)


def _make(networks: Networks, rng: np.random.Generator, seed: int) -> Outputs:
    from workers.evaluation.arms import Arm, Case
    from workers.evaluation.objects import make_object

    description = random_description(rng)
    looks: list[Tensor] = []

    def watch(scene: Scene) -> None:
        if scene.step in LOOK_AT:
            looks.append(_look(scene, rng))

    finished = make_object(Case(description, Arm("sds", steps=STEPS), seed), networks, watch)
    print(
        f"output {seed}: {'right' if finished.verdict.right else '; '.join(finished.verdict.faults)}",
        flush=True,
    )
    truth, _ = described([description])
    number = len(looks)
    return Outputs(
        torch.cat(looks).half(),
        torch.where(truth["name"] < len(NAMES), truth["name"], -1).repeat(number, 1),
        truth["color"].repeat(number, 1),
        truth["relation"].repeat(number),
        torch.tensor([finished.verdict.right] * number),
    )


@torch.no_grad()
def _look(scene: Scene, rng: np.random.Generator) -> Tensor:
    angles = torch.tensor([[rng.uniform(0, 360), draw_elevation_deg(rng)]], dtype=torch.float32)
    views = render(scene.field, group_cameras(angles), scene.prior.image_px, scene.num_samples)
    return encode_rgba(views)
