"""From an optimized scene to a published object: mesh, files, checks, scores, and where they all came from."""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import json
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from reward_models.contracts import PosedViews
from reward_models.ensemble import weighted_sum
from service.jobs.objects import artifact_key
from service.jobs.presets import preset_changes
from service.jobs.states import NewArtifact
from workers.cameras import orbit_cameras
from workers.mesh import (
    agreement,
    bake,
    extract,
    mesh_report,
    thumbnail,
    turntable,
    validate_glb,
    write_mesh,
)
from workers.priors.view_prompts import seen_prompts
from workers.render import render
from workers.steering import ENSEMBLE, ensemble_members, steering_reward

if TYPE_CHECKING:
    from collections.abc import Sequence

    from service.jobs.objects import ObjectStore
    from service.jobs.spec import JobSpec
    from service.jobs.states import Lease
    from workers.cameras import Cameras
    from workers.mesh import Mesh
    from workers.networks import LoadedPrior, Networks
    from workers.scene import Scene

__all__ = [
    "File",
    "NotStored",
    "export_mesh",
    "field_sha256",
    "glb_origin",
    "preview_file",
    "provenance",
    "report_file",
    "scores",
    "upload",
]

CONTENT_TYPES = {
    "glb": "model/gltf-binary",
    "obj": "model/obj",
    "ply": "application/octet-stream",
    "stl": "model/stl",
}
SCORED_PX = 256
"""The largest pictures that rewards are shown at the end: they look at 224 px or less."""
LOOK_PX, LOOK_SAMPLES, LOOK_ELEVATION_DEG = 96, 64, 15.0
"""How the field is rendered to be compared with its mesh: 8-bit differences are far below what matters here."""
POSED_VIEWS, POSED_PX, POSED_ELEVATIONS_DEG = 8, 64, (-15.0, 35.0)
"""How it is shown to rewards that want depth. In pixels much smaller than a field's soft surface is thick, two views of
one surface no longer meet: a sound object's 3D consistency is .9 at 64 px and .2 at 128 px."""


class File(NamedTuple):
    """A finished file, not stored yet."""

    kind: str
    name: str
    content_type: str
    content: bytes
    candidate: int | None = None
    """Index of the candidate whose it is; None for what is the whole job's."""


class NotStored(OSError):
    """The object store answered that all is well, but what it holds is not what was put."""


def export_mesh(
    scene: Scene, spec: JobSpec, loaded: LoadedPrior, origin: dict[str, Any] | None = None
) -> tuple[Mesh, list[File]]:
    """Turn a scene's field into a textured mesh and its files, the GLB first; raises `EmptyMesh`.

    `origin`, what `glb_origin` says, is kept in the GLB.
    """
    mesh = extract(scene.field, loaded.mesh_cells, spec.mesh.target_faces, scene.device)
    mesh = bake(mesh, scene.field, spec.mesh.texture_px, loaded.shading, scene.device)
    formats = dict.fromkeys(("glb", *spec.mesh.formats))  # the GLB is always among them
    said = {"dreamserve": origin} if origin else None
    files = [
        File(name, f"mesh.{name}", CONTENT_TYPES[name], write_mesh(mesh, name, said)) for name in formats
    ]
    if spec.outputs.thumbnail:
        files.append(File("thumbnail", "thumbnail.png", "image/png", thumbnail(mesh)))
    if spec.outputs.turntable:
        files.append(File("turntable", "turntable.webp", "image/webp", turntable(mesh)))
    return mesh, files


def verify_mesh(scene: Scene, mesh: Mesh, glb: bytes, loaded: LoadedPrior) -> dict[str, Any]:
    """Check the written GLB from its first byte to its last, and that it looks like its field; raises `InvalidGlb`."""
    report = validate_glb(glb)
    with torch.no_grad():
        ring = _ring(loaded, scene.device)
        views = render(scene.field, ring, LOOK_PX, LOOK_SAMPLES, occupied=scene.field.occupied)
    return mesh_report(mesh, report, agreement(mesh, views, loaded.shading))


def scores(scene: Scene, networks: Networks, spec: JobSpec, *, finished: bool = True) -> dict[str, Any]:
    """Score a field by the job's rewards: one entry of a result's `candidates`.

    What looks at renders with their depth costs more: unless it is the referee, it scores only a `finished` one.
    """
    loaded = networks.priors[spec.prior]
    ring = _ring(loaded, scene.device)
    px = min(loaded.prior.image_px, SCORED_PX)
    with torch.no_grad():
        views = render(scene.field, ring, px, scene.num_samples, occupied=scene.field.occupied)
        images = loaded.prior.composite(views)
    prompts, nothing = seen_prompts(spec.prompt, ring), torch.zeros(1, dtype=torch.bool)
    values = {}
    for name, held in networks.scoring(spec).items():
        second = held.as_override if name == getattr(spec.method, "override", None) else None
        answer = (second or held.reward).score(images, prompts, nothing).now().values
        if second is not None and bool(answer.isnan().any()):
            continue  # undecided about the result too
        values[name] = answer
    if steering_reward(spec) == ENSEMBLE:
        members = ensemble_members(spec)
        values[ENSEMBLE] = weighted_sum(members, [values[member.reward] for member in members])
    values |= {
        name: one.score_views(_posed_views(scene, loaded))
        for name, one in networks.views_rewards.items()
        if finished or name == spec.referee
    }
    by_name = {name: round(float(value.mean()), 6) for name, value in values.items()}
    referee = None
    if spec.referee is not None:
        referee = {"name": spec.referee, "score": by_name.pop(spec.referee)}
    return {"index": 0, "scores": by_name, "referee": referee, "kept": True}


def field_sha256(scene: Scene) -> str:
    """Digest the field's state: equal for two runs exactly when they ended with the same bits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(scene.field.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def provenance(spec: JobSpec, networks: Networks, *, alone: bool) -> dict[str, Any]:
    """Say where a result came from: code, weights, seed, and how exactly it can be made again.

    `alone`: no other scene shared the worker's engine.
    """
    held = networks.priors[spec.prior]
    shared = not alone or (networks.shares_rewards and spec.method.name != "sds")
    kind, threads = held.device.type, torch.get_num_threads()
    rule = f"bit-equal on a {kind} with {threads} thread(s) for a job with its worker and rewards to itself"
    company = "this one shared batches, which agrees within rounding" if shared else "this one had them"
    return {
        **glb_origin(spec, networks),
        "preset_changes": list(preset_changes(spec)),
        "torch": torch.__version__,
        "determinism": f"{rule}; {company}",
    }


def glb_origin(spec: JobSpec, networks: Networks) -> dict[str, Any]:
    """Say what a mesh was made of, the same for every run of a job: it goes into its GLB."""
    weights = {"prior": networks.priors[spec.prior].facts.weights}
    weights |= {
        f"reward:{name}": f"sha256:{reward.card.weights_sha256}"
        for name, reward in networks.scoring(spec).items()
        if reward.card.weights_sha256 is not None
    }
    return {
        "code": f"dreamserve {importlib.metadata.version('dreamserve')}",
        "preset": spec.preset,
        "prior": spec.prior,
        "method": spec.method.name,
        "seed": spec.seed,
        "weights": weights,
    }


def licenses(spec: JobSpec, networks: Networks) -> list[dict[str, str]]:
    """List the licenses of the weights that took part."""
    used = [{"name": spec.prior, "license": networks.priors[spec.prior].facts.license}]
    scoring = networks.scoring(spec).items()
    return used + [{"name": name, "license": held.card.license} for name, held in scoring]


def report_file(lease: Lease, result: dict[str, Any]) -> File:
    """Write everything that is known about a result as JSON, for whoever gets only the files."""
    report = {"job_id": lease.job_id, "spec": lease.spec.model_dump(mode="json"), **result}
    return File("report", "report.json", "application/json", json.dumps(report, indent=2).encode())


def preview_file(spec: JobSpec, networks: Networks) -> File:
    """Let the prior draw its views of a prompt, and lay them side by side in one PNG, four times enlarged."""
    loaded = networks.priors[spec.prior]
    if loaded.sample is None:
        raise ValueError(f"prior '{spec.prior}' draws no previews; choose effort 'draft' or 'full'")
    images = loaded.sample(spec.prompt, torch.Generator().manual_seed(spec.seed))
    pixels = (images.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    picture = Image.fromarray(np.concatenate(list(pixels.transpose(0, 2, 3, 1)), axis=1))
    png = io.BytesIO()
    picture.resize((4 * picture.width, 4 * picture.height), Image.Resampling.LANCZOS).save(png, format="PNG")
    return File("preview", "preview.png", "image/png", png.getvalue())


def upload(files: Sequence[File], lease: Lease, objects: ObjectStore) -> list[NewArtifact]:
    """Put files into the object store and read each back; raises `StoreUnavailable`, `NotStored`."""
    artifacts = []
    for file in files:
        key = artifact_key(lease.job_id, lease.attempt, file.name)
        expected = hashlib.sha256(file.content).hexdigest()
        objects.put(key, file.content, content_type=file.content_type)
        found = hashlib.sha256(objects.get(key)).hexdigest()
        if found != expected:
            raise NotStored(f"the object store holds sha256 {found} under {key}, expected {expected}")
        artifact = NewArtifact(
            file.kind, file.name, file.content_type, len(file.content), expected, key, file.candidate
        )
        artifacts.append(artifact)
    return artifacts


def _posed_views(scene: Scene, loaded: LoadedPrior) -> PosedViews:
    """Render the field with its depth from around, from below and from above in turn."""
    azimuth_deg = torch.arange(POSED_VIEWS, device=scene.device)[None] * (360 / POSED_VIEWS)
    elevation_deg = torch.tensor(POSED_ELEVATIONS_DEG, device=scene.device).repeat(POSED_VIEWS // 2)
    cameras = orbit_cameras(azimuth_deg, elevation_deg, loaded.rig.distance, loaded.rig.fov_y_deg)
    with torch.no_grad():
        views = render(scene.field, cameras, POSED_PX, LOOK_SAMPLES, occupied=scene.field.occupied)
    fov_y_deg = cameras.fov_y_deg.expand(1, POSED_VIEWS)
    return PosedViews(views.rgb, views.opacity, views.depth, cameras.c2w, fov_y_deg)


def _ring(loaded: LoadedPrior, device: torch.device) -> Cameras:
    """One group of four views around the object, seen a little from above."""
    azimuth_deg = torch.arange(4, device=device)[None] * 90.0
    elevation_deg = torch.tensor(LOOK_ELEVATION_DEG, device=device)
    return orbit_cameras(azimuth_deg, elevation_deg, loaded.rig.distance, loaded.rig.fov_y_deg)
