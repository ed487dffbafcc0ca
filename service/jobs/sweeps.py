"""Sweeps: fields of a job that take several values, each combination being a job of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from service.jobs.errors import FieldProblem, Refused

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["MAX_FIELDS", "SweepField", "read_sweep"]

MAX_FIELDS: Final = 8
"""Fields of one sweep: more make combinations that nobody can look at."""
MAX_DEPTH: Final = 8


@dataclass(frozen=True)
class SweepField:
    """One field and the values that it takes."""

    name: str
    """As the request spells it: a dotted path (`method.push`) or a JSON pointer (`/method/push`)."""
    path: tuple[str, ...]
    values: tuple[Any, ...]

    def put(self, body: Mapping[str, Any], value: Any) -> dict[str, Any]:
        """Answer `body` with this field set; what is not on the way is shared, not copied. Raises `Refused`."""
        changed = self._put(body, self.path, value)
        assert isinstance(changed, dict)
        return changed

    def _put(self, under: object, path: Sequence[str], value: Any) -> Any:
        if not path:
            return value
        step, rest = path[0], path[1:]
        if under is None:
            return {step: self._put(None, rest, value)}
        if isinstance(under, dict):
            return under | {step: self._put(under.get(step), rest, value)}
        if isinstance(under, list) and step.isdigit() and int(step) < len(under):
            return [
                self._put(one, rest, value) if index == int(step) else one for index, one in enumerate(under)
            ]
        raise self._misplaced(step)

    def _misplaced(self, step: str) -> Refused:
        detail = f"the job has no place for {step!r} of the swept field {self.name!r}"
        return Refused("invalid-request", [FieldProblem("/body", detail)])


def read_sweep(sweep: Mapping[str, Sequence[Any]]) -> tuple[SweepField, ...]:
    """Read the fields of a sweep. Raises `Refused`."""
    if len(sweep) > MAX_FIELDS:
        raise _refusal("/sweep", f"{len(sweep)} fields, but at most {MAX_FIELDS} can be swept together")
    fields: list[SweepField] = []
    for name, values in sweep.items():
        pointer = f"/sweep/{name.replace('~', '~0').replace('/', '~1')}"
        path = _path(name)
        if not all(path):
            raise _refusal(
                pointer, "expected a field, as a dotted path (method.push) or a pointer (/method/push)"
            )
        if len(path) > MAX_DEPTH:
            raise _refusal(
                pointer, f"{len(path)} steps deep, but no field of a job lies deeper than {MAX_DEPTH}"
            )
        if not values:
            raise _refusal(pointer, "expected at least one value")
        for other in fields:
            if other.path[: len(path)] == path or path[: len(other.path)] == other.path:
                raise _refusal(
                    pointer, f"this is, or lies inside, the swept field {other.name!r}, or around it"
                )
        fields.append(SweepField(name, path, tuple(values)))
    return tuple(fields)


def _path(name: str) -> tuple[str, ...]:
    if name.startswith("/"):
        return tuple(part.replace("~1", "/").replace("~0", "~") for part in name.split("/")[1:])
    return tuple(name.split("."))


def _refusal(pointer: str, detail: str) -> Refused:
    return Refused("invalid-request", [FieldProblem(pointer, detail)])
