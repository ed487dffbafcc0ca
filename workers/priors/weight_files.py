"""Reading published weights: safely, strictly, and with errors that name the file and the key.

A checkpoint is loaded as a whole or not at all: every tensor is checked before the first one is put into a network.
"""

from __future__ import annotations

import hashlib
import json
import pickle
from typing import TYPE_CHECKING, Any, NamedTuple

import safetensors
import safetensors.torch
import torch

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from torch import Tensor, nn

__all__ = ["Target", "checked_tensors", "digest", "fill", "read_json", "read_tensors", "taken"]

SHOWN_KEYS = 5
"""How many keys an error lists before it says how many more there are."""


class Target(NamedTuple):
    """Where weights go, and as what."""

    device: torch.device
    dtype: torch.dtype

    @classmethod
    def of(cls, device: torch.device | str, dtype: torch.dtype | None = None) -> Target:
        """Choose the type by the device unless it is given: float32 on the CPU, bfloat16 elsewhere."""
        device = torch.device(device)
        return cls(device, dtype or (torch.float32 if device.type == "cpu" else torch.bfloat16))

    def place(self, tensor: Tensor) -> Tensor:
        """Bring a tensor there; the weights of convolutions in the order that tensor cores like."""
        placed = tensor.to(self.device, self.dtype)
        last = tensor.ndim == 4 and self.device.type == "cuda"
        return placed.to(memory_format=torch.channels_last) if last else placed


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read tensors by name from a safetensors file, or from a pickled one (.pt, .bin, .ckpt) without running its code.

    Raises ValueError when the file is missing, truncated, holds anything but tensors, or a number that is not finite.
    """
    if not path.is_file():
        raise ValueError(f"there is no file {path.name} in {path.parent}; put the published file there")
    try:
        if path.suffix == ".safetensors":
            found: Any = safetensors.torch.load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, pickle.UnpicklingError, safetensors.SafetensorError) as error:
        reason = str(error).split("\n")[0]
        raise ValueError(
            f"{path.name} cannot be read as weights ({reason}); it may be truncated or another kind of file: "
            "download it again and compare its size and SHA-256 with the published ones"
        ) from error
    if isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
        found = found["state_dict"]
    if not isinstance(found, dict):
        raise ValueError(f"{path.name} holds a {type(found).__name__}, expected tensors by name")
    tensors = {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        raise ValueError(f"{path.name} holds no tensors; it is not a checkpoint of a network")
    return tensors


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; raises ValueError, naming the file, when it is missing or no JSON object."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path.parent.name}/{path.name} cannot be read as JSON ({error})") from error
    if not isinstance(found, dict):
        raise ValueError(
            f"{path.parent.name}/{path.name} holds a {type(found).__name__}, expected a JSON object"
        )
    return found


def taken(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names start with `prefix`, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def checked_tensors(
    network: nn.Module, tensors: Mapping[str, Tensor], names: Mapping[str, str], source: str
) -> dict[str, Tensor]:
    """Rename published tensors to what `network` calls them; `names` goes from published to ours and is one-to-one.

    A 1 × 1 convolution's weight is taken for a linear layer. Raises ValueError, naming `source` and the keys, when
    tensors are missing, are unexpected, have another shape, or hold a number that is not finite.
    """
    wanted = network.state_dict()
    assert set(names.values()) == set(wanted), "the key map must name every tensor of the network once"
    _refuse(source, "misses", set(names) - set(tensors))
    _refuse(source, "has unexpected", set(tensors) - set(names))
    found = {}
    for published, ours in names.items():
        tensor, shape = tensors[published], wanted[ours].shape
        if tensor.shape != shape and tensor.shape != (*shape, 1, 1):
            raise ValueError(
                f"{source}: tensor {published!r} has shape {tuple(tensor.shape)}, expected {tuple(shape)}; "
                "the file belongs to another model or configuration"
            )
        if not bool(tensor.sum(dtype=torch.float64).isfinite()):
            raise ValueError(f"{source}: tensor {published!r} is not finite; the file is damaged")
        found[ours] = tensor.reshape(shape)
    return found


def _refuse(source: str, how: str, keys: Iterable[str]) -> None:
    listed = sorted(keys)
    if listed:
        shown = ", ".join(repr(key) for key in listed[:SHOWN_KEYS])
        more = f" and {len(listed) - SHOWN_KEYS} more" if len(listed) > SHOWN_KEYS else ""
        raise ValueError(
            f"{source} {how} {len(listed)} tensors: {shown}{more}; the file belongs to another model or configuration"
        )


def fill(network: nn.Module, tensors: Mapping[str, Tensor], target: Target) -> None:
    """Put checked tensors into a network that was built on the meta device, and freeze it."""
    network.load_state_dict({name: target.place(tensor) for name, tensor in tensors.items()}, assign=True)
    network.to(target.device).eval().requires_grad_(False)


def digest(*paths: Path) -> str:
    """SHA-256 of one file; of several, that of their lines "<sha256>  <name>", as `sha256sum` prints them."""
    lines = []
    for path in paths:
        with path.open("rb") as file:
            lines.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {path.name}\n")
    return lines[0].split()[0] if len(lines) == 1 else hashlib.sha256("".join(lines).encode()).hexdigest()
