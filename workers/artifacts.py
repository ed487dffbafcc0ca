"""The networks to import: which files each needs, under which license, and where they lie. No torch is needed to ask.

An artifact's files lie in a folder of its own name in the operator's weights folder, where `dreamserve weights import`
puts them (`weights_import.py`). What rewards need is said by `reward_models/published.py`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from reward_models.published import PUBLISHED, PublishedFile

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from reward_models.published import PublishedRewardName

__all__ = [
    "ARTIFACTS",
    "FOLDER_FILES",
    "FOLDER_WEIGHTS",
    "RETRAINED",
    "Artifact",
    "commercial_use",
    "file_hashes",
    "fingerprint",
    "hash_files",
    "imported_into",
    "notes",
    "read_notes",
    "read_receipt",
    "retrained_in",
    "write_receipt",
]

RECEIPT: Final = "receipt.json"
"""What an import writes beside the files: their sizes, times and hashes."""
FOLDER_WEIGHTS: Final = (
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.fp16.safetensors",
    "diffusion_pytorch_model.bin",
    "model.safetensors",
    "model.fp16.safetensors",
    "pytorch_model.bin",
)
"""What the weights of a part of a diffusers folder may be called (as `priors/diffusers_folder.py` looks for them)."""
_PARTS_OF_FOLDER: Final = ("text_encoder", "unet", "vae")

COMMERCIAL_USE: Final = {
    "Apache-2.0": True,
    "MIT": True,
    "OpenRAIL": True,  # with its restrictions on use, which go with the weights
    "CreativeML-OpenRAIL++-M": True,  # the same
    "NOASSERTION": False,  # nobody has said so
}
"""Which licenses allow commercial use; one that is not listed does not."""


def commercial_use(license_: str) -> bool:
    """Tell whether an SPDX expression of names and AND allows commercial use."""
    return all(COMMERCIAL_USE.get(name, False) for name in license_.split(" AND "))


@dataclass(frozen=True, slots=True)
class Artifact:
    """A published prior or reward, or a retrained one: the name that jobs use is that of its folder."""

    name: str
    kind: Literal["prior", "reward"]
    files: tuple[PublishedFile, ...]
    """What it needs, the weights first."""
    license: str
    size: str
    """What the weights take on disk, as published."""
    views: int | None = None
    """How many views it denoises or scores together; None for any number, one by one."""
    uses_prompt: bool = True
    needs_clip_vocabulary: bool = False
    other_form: tuple[str, ...] = ()
    """Files of a diffusers folder that do as well as `files`."""

    @property
    def commercial_ok(self) -> bool:
        """Whether its license allows commercial use."""
        return commercial_use(self.license)

    def folder(self, weights: Path) -> Path:
        """Where its files lie in the weights folder."""
        return weights / self.name

    def path(self, weights: Path) -> Path:
        """What its loader takes: a prior's checkpoint, or its folder; a reward's folder."""
        folder = self.folder(weights)
        if not self.other_form:
            return folder
        return self.find(folder, self.files[0].name) or folder

    def present(self, weights: Path) -> list[Path]:
        """List the files that are there of those that it needs, in one of its forms."""
        folder = self.folder(weights)
        if self._lacks(folder, [file.name for file in self.files]) and self._whole_folder(folder):
            return [found for name in self.other_form if (found := self.find(folder, name))]
        return [found for file in self.files if (found := self.find(folder, file.name))]

    def missing(self, weights: Path) -> list[str]:
        """Say what is not there and where it comes from; empty if it can be loaded."""
        folder = self.folder(weights)
        absent = [str(file) for file in self.files if self.find(folder, file.name) is None]
        if absent and self._whole_folder(folder):
            absent = []
        if self.needs_clip_vocabulary and importlib.util.find_spec("clip") is None:
            absent.append("CLIP's vocabulary (`pip install --no-deps clip-anytorch`)")
        return absent

    def how(self) -> str:
        """Say how an operator gets it."""
        origins = " and ".join(dict.fromkeys(file.origin for file in self.files))
        return (
            f"Fetch it from {origins} (license {self.license}), run `dreamserve weights import PATH` "
            "on the workers' machine, and restart the workers."
        )

    def _whole_folder(self, folder: Path) -> bool:
        return bool(self.other_form) and not self._lacks(folder, self.other_form)

    def _lacks(self, folder: Path, names: Iterable[str]) -> bool:
        return any(self.find(folder, name) is None for name in names)

    def choices(self, name: str) -> list[str]:
        """Say what a file that it needs may be called: as published, in safetensors' format, or as its part allows."""
        path = Path(name)
        if path.name in FOLDER_WEIGHTS and path.parent.name in _PARTS_OF_FOLDER:
            return [(path.parent / other).as_posix() for other in FOLDER_WEIGHTS]
        converted = path.with_suffix(".safetensors").as_posix()
        return [name, converted] if path.suffix in (".pt", ".pth") else [name]

    def find(self, folder: Path, name: str) -> Path | None:
        """Find a file that it needs in a folder, under one of its names."""
        return next((path for choice in self.choices(name) if (path := folder / choice).is_file()), None)


FOLDER_FILES = (
    "unet/diffusion_pytorch_model.safetensors",
    "unet/config.json",
    "vae/diffusion_pytorch_model.safetensors",
    "vae/config.json",
    "text_encoder/model.safetensors",
    "text_encoder/config.json",
    "scheduler/scheduler_config.json",
)

_PRIORS = (
    Artifact(
        "mvdream",
        "prior",
        (PublishedFile("sd-v2.1-base-4view.pt", "MVDream/MVDream"),),
        license="OpenRAIL AND CreativeML-OpenRAIL++-M",  # its own, and that of Stable Diffusion 2.1 within
        size="5.22 GB",
        views=4,
        needs_clip_vocabulary=True,
        other_form=FOLDER_FILES,
    ),
    Artifact(
        "stable-diffusion-2.1",
        "prior",
        tuple(PublishedFile(name, "stabilityai/stable-diffusion-2-1-base") for name in FOLDER_FILES),
        license="CreativeML-OpenRAIL++-M",
        size="5.2 GB",
        views=1,
        needs_clip_vocabulary=True,
    ),
)

_REWARD_SIZES: dict[PublishedRewardName, str] = {
    "imagereward": "1.79 GB",
    "reward3d": "1.79 GB",
    "reward3d-crossview": "1.8 GB",
    "hpsv2": "2–4 GB",
    "hpsv2.1": "2–4 GB",
    "pickscore": "3.9 GB",
    "clip": "1.7 GB",
    "aesthetic": "3.7 MB + 1.7 GB",
}
"""On disk, of all files. Source: number of weights times their bytes, or the pages that publish them."""


def _reward(name: PublishedRewardName) -> Artifact:
    published = PUBLISHED[name]
    return Artifact(
        name,
        "reward",
        published.files,
        published.license,
        _REWARD_SIZES[name],
        views=4 if name.startswith("reward3d") else None,
        uses_prompt=name != "aesthetic",
        needs_clip_vocabulary=not any(file.name == "vocab.txt" for file in published.files)
        and name != "aesthetic",
    )


ARTIFACTS: dict[str, Artifact] = {one.name: one for one in (*_PRIORS, *map(_reward, PUBLISHED))}
"""All published priors and rewards that this release can load."""
RETRAINED: dict[str, Artifact] = {
    name: Artifact(
        name,
        "reward",
        (PublishedFile(f"{name}-reward.safetensors", "`dreamserve reward train`"),),
        license="NOASSERTION",
        size="1.1 MB",
        views=views,
    )
    for name, views in (("embedded-multiview", 4), ("embedded-alignment", None))
}
"""Embedded rewards that were trained further: imported, each takes the place of the shipped one."""


def retrained_in(weights: Path) -> list[Artifact]:
    """List the retrained rewards of a weights folder; one whose folder has lost its file is among them."""
    return [one for one in RETRAINED.values() if one.folder(weights).exists()]


def imported_into(weights: Path) -> list[Artifact]:
    """List what was imported into a weights folder, whole or not."""
    return [one for one in ARTIFACTS.values() if one.present(weights)] + retrained_in(weights)


class Noted(NamedTuple):
    """A file as it was when it was imported."""

    size_bytes: int
    mtime_ns: int
    sha256: str


def read_receipt(artifact: Artifact, weights: Path) -> dict[str, Noted]:
    """Read what an import has noted of an artifact's files; nothing if there is no receipt that can be read."""
    return read_notes(artifact.folder(weights) / RECEIPT)


def read_notes(path: Path) -> dict[str, Noted]:
    """Read what was noted of files; nothing if that cannot be read."""
    try:
        found = json.loads(path.read_text())["files"]
        return {name: Noted(**noted) for name, noted in found.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}  # then every file is read


def write_receipt(artifact: Artifact, weights: Path, hashes: dict[str, str]) -> None:
    """Note the files of an artifact beside them."""
    folder = artifact.folder(weights)
    files = notes(folder, hashes)
    receipt = {"artifact": artifact.name, "license": artifact.license, "files": files}
    (folder / RECEIPT).write_text(json.dumps(receipt, indent=1))


def notes(folder: Path, hashes: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Say what `read_notes` reads: size, time and hash of files, by name."""
    stats = {name: (folder / name).stat() for name in hashes}
    return {
        name: Noted(stat.st_size, stat.st_mtime_ns, hashes[name])._asdict() for name, stat in stats.items()
    }


def file_hashes(artifact: Artifact, weights: Path, *, trust_receipt: bool = True) -> dict[str, str]:
    """Give the SHA-256 of each file that an artifact needs and has, by its name in its folder.

    What its receipt says holds as long as a file's size and time are those of its import.
    """
    folder = artifact.folder(weights)
    names = [path.relative_to(folder).as_posix() for path in artifact.present(weights)]
    return hash_files(folder, names, read_receipt(artifact, weights) if trust_receipt else {})


def hash_files(folder: Path, names: Iterable[str], known: Mapping[str, Noted]) -> dict[str, str]:
    """Give the SHA-256 of files by name, reading those that are not as they are `known`."""
    hashes = {}
    for name in names:
        path, noted = folder / name, known.get(name)
        stat = path.stat()
        if noted and (noted.size_bytes, noted.mtime_ns) == (stat.st_size, stat.st_mtime_ns):
            hashes[name] = noted.sha256
        else:
            with path.open("rb") as file:
                hashes[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashes


def fingerprint(artifact: Artifact, hashes: dict[str, str]) -> str:
    """Make one SHA-256 of those of its weights: what the network itself names when it is loaded.

    A single file's is its own; those of a diffusers folder are joined as `sha256sum` prints them, those of a reward
    that has two (the aesthetic head and its CLIP) line by line.
    """
    weights = {name: one for name, one in hashes.items() if Path(name).suffix not in (".txt", ".json")}
    if len(weights) == 1:
        return next(iter(weights.values()))
    if artifact.kind == "reward":
        return hashlib.sha256("\n".join(weights.values()).encode()).hexdigest()
    lines = [f"{weights[name]}  {Path(name).name}\n" for name in sorted(weights)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
