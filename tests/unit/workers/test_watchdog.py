"""A worker that lives and gets nowhere is noticed within the limit of its stage, and ends."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from service.jobs.states import Stage
from tests.unit.workers.small_workers import Service
from workers.watchdog import LIMITS_S, Watchdog

if TYPE_CHECKING:
    from pathlib import Path

STEPS = 100


class Bench:
    """A watchdog over attempts that are moved by hand."""

    def __init__(self, *places: tuple[Stage, int]) -> None:
        self.now = 0.0
        self.attempts: list[Any] = [self.attempt(str(number), *place) for number, place in enumerate(places)]
        self.dog = Watchdog(lambda: self.attempts, print, clock=lambda: self.now)
        assert self.stalled() == []

    @staticmethod
    def attempt(job_id: str, stage: Stage, step: int) -> Any:
        lease = SimpleNamespace(job_id=job_id, attempt=1, spec=SimpleNamespace(steps=STEPS))
        return SimpleNamespace(lease=lease, stage=stage, step=step, store_failures=0, ended=False)

    def stalled(self, after_s: float = 0.0) -> list[str]:
        """The jobs that are found `after_s` later."""
        self.now += after_s
        return [attempt.lease.job_id for attempt, _ in self.dog.look()]


@pytest.mark.parametrize("stage", list(Stage))
def test_each_stage_has_its_limit(stage: Stage) -> None:
    bench = Bench((stage, 3))
    assert bench.stalled(LIMITS_S[stage]) == []
    assert bench.stalled(0.5) == ["0"]


def test_a_step_is_progress_and_so_is_a_new_stage() -> None:
    bench = Bench((Stage.COARSE, 3))
    for step in range(4, 8):
        bench.attempts[0].step = step
        assert bench.stalled(50) == []
    bench.attempts[0].stage = Stage.REFINE
    assert bench.stalled(50) == []
    assert bench.stalled(61) == ["0"]


def test_an_upload_that_is_tried_again_is_not_stuck_and_one_that_hangs_in_a_try_is() -> None:
    bench = Bench((Stage.UPLOAD, STEPS))
    for _ in range(3):
        assert bench.stalled(500) == []
        bench.attempts[0].store_failures += 1
    assert bench.stalled() == []
    assert bench.stalled(601) == ["0"]


@pytest.mark.parametrize("place", [(Stage.REFINE, STEPS), (Stage.PREVIEW, 0)])
def test_what_waits_behind_an_upload_that_is_tried_again_is_not_stuck(place: tuple[Stage, int]) -> None:
    bench = Bench((Stage.UPLOAD, STEPS), place)
    for _ in range(3):
        assert bench.stalled(500) == []
        bench.attempts[0].store_failures += 1
    assert bench.stalled() == []
    assert bench.stalled(601) == ["0", "1"]


def test_what_kept_the_others_waiting_is_no_stall_of_theirs() -> None:
    bench = Bench((Stage.COARSE, 3), (Stage.LOADING, 0))
    assert bench.stalled(55) == []
    bench.attempts[1].stage = Stage.COARSE  # loading it took that long
    assert bench.stalled() == []
    assert bench.stalled(55) == []
    assert bench.stalled(6) == ["0", "1"]


def test_an_export_that_hangs_is_noticed_beside_jobs_that_step() -> None:
    bench = Bench((Stage.EXPORT, STEPS), (Stage.COARSE, 3), (Stage.REFINE, STEPS))
    for step in range(12):
        bench.attempts[1].step = step + 4
        assert bench.stalled(50) == [], "the third waits for the first one's export"
    bench.attempts[1].step += 1
    assert bench.stalled(1) == ["0"]


def test_a_worker_that_is_stuck_gives_its_job_back_and_ends(tmp_path: Path) -> None:
    service = Service(tmp_path)
    job_id = service.submit(steps=30)
    stuck = subprocess.run(
        [sys.executable, "-c", STUCK, str(tmp_path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert stuck.returncode == 1, stuck.stderr
    job = service.job(job_id)
    assert job["status"] == "queued"
    (attempt,) = job["attempts"]
    assert attempt["outcome"] == "stalled"
    assert job["failures"] == 1


STUCK = """
import functools, sys, threading
from pathlib import Path
from service.jobs.states import Stage
from tests.unit.workers.small_workers import Service
from workers import watchdog
watchdog.LIMITS_S[Stage.COARSE], watchdog.LOOK_EVERY_S = 0.5, 0.05
service = Service(Path(sys.argv[1]))
worker = service.worker()
worker._engine.step = lambda: threading.Event().wait()
watchdog.Watchdog(lambda: worker.attempts, functools.partial(watchdog.give_up, service.store)).start()
worker.run()
"""
