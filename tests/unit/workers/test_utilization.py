"""The use of a worker's time as it is reported is what the kernel has counted."""

from __future__ import annotations

import functools
import threading
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from tests import waiting
from tests.bench.utilization import uses
from tests.unit.workers.small_workers import Service

pytestmark = pytest.mark.slow
wait_until = functools.partial(waiting.wait_until, timeout_s=120, every_s=0.02)


class Counted(NamedTuple):
    """Seconds since some beginning."""

    at: float
    busy: float
    """On a core, or waiting for one: a thread that does holds its GPU too."""


def counted(thread: threading.Thread) -> Counted:
    statistics = Path(f"/proc/self/task/{thread.native_id}/schedstat").read_text().split()
    return Counted(time.monotonic(), sum(map(int, statistics[:2])) / 1e9)


def test_utilization_is_what_the_kernel_counted(tmp_path: Path) -> None:
    service = Service(tmp_path, slots_per_worker=1, report_interval_s=1, checkpoint_interval_s=60)
    worker = service.worker()
    thread = threading.Thread(target=worker.run)
    thread.start()

    def do(steps: int) -> None:
        job_id = service.submit(steps=steps)
        wait_until(lambda: service.job(job_id)["status"] == "succeeded")
        wait_until(lambda: worker.state == "idle")
        time.sleep(0.5)  # what it did is told when it begins to idle

    def measure() -> tuple[float, float]:
        """The share of a job and a rest that the worker calls optimizing, and the share that the kernel saw."""
        before, began = uses(service), counted(thread)
        do(steps=200)
        time.sleep(2.0)
        ended = counted(thread)
        after, held_s = uses(service), ended.at - began.at
        reported_s = sum(after.values()) - sum(before.values())
        assert reported_s == pytest.approx(held_s, abs=3.0)  # it ends within two or three
        return (after["optimizing"] - before["optimizing"]) / held_s, (ended.busy - began.busy) / held_s

    try:
        do(steps=1)  # whatever is loaded, is loaded
        # Where others want the same cores and disk, a thread also waits in ways that the kernel does not count.
        for _ in range(3):
            share, outside = measure()
            print(f"reported {share:.3f}, from outside {outside:.3f}")
            if abs(share - outside) <= 0.03:
                break
    finally:
        worker.drain()
        thread.join()
    assert 0.1 < outside < 0.9
    assert share == pytest.approx(outside, abs=0.03)
