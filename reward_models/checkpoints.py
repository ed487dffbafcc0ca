"""Published checkpoint files: read them, put them into our networks without a gap, and write them back.

A *layout* says for each of our tensors where it lies in the file: a key, perhaps one third of it (CLIP stores
query, key and value as one tensor), perhaps transposed. Everything that does not fit is an error that names file and
key: nothing is left at random values, and nothing in the file is ignored but what the layout's owner names.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import safetensors
import safetensors.torch
import torch

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

__all__ = [
    "Checkpoint",
    "Layout",
    "Place",
    "export_state",
    "import_state",
    "read_checkpoint",
    "write_checkpoint",
]

METADATA_KEY = "dreamserve_reward"


class Place(NamedTuple):
    """Where one of our tensors lies in a published file."""

    key: str
    third: int | None = None
    """Which third of the tensor's rows it is."""
    transposed: bool = False


Layout = Callable[[str], Place]
"""From one of our tensors' names to its place in the file."""


@dataclass(frozen=True)
class Checkpoint:
    """A weights file in memory."""

    file: str
    tensors: Mapping[str, Tensor]
    sha256: str | None = None
    facts: Mapping[str, Any] | None = None
    """What a file that this project wrote says about its network; `None` for published files."""


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a .safetensors file or a torch file (a state dict, or one under the key "state_dict").

    Raises ValueError, naming the file, when it is not there, damaged or of another kind. Code in a file never runs.
    """
    if not path.is_file():
        raise ValueError(f"{path} is not there: put the weights file there, or correct the path")
    facts = None
    tensors: Any
    try:
        if path.suffix == ".safetensors":
            with safetensors.safe_open(path, framework="pt") as file:
                facts = (file.metadata() or {}).get(METADATA_KEY)
            tensors = safetensors.torch.load_file(path)
        else:
            tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, safetensors.SafetensorError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{path.name} cannot be read as a weights file ({reason}). Fetch it anew; of a TorchScript archive or a "
            "pickled module take the .safetensors version"
        ) from error
    if isinstance(tensors, dict) and "state_dict" in tensors:
        tensors = tensors["state_dict"]
    if not isinstance(tensors, dict) or not all(
        isinstance(tensor, torch.Tensor) for tensor in tensors.values()
    ):
        raise ValueError(
            f"{path.name} holds no state dict: expected tensors by name, or those under 'state_dict'"
        )
    return Checkpoint(path.name, tensors, _sha256(path), None if facts is None else json.loads(facts))


def write_checkpoint(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write tensors in a published layout as .safetensors, with JSON `facts` that `read_checkpoint` gives back."""
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    partial = path.with_name(path.name + ".partial")
    safetensors.torch.save_file(whole, partial, {METADATA_KEY: json.dumps(facts)})
    partial.replace(path)


def import_state(module: nn.Module, checkpoint: Checkpoint, layout: Layout, ignore: str = "$^") -> None:
    """Fill `module` with a checkpoint's tensors as fp32; it may have been built on the meta device.

    Keys of the file that match the regular expression `ignore` as a whole may be there. Raises ValueError naming the
    file and the first key of each kind: missing, unknown, of a wrong shape.
    """
    state: dict[str, Tensor] = {}
    missing: list[str] = []
    misshapen: list[str] = []
    used: set[str] = set()
    for name, wanted in module.state_dict().items():
        place = layout(name)
        used.add(place.key)
        tensor = _taken(checkpoint.tensors, place)
        if tensor is None:
            missing.append(place.key)
        elif tensor.shape != wanted.shape:
            whole = tuple(checkpoint.tensors[place.key].shape)
            misshapen.append(f"{place.key}, which is {whole} where {_whole_shape(wanted, place)} is expected")
        else:
            # A copy: the file may be mapped into memory, and may be replaced while this network lives.
            state[name] = tensor.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    unknown = [key for key in checkpoint.tensors if key not in used and not re.fullmatch(ignore, key)]
    _complain(checkpoint.file, {"misses": missing, "has unknown": unknown, "has misshapen": misshapen})
    module.load_state_dict(state, assign=True)
    _fill_positions(module)


def export_state(module: nn.Module, layout: Layout) -> dict[str, Tensor]:
    """Give the tensors of `module` in the published layout: what `import_state` takes."""
    parts: dict[str, dict[int, Tensor]] = {}
    for name, tensor in module.state_dict().items():
        place = layout(name)
        parts.setdefault(place.key, {})[place.third or 0] = tensor.T if place.transposed else tensor
    return {
        key: pieces[0] if len(pieces) == 1 else torch.cat([pieces[n] for n in range(3)])
        for key, pieces in parts.items()
    }


def _taken(tensors: Mapping[str, Tensor], place: Place) -> Tensor | None:
    tensor = tensors.get(place.key)
    if tensor is None:
        return None
    if place.third is not None and tensor.ndim and tensor.shape[0] % 3 == 0:
        tensor = tensor.chunk(3)[place.third]
    return tensor.T if place.transposed and tensor.ndim == 2 else tensor


def _whole_shape(ours: Tensor, place: Place) -> tuple[int, ...]:
    shape = tuple(reversed(ours.shape)) if place.transposed else tuple(ours.shape)
    return shape if place.third is None else (3 * shape[0], *shape[1:])


def _complain(file: str, kinds: Mapping[str, list[str]]) -> None:
    lists = {what: list(dict.fromkeys(keys)) for what, keys in kinds.items() if keys}
    if lists:
        found = "; it ".join(
            f"{what} {len(keys)} tensor{'s' * (len(keys) > 1)}, first {keys[0]}"
            for what, keys in lists.items()
        )
        raise ValueError(
            f"{file} does not fit this reward: it {found}. Take the file published for this reward"
        )


def _fill_positions(module: nn.Module) -> None:
    """Make the position counters 0, 1, … of transformers' embeddings, which no checkpoint holds."""
    for part in module.modules():
        for name, buffer in part.named_buffers(recurse=False):
            if buffer.is_meta:
                assert name == "position_ids", f"a buffer {name} is in no checkpoint and is no counter"
                part.register_buffer(name, torch.arange(buffer.shape[1])[None], persistent=False)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
