"""What several scenes gain together on the embedded prior, and how far a step is from its networks' own cost.

Run `python -m tests.bench.throughput`. Ratios come from measurements taken in turns, on one thread:
`step_over_floor_N`: a step of N SDS scenes ÷ the prior's call alone at the same batch;
`throughput_N_scenes`: scene-steps per second of N scenes together ÷ of one scene.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import torch

from tests.bench.engine import engine_loop, medians
from workers.cameras import CameraRig, Cameras
from workers.priors.embedded import load_embedded_prior
from workers.weights import EMBEDDED_PRIOR

if TYPE_CHECKING:
    from collections.abc import Callable

    from workers.priors.embedded import EmbeddedPrior

__all__ = ["measure"]

PROMPTS = (
    "a red cube on top of a blue cylinder",
    "a green torus",
    "a chair",
    "a pink cone next to a gray egg",
)
NUM_WARM_STEPS = 40


def networks_alone(prior: EmbeddedPrior, count: int) -> Callable[[], None]:
    """The prior's call that `count` SDS scenes make: conditional and unconditional rows of each."""
    text = prior.encode_text([prompt for prompt in PROMPTS[:count] for _ in range(2)])
    cameras = CameraRig().draw(torch.Generator().manual_seed(0))
    rows = Cameras(*(x.expand(2 * count, *x.shape[1:]) for x in cameras))
    latents, t = torch.randn(2 * count, 4, *prior.latent_shape), torch.full((2 * count,), 500)

    def body() -> None:
        prior.predict(latents, t, text, rows).now()

    body()
    return body


def measure() -> dict[str, float]:
    """Measure on one thread."""
    torch.set_num_threads(1)
    prior = load_embedded_prior(EMBEDDED_PRIOR)
    counts = (1, 2, 4)
    bodies = [
        body
        for count in counts
        for body in (engine_loop(prior, PROMPTS[:count], NUM_WARM_STEPS), networks_alone(prior, count))
    ]
    seconds = medians(*bodies, num_rounds=15)
    steps, floors = seconds[::2], seconds[1::2]
    result = {"embedded_step_ms_1_scene": 1000 * steps[0]}
    for count, step_s, floor_s in zip(counts, steps, floors, strict=True):
        result[f"step_over_floor_{count}"] = step_s / floor_s
        result[f"throughput_{count}_scenes"] = count * steps[0] / step_s
    return result


if __name__ == "__main__":
    print(json.dumps({name: round(value, 3) for name, value in measure().items()}, indent=2))
