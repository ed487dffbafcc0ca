"""A whole small service without HTTP and Ray: SQLite, local objects, an analytic prior, a tiny real reward."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from reward_models.contracts import RewardCard
from service.http.answers.jobs import Job
from service.jobs.admission import admit
from service.jobs.capabilities import PartFacts
from service.jobs.objects import open_object_store
from service.jobs.store import JobStore
from service.settings import Settings
from tests.unit.workers.small_scenes import PX, TinyReward
from workers.cameras import CameraRig
from workers.fields.voxel import VoxelField
from workers.networks import LoadedPrior, LoadedReward, Networks
from workers.priors.analytic import AnalyticPrior, disk_latents
from workers.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from workers.contracts import TrainedField

__all__ = ["Service", "Watched", "small_networks", "with_referee"]

CARD = RewardCard(
    name="embedded-multiview",
    value_range=None,
    scale="a convolution's mean answer",
    views=4,
    uses_prompt=False,
    differentiable=True,
    license="Apache-2.0",
    weights_sha256="0" * 64,
)


def small_networks(make_field: Callable[..., TrainedField] | None = None, reward: Any = None) -> Networks:
    """Networks whose scenes step in milliseconds."""

    def sample(prompt: str, generator: torch.Generator) -> torch.Tensor:
        return torch.rand(4, 3, PX, PX, generator=generator)

    prior = LoadedPrior(
        prior=_prior(),
        facts=PartFacts(weights="sha256:" + "1" * 64),
        rig=CameraRig(),
        make_field=make_field or (lambda device: VoxelField(coarse=12, fine=20, device=device)),
        mesh_cells=32,
        shading=None,
        warn=lambda prompt: {"prompt-truncated": "too long"} if len(prompt.split()) > 5 else {},
        sample=sample,
    )
    return Networks({"embedded": prior}, {CARD.name: LoadedReward(reward or TinyReward(), CARD)})


def with_referee(networks: Networks, referee: Any = None) -> Networks:
    """Add the referee that the embedded default has, by which jobs are admitted before a worker has spoken."""
    name = "embedded-alignment"
    held = LoadedReward(referee or TinyReward(), replace(CARD, name=name))
    return replace(networks, rewards={**networks.rewards, name: held})


def _prior() -> AnalyticPrior:
    """A prior that knows a red ball, and something so bright that its square is no number any more."""
    ball = disk_latents((0.9, 0.1, 0.1), 0.5, PX)
    return AnalyticPrior({"": ball, "red": ball, "supernova": torch.full_like(ball, 1e30)})


class Watched:
    """A real store, with something said before and after each of its calls: to count them, or to have faults."""

    def __init__(self, real: Any, **hooks: Callable[[str], None]) -> None:
        """`before` and `after` are called with the name of each method."""
        self._real = real
        self._before, self._after = hooks.get("before", _nothing), hooks.get("after", _nothing)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._real, name)

        def call(*arguments: Any, **keywords: Any) -> Any:
            self._before(name)
            answer = method(*arguments, **keywords)
            self._after(name)
            return answer

        return call


def _nothing(name: str) -> None:
    pass


class Service:
    """The stores of one folder, and workers on them."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        defaults: dict[str, Any] = {
            "report_interval_s": 0.05,
            "checkpoint_interval_s": 0.1,
            "torch_threads": 1,
        }
        self.settings = Settings(data_dir=folder, **(defaults | settings))
        self.store = JobStore(self.settings.database_url)
        self.objects = open_object_store(self.settings.objects_url)

    def submit(self, prompt: str = "red", **fields: Any) -> str:
        """Queue a job as a client would; its id."""
        small = {"seed": 7, "method": "sds", "steps": 30, "outputs": {"thumbnail": False}}
        small["mesh"] = {"target_faces": 500, "texture_px": 64}
        admitted = admit({"prompt": prompt} | small | fields, small_networks().capabilities(), self.settings)
        document, _ = self.store.submit(admitted.spec)
        return str(document["id"])

    def job(self, job_id: str) -> dict[str, Any]:
        """A job's document, as the API describes it."""
        document = self.store.get(job_id)
        assert document is not None
        Job.model_validate_json(json.dumps(document), strict=True, extra="forbid")
        return document

    def worker(
        self,
        name: str = "w",
        *,
        store: Any = None,
        objects: Any = None,
        load: Callable[[], Networks] = small_networks,
    ) -> Worker:
        """A worker of this service."""
        return Worker(name, store or self.store, objects or self.objects, load, self.settings)

    def run_until(self, done: Callable[[], bool], *workers: Worker, timeout_s: float = 240.0) -> None:
        """Let workers live until `done`, then drain them; raises what ended one of them."""
        errors: list[BaseException] = []

        def live(worker: Worker) -> None:
            try:
                worker.run()
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=live, args=[worker]) for worker in workers]
        for thread in threads:
            thread.start()
        pause = threading.Event()
        for _ in range(int(timeout_s / 0.02)):
            if errors or done():
                break
            pause.wait(0.02)
        else:
            errors.append(TimeoutError(f"not done within {timeout_s} s"))
        for worker in workers:
            worker.drain()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]

    def finish(self, *job_ids: str, workers: tuple[Worker, ...] = ()) -> list[dict[str, Any]]:
        """Run until these jobs have ended; their documents."""
        final = ("succeeded", "failed", "canceled")
        living = workers or (self.worker(),)
        self.run_until(lambda: all(self.job(one)["status"] in final for one in job_ids), *living)
        return [self.job(one) for one in job_ids]
