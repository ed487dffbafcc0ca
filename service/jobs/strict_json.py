"""JSON as the service takes it: what a careless reader would accept and then misunderstand is refused."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

__all__ = ["parse_json"]

_EXACT = 2**53
"""Up to here every reader of JSON knows each integer."""


def parse_json(text: bytes) -> Any:
    """Parse UTF-8 JSON; raise `ValueError` for bad UTF-8 or JSON, NaN, a number or nesting too large, a field twice."""
    try:
        return json.loads(
            text.decode("utf-8"),
            parse_constant=_refuse_constant,
            parse_float=_number,
            object_pairs_hook=_unique,
        )
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _number(digits: str) -> float:
    """Read a number with a point or an exponent; a whole one is an integer, as in JSON 7.0 and 7 are one number."""
    number = float(digits)
    if math.isinf(number):
        raise ValueError(f"{digits[:40]} is too large for a number")
    return int(number) if number.is_integer() and abs(number) <= _EXACT else number


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the field {twice!r} is there twice")
    return fields
