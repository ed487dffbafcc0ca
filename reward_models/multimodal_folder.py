"""The published folder of a Qwen2.5-VL: what belongs to it, whether it is whole, what it may be used for.

Reads a few kilobytes of it and needs no torch.
"""

from __future__ import annotations

import json
import re
import struct
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["INDEX", "MODEL_TYPE", "ORIGIN", "faults", "license_of", "weight_files"]

MODEL_TYPE = "qwen2_5_vl"
ORIGIN = "Qwen/Qwen2.5-VL-7B-Instruct"
"""The repository of one such folder; there are others, larger, smaller, and trained further."""
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
LICENSES = {"apache-2.0": "Apache-2.0", "mit": "MIT"}
"""From the names of a model's page to those of SPDX. What is not listed is nobody's word to us."""
MOST_HEADER_BYTES = 100_000_000
"""Of a .safetensors file, which allows no more."""


def weight_files(folder: Path) -> list[str]:
    """Name the files of the weights, whether they are there or not; empty where nothing names any."""
    if (folder / INDEX).is_file():
        return sorted(set(_weight_map(folder).values()))
    return [SINGLE] if (folder / SINGLE).is_file() else []


def faults(folder: Path) -> list[str]:
    """Say what is missing or wrong, naming file and key; empty for a folder that is whole."""
    if not folder.is_dir():
        return [f"the folder {folder.name} is not there"]
    found = [
        f"{name} is missing" for name in ("config.json", "tokenizer.json") if not (folder / name).is_file()
    ]
    try:
        if (folder / "config.json").is_file():
            kind = _object(folder / "config.json").get("model_type")
            if kind != MODEL_TYPE:
                found.append(f"config.json is that of a {kind!r}, expected a {MODEL_TYPE!r}")
        names, owners = weight_files(folder), _weight_map(folder) if (folder / INDEX).is_file() else {}
    except ValueError as error:
        return [*found, str(error)]
    if not names:
        found.append(f"{SINGLE} is missing, and so is {INDEX} of several files")
    for name in names:
        found += _file_faults(folder / name, [key for key, owner in owners.items() if owner == name])
    return found


def license_of(folder: Path) -> str:
    """Read the SPDX name of the license from the head of the folder's README.md; NOASSERTION if that names none."""
    try:
        head = (folder / "README.md").read_text("utf-8", "replace").split("\n---", 1)[0]
    except OSError:
        return "NOASSERTION"
    said = re.search(r"^license:\s*(\S+)\s*$", head, re.MULTILINE) if head.startswith("---") else None
    return LICENSES.get(said[1].lower(), "NOASSERTION") if said else "NOASSERTION"


def _file_faults(path: Path, keys: list[str]) -> list[str]:
    """Compare a .safetensors file with its own header, and with the tensors that the index puts into it."""
    if not path.is_file():
        return [f"{path.name} is missing"]
    size = path.stat().st_size
    with path.open("rb") as file:
        length = struct.unpack("<Q", file.read(8))[0] if size >= 8 else 0
        head = file.read(length) if 0 < length <= min(MOST_HEADER_BYTES, size) else b""
    try:
        tensors = {name: one for name, one in json.loads(head).items() if name != "__metadata__"}
        expected = 8 + length + max((one["data_offsets"][1] for one in tensors.values()), default=0)
    except (ValueError, LookupError, TypeError, AttributeError):
        return [f"{path.name} has no header of a .safetensors file, or is cut short in it"]
    if size != expected:
        return [f"{path.name} has {size} bytes, expected {expected}: it is cut short or damaged"]
    lost = [key for key in keys if key not in tensors]
    return [f"{path.name} has no tensor {lost[0]!r}, which {INDEX} puts there"] if lost else []


def _weight_map(folder: Path) -> dict[str, str]:
    """Which file holds which tensor; raises ValueError."""
    found = _object(folder / INDEX).get("weight_map")
    # A name is never a path: nothing outside the folder is read.
    if not isinstance(found, dict) or not all(
        re.fullmatch(r"[\w.-]+\.safetensors", str(one)) for one in found.values()
    ):
        raise ValueError(f"{INDEX} does not say which .safetensors file holds which tensor")
    return found


def _object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path.name} is no JSON file: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path.name} is no JSON object")
    return found
