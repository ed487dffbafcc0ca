"""`make gpu-check`: engine, embedded prior, voxel field and training on this machine's GPU, or its CPU if it has none.

Imports nothing of the service: it must run where there is only torch, numpy and safetensors.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from workers.cameras import CameraRig
from workers.embedded.dataset import render_pictures
from workers.embedded.train_prior import train_prior
from workers.engine import Engine
from workers.fields.voxel import VoxelField
from workers.methods.sds import sds
from workers.priors.embedded import load_embedded_prior
from workers.scene import Scene
from workers.weights import EMBEDDED_PRIOR

STEPS = 50


@dataclass(frozen=True)
class Ramp:
    """The specification's ramp, without its package."""

    start: float
    end: float
    power: float = 1.0

    def at_step(self, step: float, steps_total: float) -> float:
        return self.start + (self.end - self.start) * (step / steps_total) ** self.power


@dataclass(frozen=True)
class Knobs:
    """SDS with its default knobs."""

    guidance_scale: Ramp = field(default_factory=lambda: Ramp(2.5, 1.5))
    t_max: Ramp = field(default_factory=lambda: Ramp(0.98, 0.6, 0.5))
    t_min: Ramp = field(default_factory=lambda: Ramp(0.5, 0.02, 0.5))
    rescale: float = 0.5
    form: str = "reconstruction"
    weighting: str = "variance"


def curve(device: str, num_scenes: int) -> tuple[list[float], float]:
    """Loss of the first of `num_scenes` scenes at each of 50 steps, and scene-steps per second."""
    prior = load_embedded_prior(EMBEDDED_PRIOR).to(device)
    engine = Engine()

    async def method(scene: Scene, views: object, prior: object) -> torch.Tensor:
        return await sds(scene, views, prior, knobs=Knobs())  # type: ignore[arg-type]

    for seed in range(num_scenes):
        engine.admit(
            Scene(
                prompt="a red cube on top of a blue cylinder",
                prior=prior,
                method=method,
                field=VoxelField(device=torch.device(device)),
                rig=CameraRig(),
                seed=seed,
                steps_total=10_000,
            )
        )
    losses, started = [], time.perf_counter()
    for _ in range(STEPS):
        outcomes = engine.step()
        assert all(outcome.error is None for outcome in outcomes), outcomes
        losses.append(float(outcomes[0].loss or 0.0))
    return losses, num_scenes * STEPS / (time.perf_counter() - started)


def main() -> None:
    """Run everything and print one JSON object."""
    assert not {"ray", "pydantic", "sqlalchemy", "service"} & set(sys.modules), "the core imports the service"
    device = "cuda" if torch.cuda.is_available() else "cpu"
    name = torch.cuda.get_device_name() if device == "cuda" else "no CUDA device"
    report: dict[str, object] = {"torch": torch.__version__, "device": name}
    here, report["scene_steps_per_s_1"] = curve(device, 1)
    _, report["scene_steps_per_s_8"] = curve(device, 8)
    if device != "cpu":
        there, _ = curve("cpu", 1)
        worst = max(abs(a - b) / abs(b) for a, b in zip(here[:10], there[:10], strict=True))
        report["first_10_losses_differ_from_cpu_by"] = worst
        assert worst < 1e-2, f"CUDA and CPU disagree: {here[:10]} against {there[:10]}"
    with TemporaryDirectory() as folder:
        render_pictures(Path(folder) / "pictures", 64, seed=0)
        started = time.perf_counter()
        train_prior(Path(folder), 20, device=device)
        report["training_pictures_per_s"] = 20 * 32 / (time.perf_counter() - started)
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
