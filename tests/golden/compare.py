"""Reading golden cases, and comparing what our code answers with what the reference code answered."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, NamedTuple

import safetensors.torch
import torch
from torch import Tensor

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Case", "Tensors", "Tolerance", "complaints", "read_case", "tolerance_of"]

Case = dict[str, Any]
"""A case's JSON document, with the folder that holds it under "folder": a `Path`, to find sibling files."""
Tensors = dict[str, Tensor]
"""A case's tensors by their names in the file; empty for a case that is JSON only."""


class Tolerance(NamedTuple):
    """|got − want| ≤ absolute + elementwise · |want| + of_max · max |want|."""

    absolute: float = 0.0
    elementwise: float = 0.0
    of_max: float = 0.0


NETWORKS, TABLES, MILLIONFOLD = Tolerance(of_max=1e-4), Tolerance(of_max=1e-6), Tolerance(of_max=1e-3)
HALF_PRECISION, JSON_NUMBERS = Tolerance(absolute=2e-2), Tolerance(absolute=1e-9)
REWARD_ONLY_FROM = 9801
"""The guidance call from which DreamFL's loss is 10⁶ times the reward's."""


def read_case(folder: Path, stem: str) -> tuple[Case, Tensors]:
    """Read a case: its document (with "folder" added) and its tensors, if it has any."""
    document: Case = json.loads((folder / f"{stem}.json").read_text())
    tensors = folder / f"{stem}.safetensors"
    return {**document, "folder": folder}, safetensors.torch.load_file(tensors) if tensors.exists() else {}


def tolerance_of(stem: str, name: str, document: Case) -> Tolerance:
    """The tolerance of one answer: the document's own, or what the golden cases' README says."""
    if (own := document.get("tolerance")) is not None:
        return Tolerance(absolute=own.get("atol", 0.0), elementwise=own.get("rtol", 0.0))
    if not name.startswith("out."):
        return JSON_NUMBERS
    if stem.startswith("mvdream_schedule"):
        return TABLES
    if stem.startswith("reward_preprocess"):
        return HALF_PRECISION
    step = re.search(r"\.step(\d+)", name)
    if stem.startswith("dreamfl") and step is not None and int(step[1]) >= REWARD_ONLY_FROM:
        return MILLIONFOLD
    return NETWORKS


def complaints(stem: str, document: Case, tensors: Tensors, got: dict[str, Any]) -> list[str]:
    """Say what differs: one line per answer that is missing, unknown, of another shape, or too far off.

    Every `out.*` tensor of the file must be among the answers. Any other answer is named by its place in the
    document: "rows.*.weight" is the list of all rows' weights.
    """
    wanted = {name for name in tensors if name.startswith("out.")}
    lines = [f"{name}: not answered" for name in sorted(wanted - set(got))]
    if not got:
        lines.append(f"{stem}: the adapter answered nothing")
    for name, value in got.items():
        try:
            want = tensors[name] if name in tensors else _at(document, name.split("."))
        except (KeyError, TypeError):
            lines.append(f"{name}: answered, but the case holds no such expectation")
            continue
        line = _difference(value, want, tolerance_of(stem, name, document))
        lines += [f"{name}: {line}"] if line else []
    return lines


def _at(value: Any, path: list[str]) -> Any:
    if not path:
        return value
    if path[0] == "*":
        return [_at(item, path[1:]) for item in value]
    return _at(value[path[0]], path[1:])


def _difference(got: Any, want: Any, tolerance: Tolerance) -> str | None:
    """One line, or None if there is none that counts."""
    if isinstance(want, Tensor) or (isinstance(want, (int, float)) and not isinstance(want, bool)):
        return _numeric_difference(torch.as_tensor(got), torch.as_tensor(want), tolerance)
    if isinstance(want, (list, tuple)):
        if isinstance(got, Tensor):
            got = got.tolist()
        if len(got) != len(want):
            return f"{len(got)} entries, expected {len(want)}"
        pairs = enumerate(zip(got, want, strict=True))
        return next((f"[{i}] {line}" for i, (g, w) in pairs if (line := _difference(g, w, tolerance))), None)
    return None if got == want else f"{got!r}, expected {want!r}"


def _numeric_difference(got: Tensor, want: Tensor, tolerance: Tolerance) -> str | None:
    if got.shape != want.shape:
        return f"shape {tuple(got.shape)}, expected {tuple(want.shape)}"
    if not want.is_floating_point():
        wrong = int((got != want).sum())
        return f"{wrong} of {want.numel()} whole numbers differ" if wrong else None
    got, want = got.detach().double(), want.double()
    if not want.numel():
        return None
    limit = tolerance.absolute + tolerance.elementwise * want.abs() + tolerance.of_max * want.abs().max()
    error = (got - want).abs()
    if bool((error <= limit).all()):
        return None
    excess = error / limit.clamp(min=1e-300)
    worst = int(torch.where(excess.isnan(), torch.inf, excess).argmax())
    return (
        f"off by {float(error.flatten()[worst]):.3g} at element {worst}: {float(got.flatten()[worst]):.9g}, "
        f"expected {float(want.flatten()[worst]):.9g} within {float(limit.expand_as(error).flatten()[worst]):.3g}"
    )
