"""Bring published checkpoints into the weights folder: recognized by name, verified by loading, there as a whole.

An artifact's folder is replaced as a whole: a worker that looks finds what was there before, or all of the new, or (for
a moment, and after a crash in it) nothing; never a mixture.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import safetensors

from workers.artifacts import (
    ARTIFACTS,
    FOLDER_FILES,
    RETRAINED,
    file_hashes,
    fingerprint,
    read_receipt,
    write_receipt,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from workers.artifacts import Artifact

__all__ = ["Found", "Verified", "check_artifact", "import_files", "recognize"]


class Found(NamedTuple):
    """Files of an artifact, recognized somewhere."""

    artifact: Artifact
    sources: dict[str, Path]
    """Where each lies now, by its name in the artifact's folder."""


class Verified(NamedTuple):
    """What an import or a check has to tell."""

    name: str
    sha256: str | None
    """Of all its weights; None while files are missing."""
    missing: tuple[str, ...]
    unused: tuple[str, ...]
    """Tensors in the checkpoint that no network of ours has."""


def recognize(path: Path, name: str | None = None) -> list[Found]:
    """Tell which artifacts a file or a folder belongs to; `name` chooses among several.

    A file that several share (a vocabulary) belongs to all of them. Raises ValueError when it belongs to none, or
    nobody can tell to which.
    """
    known = ARTIFACTS | RETRAINED
    if name is not None and name not in known:
        raise ValueError(f"there is no artifact '{name}'; there are {', '.join(known)}")
    if not path.exists():
        raise ValueError(f"there is nothing at {path}; give the file or folder that was fetched")
    if path.is_file() and (retrained := RETRAINED.get(name or _reward_in(path))):
        return [Found(retrained, {retrained.files[0].name: path})]
    chosen = [known[name]] if name else list(ARTIFACTS.values())
    found = [Found(one, sources) for one in chosen if (sources := _sources(path, one))]
    if not found:
        what = (
            f"'{name}' needs {_names(known[name])}" if name else "`dreamserve weights list` names the files"
        )
        raise ValueError(
            f"{path.name} is no file or folder of a published network that is known here; {what}"
        )
    origins = {
        (file.name, file.origin) for one in found for file in one.artifact.files if file.name in one.sources
    }
    if len(found) > 1 and len(origins) > 1:
        names = ", ".join(one.artifact.name for one in found)
        raise ValueError(f"{path.name} may belong to {names}; say to which with --as NAME")
    return found


def _reward_in(path: Path) -> str:
    """Read which embedded reward a file holds, which it says itself whatever it is called; "" if it holds none."""
    try:
        with safetensors.safe_open(path, framework="np") as file:
            return str(json.loads(file.metadata()["embedded_reward"])["name"])
    except (OSError, safetensors.SafetensorError, TypeError, KeyError, ValueError):
        return ""


def _names(artifact: Artifact) -> str:
    return ", ".join(file.name for file in artifact.files)


def _sources(path: Path, artifact: Artifact) -> dict[str, Path]:
    """Find the files of an artifact at `path`, by their names in its folder."""
    if path.is_dir() and (path / "unet" / "config.json").is_file():
        return _folder_sources(path, artifact)
    if path.is_dir():
        found = [artifact.find(path, file.name) for file in artifact.files]
        files = [file for file in found if file] if found[0] else []
    else:
        choices = {choice for file in artifact.files for choice in artifact.choices(file.name)}
        files = [path] if path.name in choices else []
    if artifact.other_form:  # sizes that are not the published ones are said in a file beside the checkpoint
        files += [sidecar for file in files if (sidecar := file.with_suffix(".json")).is_file()]
    return {file.name: file for file in files}


def _folder_sources(path: Path, artifact: Artifact) -> dict[str, Path]:
    """Find the files of a diffusers folder, if it is of this artifact."""
    config = path / "unet" / "config.json"
    try:
        kind = "mvdream" if "model_channels" in json.loads(config.read_text()) else "stable-diffusion-2.1"
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"unet/{config.name} in {path} cannot be read as JSON ({error})") from error
    if kind != artifact.name:
        return {}
    found = {name: artifact.find(path, name) for name in FOLDER_FILES}
    if missing := [name for name, source in found.items() if source is None]:
        raise ValueError(f"the folder {path} is not whole: it misses {', '.join(missing)}")
    return {source.relative_to(path).as_posix(): source for source in found.values() if source}


def import_files(found: Found, weights: Path, *, link: bool = False) -> Verified:
    """Copy (or link to) an artifact's files in the weights folder, after they have proven to be what they should be.

    Raises ValueError naming the file, and the key, that is wrong; then the weights folder is as it was.
    """
    artifact, present = found.artifact, found.artifact.folder(weights)
    weights.mkdir(parents=True, exist_ok=True)
    stage = Path(tempfile.mkdtemp(prefix=".importing-", dir=weights))
    try:
        folder = artifact.folder(stage)
        for name, source in found.sources.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            if link:
                (folder / name).symlink_to(source.resolve())
            else:
                shutil.copy2(source, folder / name)
        for name, source in _kept(artifact, present, found.sources).items():
            shutil.copy2(source, folder / name, follow_symlinks=False)
        hashes = file_hashes(artifact, stage)
        done = _verify(artifact, stage, hashes)
        write_receipt(artifact, stage, hashes)
        if present.exists():
            os.replace(present, stage / "before")
        os.replace(folder, present)
        return done
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _kept(artifact: Artifact, folder: Path, sources: Mapping[str, Path]) -> dict[str, Path]:
    """Find what was imported before and stays: files of a reward that the new ones do not replace."""
    if artifact.kind == "prior":
        return {}
    others = [file.name for file in artifact.files if not sources.keys() & set(artifact.choices(file.name))]
    return {found.name: found for name in others if (found := artifact.find(folder, name))}


def check_artifact(artifact: Artifact, weights: Path) -> Verified:
    """Verify an artifact that lies in the weights folder: hashes against its receipt, layout by loading it.

    Raises ValueError naming the file, and the key, that is wrong.
    """
    noted, hashes = read_receipt(artifact, weights), file_hashes(artifact, weights, trust_receipt=False)
    for name, sha256 in hashes.items():
        if name in noted and noted[name].sha256 != sha256:
            raise ValueError(
                f"{name} has changed since its import (its SHA-256 is {sha256}, it was {noted[name].sha256}): "
                "import it again"
            )
    return _verify(artifact, weights, hashes)


def _verify(artifact: Artifact, weights: Path, hashes: dict[str, str]) -> Verified:
    """Load an artifact if it is whole; else see at least that its files can be read."""
    for file in artifact.files:
        if file.sha256 and hashes.get(file.name, file.sha256) != file.sha256:
            raise ValueError(
                f"{file.name} is not the published file (its SHA-256 is {hashes[file.name]}, that one's "
                f"{file.sha256}): fetch it anew from {file.origin}"
            )
    if missing := artifact.missing(weights):
        for name in hashes:
            if Path(name).suffix not in (".txt", ".json"):
                _readable(artifact.folder(weights) / name)
        return Verified(artifact.name, None, tuple(missing), ())
    sha256, unused = _load(artifact, weights)
    if sha256 != fingerprint(artifact, hashes):
        raise ValueError(f"the files of '{artifact.name}' changed while they were read; try again")
    return Verified(artifact.name, sha256, (), unused)


def _readable(path: Path) -> None:
    from workers.priors.weight_files import read_tensors

    read_tensors(path)


def _load(artifact: Artifact, weights: Path) -> tuple[str, tuple[str, ...]]:
    """Load a network and let it go: the hash of its weights, and the tensors that it has no use for."""
    if artifact.kind == "prior":
        from workers.published_priors import load_prior

        prior = load_prior(artifact.name, weights)
        return prior.sha256, getattr(prior, "unused_tensors", ())
    from workers.weights import load_reward

    return load_reward(artifact.name, weights).card.weights_sha256 or "", ()
