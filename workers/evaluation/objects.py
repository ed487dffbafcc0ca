"""Make one object whose truth is known, the way of a real job, and measure the finished GLB."""

from __future__ import annotations

import io
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import trimesh

from service.jobs.admission import admit
from service.settings import Settings
from workers.cameras import orbit_cameras
from workers.embedded.captions import plain_caption
from workers.embedded.dataset import CAMERA_DISTANCE, CAMERA_FOV_Y_DEG
from workers.embedded.judge import Surface, Verdict, judge
from workers.embedded.truth import Truth
from workers.engine import Engine
from workers.evaluation.oracle import Oracle, WatchedRig
from workers.mesh import Mesh, rasterize
from workers.methods import make_method
from workers.opening import make_scene
from workers.publish import export_mesh, scores

if TYPE_CHECKING:
    from collections.abc import Callable

    from service.jobs.spec import JobSpec
    from workers.embedded.world import Description
    from workers.evaluation.arms import Case
    from workers.networks import Networks
    from workers.scene import Scene

__all__ = [
    "Finished",
    "make_object",
    "open_scene",
    "optimize",
    "oracle_of",
    "silhouette_iou",
    "surface_of_glb",
]

SURFACE_POINTS = 8000


class Finished(NamedTuple):
    """A finished object and everything that was measured on it."""

    verdict: Verdict
    numbers: dict[str, float]
    """silhouette_iou, one score per reward, seconds."""
    files: dict[str, bytes]
    """By kind: "glb", "thumbnail"."""


def surface_of_glb(glb: bytes, seed: int = 0) -> Surface:
    """Draw points with their colors from a GLB's surface, as any reader of the file sees it."""
    mesh: Any = trimesh.load(io.BytesIO(glb), file_type="glb", force="mesh")
    points, faces = trimesh.sample.sample_surface(mesh, SURFACE_POINTS, seed=seed)
    weights = trimesh.triangles.points_to_barycentric(mesh.triangles[faces], points)
    uv = np.einsum("nc,ncd->nd", weights, mesh.visual.uv[mesh.faces[faces]])
    texture = np.asarray(mesh.visual.material.baseColorTexture.convert("RGB"))
    height, width = texture.shape[:2]
    column = np.clip(uv[:, 0] * width, 0, width - 1).astype(int)
    row = np.clip((1 - uv[:, 1]) * height, 0, height - 1).astype(int)
    return Surface(np.asarray(points), texture[row, column].astype(float))


def make_object(case: Case, networks: Networks, watch: Callable[[Scene], None] | None = None) -> Finished:
    """Optimize one case alone; `watch` sees the scene after every step."""
    started, cpu_started = time.monotonic(), time.process_time()
    spec, scene = open_scene(case, networks)
    if case.arm.oracle:
        scene.method = make_method(spec.method, oracle_of(scene, case.description))
    optimize(scene, watch)
    optimized = time.process_time()
    mesh, files = export_mesh(scene, spec, networks.priors[spec.prior])
    numbers = {
        "wall_s": time.monotonic() - started,
        "cpu_s": time.process_time() - cpu_started,
        "optimization_cpu_s": optimized - cpu_started,
        "silhouette_iou": silhouette_iou(mesh, case.description),
    }
    candidate = scores(scene, networks, spec)
    numbers |= {f"score:{name}": score for name, score in candidate["scores"].items()}
    if candidate["referee"] is not None:
        numbers["score:" + candidate["referee"]["name"]] = candidate["referee"]["score"]
    by_kind = {file.kind: file.content for file in files}
    return Finished(judge(surface_of_glb(by_kind["glb"]), case.description), numbers, by_kind)


def open_scene(case: Case, networks: Networks) -> tuple[JobSpec, Scene]:
    """Set up step 0 of a case as a job that asks for it would be."""
    body = {"prompt": plain_caption(case.description), "seed": case.seed, "steps": case.arm.steps}
    body |= {"method": case.arm.method} | ({} if networks.rewards else {"rewards": []})
    spec = admit(body, networks.capabilities(), Settings(reward_placement="local")).spec
    return spec, make_scene(spec, networks)


def oracle_of(scene: Scene, description: Description) -> Oracle:
    """Make the oracle of a scene, whose rig from now on lets it know from where it looks."""
    rig = scene.rig = WatchedRig(**asdict(scene.rig))
    return Oracle(description, rig)


def optimize(scene: Scene, watch: Callable[[Scene], None] | None = None) -> None:
    """Take all steps of a scene, alone in an engine; raises what stopped it."""
    engine = Engine()
    engine.admit(scene)
    while not scene.finished:
        for outcome in engine.step():
            if outcome.error is not None:
                raise outcome.error
        if watch is not None:
            watch(scene)


def silhouette_iou(mesh: Mesh, description: Description) -> float:
    """Mean over eight views of the IoU of mesh and truth, 64 × 64 pixels; the truth stands where the words put it."""
    azimuth_deg, elevation_deg = torch.arange(8) * 45.0, torch.tensor([0.0, 30.0, -20.0, 60.0] * 2)
    cameras = orbit_cameras(azimuth_deg, elevation_deg, CAMERA_DISTANCE, CAMERA_FOV_Y_DEG)
    seen = rasterize(mesh, cameras, 64).mask[:, 0] > 0.5
    true = Truth(description).mask(cameras, 64)
    both, either = (seen & true).sum((1, 2)), (seen | true).sum((1, 2))
    return float((both / either.clamp(min=1)).mean())
