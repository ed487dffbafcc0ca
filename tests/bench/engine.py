"""What the engine costs one scene: its step against the same arithmetic written as a plain loop.

Run `python -m tests.bench.engine`; it prints a flat map from name to number. The prior is the analytic one, which
costs next to nothing, so nothing hides the engine's own share. A ratio of medians of alternating measurements:
a busy machine hits both sides alike.
"""

from __future__ import annotations

import json
import statistics
import time
from typing import TYPE_CHECKING

import torch

from service.jobs.spec import SdsMethod
from workers.cameras import CameraRig, Cameras
from workers.diffusion import add_noise, draw_noise, draw_time, guide, rescale_x0
from workers.engine import Engine
from workers.fields.voxel import VoxelField
from workers.methods import make_method
from workers.priors.analytic import AnalyticPrior, disk_latents
from workers.render import render
from workers.scene import Scene

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from workers.contracts import Prior

__all__ = ["measure"]

PX, STEPS_TOTAL = 32, 10_000
KNOBS = SdsMethod()


def make_prior() -> AnalyticPrior:
    return AnalyticPrior({"a red ball": disk_latents((0.9, 0.1, 0.1), 0.5, PX)})


def plain_loop(prior: AnalyticPrior, num_warm_steps: int) -> Callable[[], None]:
    """SDS on a voxel field written down as a loop's body, with no engine, scene or coroutine."""
    field, rig, generator = VoxelField(), CameraRig(), torch.Generator().manual_seed(0)
    optimizer, text = field.new_optimizer(), prior.encode_text(["a red ball", ""])
    step = 0

    def body() -> None:
        nonlocal step
        progress = step / STEPS_TOTAL
        field.prepare(step, STEPS_TOTAL)
        optimizer.zero_grad(set_to_none=True)
        views = render(field, rig.draw(generator), PX, 48, generator, occupied=field.occupied)
        latents = prior.encode(views).now()
        t = draw_time(prior.schedule, KNOBS.t_min.at(progress), KNOBS.t_max.at(progress), generator)
        noise = draw_noise(latents, generator)
        noisy = add_noise(latents.detach(), noise, t, prior.schedule)
        cameras = Cameras(*(x.expand(2, *x.shape[1:]) for x in views.cameras))
        both = prior.predict(noisy.repeat(2, 1, 1, 1, 1), t.repeat(2), text, cameras).now()
        conditional, negative = both.x0.chunk(2)
        x0 = guide(conditional, negative, KNOBS.guidance_scale.at(progress))
        x0 = rescale_x0(x0, conditional, KNOBS.rescale)
        loss = (latents - x0).square().mean() + field.regularization(views, step, STEPS_TOTAL)
        loss.backward()
        assert loss.isfinite()
        optimizer.param_groups[0]["lr"] = field.learning_rate(progress)
        optimizer.step()
        step += 1

    for _ in range(num_warm_steps):
        body()
    return body


def engine_loop(prior: Prior, prompts: Sequence[str], num_warm_steps: int) -> Callable[[], None]:
    """SDS on one object per prompt, together in an engine."""
    engine = Engine()
    for prompt in prompts:
        engine.admit(
            Scene(
                prompt=prompt,
                prior=prior,
                method=make_method(KNOBS, None),
                field=VoxelField(),
                rig=CameraRig(),
                seed=0,
                steps_total=STEPS_TOTAL,
            )
        )

    def body() -> None:
        assert all(outcome.error is None for outcome in engine.step())

    for _ in range(num_warm_steps):
        body()
    return body


def medians(*bodies: Callable[[], None], num_rounds: int = 40) -> list[float]:
    """Seconds of each body, measured in turns."""
    times: list[list[float]] = [[] for _ in bodies]
    for _ in range(num_rounds):
        for body, seconds in zip(bodies, times, strict=True):
            start = time.perf_counter()
            body()
            seconds.append(time.perf_counter() - start)
    return [statistics.median(seconds) for seconds in times]


def measure(num_warm_steps: int = 60) -> dict[str, float]:
    """Measure on one thread: milliseconds of a step, and the ratio, which is to stay below 1.1."""
    torch.set_num_threads(1)
    prior = make_prior()
    plain_s, engine_s = medians(
        plain_loop(prior, num_warm_steps), engine_loop(prior, ["a red ball"], num_warm_steps)
    )
    return {"engine_step_ms": 1000 * engine_s, "engine_step_over_plain_loop": engine_s / plain_s}


if __name__ == "__main__":
    print(json.dumps({name: round(value, 3) for name, value in measure().items()}, indent=2))
