"""Loss curves of every method on the shipped networks: what a refactoring must not move.

`python -m tests.golden.curves` records them anew, after the weights or a default have changed on purpose.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from service.jobs.admission import admit
from service.settings import Settings
from workers.engine import Engine
from workers.networks import Networks, load_networks
from workers.opening import make_scene

__all__ = ["METHODS", "RECORD", "STEPS", "curve_of", "local_networks", "weights_of"]

RECORD = Path(__file__).with_name("curves.json")
STEPS = 50
METHODS: dict[str, dict[str, str]] = {
    "sds": {"name": "sds"},
    "sds classic": {"name": "sds", "form": "classic"},
    "dreamfl": {"name": "dreamfl"},
    "dreamdpo": {"name": "dreamdpo"},
    "psd": {"name": "psd"},
}
SETTINGS = Settings(reward_placement="local")


def local_networks() -> Networks:
    """Load the shipped networks into this process, on one thread, so that sums keep their order."""
    torch.set_num_threads(1)
    return load_networks(SETTINGS)


def curve_of(method: dict[str, str], networks: Networks) -> list[float]:
    """Loss at each of the first 50 steps of a full job, seed 0."""
    body = {"prompt": "a red cube on top of a blue cylinder", "seed": 0, "method": method}
    spec = admit(body, networks.capabilities(), SETTINGS).spec
    engine = Engine()
    engine.admit(make_scene(spec, networks))
    losses = []
    for _ in range(STEPS):
        (outcome,) = engine.step()
        assert outcome.error is None, outcome.error
        assert outcome.loss is not None
        losses.append(outcome.loss)
    return losses


def weights_of(networks: Networks) -> dict[str, str | None]:
    """Name the weights that a record is of."""
    facts = networks.capabilities()
    parts = {**facts.priors, **facts.rewards}
    return {name: parts[name].weights for name in sorted(parts) if name.startswith("embedded")}


def main() -> None:
    """Record every method's curve."""
    networks = local_networks()
    curves = {name: [round(x, 6) for x in curve_of(method, networks)] for name, method in METHODS.items()}
    RECORD.write_text(json.dumps({"weights": weights_of(networks), "curves": curves}, indent=1) + "\n")


if __name__ == "__main__":
    main()
