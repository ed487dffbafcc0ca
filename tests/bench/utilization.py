"""How much of a worker's time is optimization while jobs wait: each is exported beside the steps of the next.

Run `python -m tests.bench.utilization`. `optimizing_share_under_backlog`: `optimizing` ÷ all seconds that a worker of
one slot reports from its start with networks loaded, over three jobs of 2,000 analytic steps, until the last one is
half done; the product's promise is 0.97.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from service.jobs.tallies import Total
from tests.unit.workers.small_workers import Service, small_networks
from workers.fields.voxel import VoxelField

if TYPE_CHECKING:
    from workers.networks import Networks

__all__ = ["measure"]

STEPS = 2_000


def uses(service: Service) -> dict[str, float]:
    """Seconds by use that the store knows."""
    tallies = [one for one in service.store.snapshot().tallies if one.name == Total.WORKER_SECONDS]
    return {one.labels["use"]: one.value for one in tallies}


def _networks() -> Networks:
    return small_networks(lambda device: VoxelField(coarse=6, fine=8, device=device))


def measure(steps: int = STEPS) -> dict[str, float]:
    """Measure on one thread."""
    with tempfile.TemporaryDirectory() as folder:
        service = Service(Path(folder), slots_per_worker=1, report_interval_s=1, checkpoint_interval_s=5)
        jobs = [service.submit(steps=steps) for _ in range(3)]

        def half_done() -> bool:
            progress = service.job(jobs[-1])["progress"]
            return bool(progress and progress["step"] >= steps / 2)

        networks = _networks()
        service.run_until(half_done, service.worker(load=lambda: networks), timeout_s=1_200)
        seconds = uses(service)
        service.store.close()
    return {"optimizing_share_under_backlog": seconds["optimizing"] / sum(seconds.values())}


if __name__ == "__main__":
    print(json.dumps({name: round(value, 4) for name, value in measure().items()}, indent=2))
