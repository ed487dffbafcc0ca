"""The command `dreamserve doctor`: all checks of an installation; here those that need torch, weights or Ray."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from dataclasses import asdict
from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import TYPE_CHECKING, Annotated

import typer

from service.client import DEFAULT_URL

if TYPE_CHECKING:
    from collections.abc import Iterator

    from packaging.requirements import Requirement

    from service.doctor import Checked
    from service.settings import Settings
    from workers.artifacts import Artifact

__all__ = ["check_gpu", "check_judge", "check_ray", "check_weights", "doctor", "ray_requirement"]

CONNECT_S = 10.0


def doctor(
    url: Annotated[
        str | None, typer.Option(help=f"Service whose metrics to read; default: {DEFAULT_URL}.")
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            envvar="RAY_ADDRESS", help="Ray cluster to look at: HOST:PORT, or auto for this machine's."
        ),
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder of the database, objects and weights.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Check this installation: GPU, weights, judge, stores, clock, workers, Ray, metrics; exit 1 if a check fails."""
    from service.settings import Settings

    settings = Settings() if data_dir is None else Settings(data_dir=data_dir)
    results = []
    for one in _checks(settings, url, address):
        results.append(one)
        if not as_json:
            _tell(one)
    failed = [one for one in results if one.status == "fail"]
    if as_json:
        typer.echo(json.dumps({"ok": not failed, "checks": [asdict(one) for one in results]}))
    raise typer.Exit(int(bool(failed)))


def _checks(settings: Settings, url: str | None, address: str | None) -> Iterator[Checked]:
    from service.doctor import check_database, check_metrics, check_objects, check_workers

    yield check_gpu(settings)
    yield from check_weights(settings)
    yield from check_judge(settings)
    yield from check_database(settings)
    yield from check_workers(settings)
    yield check_objects(settings)
    yield check_ray(settings, address)
    yield check_metrics((url or DEFAULT_URL).rstrip("/"), required=url is not None)


def _tell(one: Checked) -> None:
    typer.echo(f"{one.status:<8}{one.name:<10}{one.found}")
    if one.status == "fail":
        typer.echo(f"{'':18}expected: {one.expected}")
        typer.echo(f"{'':18}to do: {one.action}")


def check_gpu(settings: Settings) -> Checked:
    """Is there the GPU that the settings want, and does it compute?"""
    from service.doctor import Checked

    wanted = settings.device == "cuda" or settings.worker_gpus > 0
    try:
        import torch
    except ImportError:
        told = "torch is not installed here, as in the frontend's image; run this where workers run"
        return Checked("gpu", "skipped", told)
    if not torch.cuda.is_available():
        found = f"torch {torch.__version__} finds no GPU"
        if not wanted:
            return Checked("gpu", "ok", f"{found}, and none is wanted (DREAMSERVE_DEVICE={settings.device})")
        setting = "DREAMSERVE_DEVICE=cuda" if settings.device == "cuda" else "DREAMSERVE_WORKER_GPUS"
        action = (
            f"Install NVIDIA's driver and a torch with CUDA, give the container a GPU, or unset {setting}."
        )
        return Checked("gpu", "fail", found, f"a GPU, as {setting} says", action)
    name, (free, total) = torch.cuda.get_device_name(0), torch.cuda.mem_get_info(0)
    found = (
        f"{torch.cuda.device_count()} × {name}, {free / 2**30:.0f} of {total / 2**30:.0f} GiB free, CUDA "
        f"{torch.version.cuda}"
    )
    try:
        a = torch.ones(64, 64, device="cuda")
        product = float((a @ a).sum())
    except RuntimeError as error:
        action = "Choose a torch that was built for this GPU and driver."
        return Checked("gpu", "fail", f"{found}; {error}", "a matrix product", action)
    assert product == 64**3, f"the GPU computed {product}"
    if settings.reward_placement == "actor" and not settings.reward_gpu_share:
        found += "; shared rewards compute on the CPU, with DREAMSERVE_REWARD_PLACEMENT=local in each worker"
    return Checked("gpu", "ok", found)


def check_weights(settings: Settings) -> Iterator[Checked]:
    """Are the shipped weights, and those in the weights folder, the bytes that were shipped and imported?"""
    from service.doctor import Checked
    from workers.artifacts import imported_into
    from workers.weights import EMBEDDED_PRIOR, EMBEDDED_REWARDS

    shipped = (EMBEDDED_PRIOR, *EMBEDDED_REWARDS.values())
    damaged = [fault for file in shipped if (fault := shipped_fault(file))]
    if damaged:
        action = "Restore the shipped files, or make them anew with `make train-embedded`."
        yield Checked("weights", "fail", "; ".join(damaged), "the shipped files", action)
    else:
        yield Checked("weights", "ok", f"{len(shipped)} shipped networks, as their sha256 files say")
    folder = settings.weights_folder
    for artifact in imported_into(folder):
        yield _check_imported(artifact, folder)


def shipped_fault(file: Path) -> str | None:
    """Say what is wrong with a file that has its hash beside it; None when nothing is."""
    if not file.exists():
        return f"{file} is missing"
    expected = file.with_suffix(".sha256").read_text().split()[0]
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    return None if found == expected else f"{file} is damaged: sha256 {found}, expected {expected}"


def _check_imported(artifact: Artifact, folder: Path) -> Checked:
    from service.doctor import Checked
    from workers.artifacts import file_hashes, read_receipt

    again = "Import it again: dreamserve weights import PATH."
    where = artifact.folder(folder)
    if missing := artifact.missing(folder):
        return Checked(
            "weights", "fail", f"{artifact.name} in {where} needs {' and '.join(missing)}", "all files", again
        )
    noted = {name: one.sha256 for name, one in read_receipt(artifact, folder).items()}
    hashes = file_hashes(artifact, folder, trust_receipt=False)
    changed = [name for name, sha256 in hashes.items() if noted.get(name, sha256) != sha256]
    if changed:
        found = f"{artifact.name}: {' and '.join(changed)} in {where} changed since the import"
        return Checked("weights", "fail", found, "the imported bytes", again)
    kept = "as imported" if noted else "put there by hand: no hash to compare with"
    return Checked("weights", "ok", f"{artifact.name}, {len(hashes)} file(s), {kept}")


def check_judge(settings: Settings) -> Iterator[Checked]:
    """Is the local judge's folder, if one is named, whole, and are its weights the bytes that a worker has read?"""
    from reward_models.multimodal_folder import ORIGIN, faults, weight_files
    from service.doctor import Checked
    from workers.artifacts import hash_files, read_notes
    from workers.judges import NOTES

    folder = settings.judge_folder
    if folder is None:
        return
    if wrong := faults(folder):
        action = f"Fetch a whole folder of a Qwen2.5-VL (from {ORIGIN}, for example), or unset DREAMSERVE_JUDGE_FOLDER."
        yield Checked("judge", "fail", f"{folder}: {'; '.join(wrong)}", "a whole folder", action)
        return
    hashes = hash_files(folder, weight_files(folder), {})
    # A file of another size or time is another file, which workers read anew when they start.
    known = hash_files(folder, hashes, read_notes(settings.data_dir / NOTES))
    if changed := [name for name in hashes if hashes[name] != known[name]]:
        found = f"{' and '.join(changed)} in {folder} changed since a worker read it, but for size and time"
        yield Checked("judge", "fail", found, "the bytes that were read", "Fetch the folder anew.")
        return
    yield Checked("judge", "ok", f"{folder.name}, {len(hashes)} file(s) of weights, whole")


def ray_requirement() -> Requirement:
    """Read from our own package which Ray it was made for; raises `LookupError` when it is not installed."""
    from packaging.requirements import Requirement  # Ray brings it

    named = map(Requirement, importlib.metadata.requires("dreamserve") or ())
    return next(one for one in named if one.name == "ray")


def check_ray(settings: Settings, address: str | None, installed: str | None = None) -> Checked:
    """Is the installed Ray the right one, and does the cluster at `address` run the same?

    `installed` is its version, if not that of the installed package.
    """
    from service.doctor import Checked
    from workers.cluster import ClusterUnusable, WrongRay, look_at

    wanted = ray_requirement().specifier
    installed = installed or importlib.metadata.version("ray")
    if installed not in wanted:
        action = f"Install it: pip install 'ray[serve,train]{wanted}', in every image of the cluster."
        return Checked("ray", "fail", f"Ray {installed} is installed", f"Ray {wanted}", action)
    if address is None:
        told = f"Ray {installed} is installed; no cluster was named (--address, RAY_ADDRESS)"
        return Checked("ray", "ok", told)
    try:
        found = look_at(address, CONNECT_S)
    except WrongRay as error:
        return Checked("ray", "fail", str(error), f"Ray {installed}", "Build the images anew.")
    except ClusterUnusable as error:
        return Checked("ray", "fail", str(error), "a cluster that answers", "Start it, or correct --address.")
    pool = "the pool runs" if found.has_pool else "no pool runs (dreamserve pool starts it)"
    told = f"Ray {installed}: {found.nodes} node(s), {found.cpus:g} CPUs, {found.gpus:g} GPUs; {pool}"
    if found.nodes > 1 and settings.database_url.startswith("sqlite"):
        action = "Set DREAMSERVE_DATABASE_URL to a PostgreSQL database that all nodes reach."
        return Checked("ray", "fail", f"{told}; the database is a file of one node", "PostgreSQL", action)
    return Checked("ray", "ok", told)
