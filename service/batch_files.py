"""Files of prompts as the lines of a batch: JSONL as it is, CSV by its columns, text with a prompt a line."""

from __future__ import annotations

import csv
import json
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["BadFile", "batch_lines"]

TEXTS: Final = frozenset({"prompt", "negative_prompt", "preset", "prior", "referee", "effort", "priority"})
"""Columns that are never read as JSON: a prompt `null` or `12` is that text. So is all below `metadata`."""
BLOCK_BYTES: Final = 64 * 1024


class BadFile(ValueError):
    """A file that cannot be read as lines of a batch; says where."""


def batch_lines(path: Path) -> Iterator[bytes]:
    """Read `path` by its ending, .jsonl (or .ndjson), .csv or .txt, as blocks of JSONL. Raises `BadFile`, `OSError`."""
    match path.suffix.lower():
        case ".jsonl" | ".ndjson":
            return _blocks(path)
        case ".csv":
            return _encoded(_rows(path))
        case ".txt":
            return _encoded(_prompts(path))
        case _:
            raise BadFile(f"cannot read a batch from {path}: its name must end in .jsonl, .csv or .txt.")


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            yield block


def _encoded(lines: Iterator[dict[str, Any]]) -> Iterator[bytes]:
    for line in lines:
        yield json.dumps(line).encode("ascii") + b"\n"


def _prompts(path: Path) -> Iterator[dict[str, Any]]:
    """Make each line that is not blank a prompt; its number in the file is its custom_id."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield {"custom_id": str(number), "body": {"prompt": line.removesuffix("\n")}}
    except UnicodeDecodeError as error:
        raise BadFile(f"{path} is not UTF-8: {error}") from error


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """Make each row a line: `custom_id` is its name, other columns are fields of the job (`method.name` inside it)."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file, strict=True)
            names = next(rows, [])
            if "prompt" not in names or len(set(names)) < len(names) or "" in names:
                raise BadFile(f"{path}: the first row must name the columns, each once, one of them prompt.")
            for cells in rows:
                if not cells:
                    continue
                if len(cells) != len(names):
                    raise BadFile(
                        f"{path}, line {rows.line_num}: found {len(cells)} cells, expected {len(names)} "
                        f"({', '.join(names)}); put cells with commas in double quotes."
                    )
                yield _row(dict(zip(names, cells, strict=True)), rows.line_num)
    except (UnicodeDecodeError, csv.Error) as error:
        raise BadFile(f"{path} is not CSV in UTF-8: {error}") from error


def _row(cells: dict[str, str], number: int) -> dict[str, Any]:
    """Make one row a line; an empty cell is a field left out."""
    body: dict[str, Any] = {}
    for name, text in cells.items():
        if name == "custom_id" or not text:
            continue
        *way, last = name.split(".")
        place = body
        for step in way:
            inside = place.setdefault(step, {})
            if not isinstance(inside, dict):
                raise BadFile(
                    f"line {number}: column {name!r} lies inside another one, {step!r}, which has a value."
                )
            place = inside
        place[last] = text if name in TEXTS or way[:1] == ["metadata"] else _value(text)
    return {"custom_id": cells.get("custom_id") or str(number), "body": body}


def _value(text: str) -> Any:
    """Read a cell as JSON, or else as text."""
    try:
        return json.loads(text)
    except ValueError:
        return text
