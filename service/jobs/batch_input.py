"""What a batch is made from: its options, and its lines `{"custom_id", "body"}`, each checked like a job of its own.

The body of a job is `defaults`, under what the line says, under one combination of the `sweep`. A line is one item for
each combination; a line that cannot be read is one invalid item. Nothing here knows the database.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.jobs.admission import field_problem, read_as, unusable_texts
from service.jobs.errors import FieldProblem, Refused
from service.jobs.spec import TEXT, JobRequest, Metadata, Prompt
from service.jobs.sweeps import MAX_FIELDS, SweepField, read_sweep

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from service.jobs.defaults import Admitted

__all__ = [
    "MAX_ITEMS",
    "MAX_LINE_BYTES",
    "BatchLine",
    "BatchOptions",
    "BatchRequest",
    "Item",
    "Lines",
    "Plan",
    "items_of",
    "merged",
    "plan_of",
    "split_request",
]

MAX_ITEMS: Final = 100_000
"""Jobs of one batch, sweep included: a week of a large cluster, and what an upload brings in within a minute."""
MAX_LINE_BYTES: Final = 256 * 1024
"""As a job request's own limit (`service.http.requests`)."""
MAX_CUSTOM_ID: Final = 128
"""Characters: enough for a hash or a path, short enough for 100,000 of them to be held in memory at once."""
MAX_PROBLEMS: Final = 20
"""Kept of one line: the others are seldom news, and there may be one for every ten bytes."""
MAX_PARALLEL: Final = 1_000
"""More jobs of one batch at a time would only be queue."""

CustomId = Annotated[
    str | None,
    Field(
        min_length=1,
        max_length=MAX_CUSTOM_ID,
        description="Yours, once a batch; default: the line's number.",
        json_schema_extra=TEXT,
    ),
]


class BatchLine(BaseModel):
    """One line of a batch."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    custom_id: CustomId = None
    body: JobRequest


class _Envelope(BaseModel):
    """A line before its body is read: that is done with the defaults below it."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    custom_id: CustomId = None
    body: dict[str, Any] = Field(default_factory=dict)


class _Defaults(JobRequest):
    """What lies under the lines: a job that may lack its prompt too."""

    prompt: Prompt = "(each line's own)"


_OF_THE_WHOLE: Final = ("missing", "union_tag_not_found", "value_error")
"""Kinds of problems that a line above may mend: parts that are missing, or do not go together."""


class BatchOptions(BaseModel):
    """How the lines of a batch become jobs."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    defaults: dict[str, Any] = Field(
        default_factory=dict, description="Fields of every job; what a line says itself wins."
    )
    sweep: dict[str, list[Any]] = Field(
        default_factory=dict,
        description='Each line once for every combination, as in {"method.push": [0, 2], "seed": [1, 2, 3]}; a field '
        "is named by a dotted path or a JSON pointer.",
        json_schema_extra={
            "additionalProperties": {"type": "array", "minItems": 1},
            "maxProperties": MAX_FIELDS,
        },
    )
    max_parallel: int | None = Field(
        None, ge=1, le=MAX_PARALLEL, description="Jobs of the batch that are queued or run at a time."
    )
    metadata: Metadata | None = None


class BatchRequest(BatchOptions):
    """A batch in one JSON document; larger ones are uploaded as lines."""

    items: list[BatchLine] = Field(min_length=1)


@dataclass(frozen=True)
class Plan:
    """Options that have been checked."""

    options: BatchOptions
    sweep: tuple[SweepField, ...] = ()

    @property
    def num_combinations(self) -> int:
        """How many items a line becomes."""
        return math.prod(len(one.values) for one in self.sweep)

    def bodies(self, body: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """List the jobs' bodies of one line, each with its combination of the sweep. Raises `Refused`."""
        under = merged(self.options.defaults, body)
        for values in itertools.product(*(one.values for one in self.sweep)):
            complete = under
            for one, value in zip(self.sweep, values, strict=True):
                complete = one.put(complete, value)
            yield complete, {one.name: value for one, value in zip(self.sweep, values, strict=True)}


@dataclass(frozen=True)
class Item:
    """One job to be, or what is wrong with it."""

    line: int
    """Counted from 1, as editors do; pointers count from 0, as JSON does."""
    custom_id: str | None
    """None where the line cannot be read."""
    sweep: dict[str, Any] = field(default_factory=dict)
    spec: dict[str, Any] | None = None
    warnings: Sequence[Mapping[str, str]] = ()
    problems: Sequence[Mapping[str, str]] = ()
    """`{"pointer", "detail", "code"}` each; none where there is a spec."""


def split_request(body: object) -> tuple[dict[str, Any], list[Any]]:
    """Tell a batch document's options from its items. Raises `Refused`."""
    if not isinstance(body, dict):
        raise _refusal("", "expected an object with items")
    items = body.get("items")
    if not isinstance(items, list) or not items:
        raise _refusal("/items", "expected an array of at least one line")
    return {name: value for name, value in body.items() if name != "items"}, items


def plan_of(options: Mapping[str, Any]) -> Plan:
    """Check the options of a batch. Raises `Refused`."""
    checked = read_as(
        BatchOptions,
        dict(options),
        smallest='The smallest batch is {"items": [{"body": {"prompt": "a red cube"}}]}.',
        see="GET /docs shows the fields of a batch.",
    )
    _check_defaults(checked.defaults)
    plan = Plan(checked, read_sweep(checked.sweep))
    if plan.num_combinations > MAX_ITEMS:
        detail = f"{plan.num_combinations:,} combinations, but a batch has at most {MAX_ITEMS:,} jobs"
        raise _refusal("/sweep", detail)
    return plan


def _check_defaults(defaults: dict[str, Any]) -> None:
    """Refuse fields that no line could want under it, even where each line says another value. Raises `Refused`."""
    try:
        _Defaults.model_validate(defaults)
    except ValidationError as error:
        wrong = [one for one in error.errors(include_url=False) if one["type"] not in _OF_THE_WHOLE]
        found = [field_problem(defaults, dict(one)) for one in wrong]
        if found:
            problems = [FieldProblem(f"/defaults{one.pointer}", one.detail) for one in found]
            raise Refused(
                "invalid-request", problems, "GET /v1/methods lists methods, knobs and bounds."
            ) from None


def items_of(line: int, entry: object, plan: Plan, admit: Callable[[object], Admitted]) -> Iterator[Item]:
    """Make the items of one line, parsed; invalid ones say why. `admit` turns a body into a job or raises `Refused`."""
    here = f"/items/{line - 1}"
    custom_id = _readable_custom_id(entry) or str(line)
    try:
        body = _envelope(entry).body
        for complete, combination in plan.bodies(body):
            try:
                admitted = admit(complete)
            except Refused as refused:
                problems = _told(refused, _blame(plan, body, here))
                yield Item(line, custom_id, combination, problems=problems)
            else:
                spec = admitted.spec.model_dump(mode="json")
                yield Item(line, custom_id, combination, spec, admitted.warnings)
    except Refused as refused:
        yield Item(line, custom_id, problems=_told(refused, lambda pointer: here + pointer))


def merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Lay one JSON object over another, objects inside too; methods of different names do not mix their knobs."""
    result = dict(under)
    for name, value in over.items():
        below = under.get(name)
        if isinstance(value, dict) and isinstance(below, dict) and not _other_method(name, below, value):
            result[name] = merged(below, value)
        else:
            result[name] = value
    return result


def _other_method(name: str, below: Mapping[str, Any], over: Mapping[str, Any]) -> bool:
    return name == "method" and "name" in over and over["name"] != below.get("name", over["name"])


def _envelope(entry: object) -> _Envelope:
    """Read a line without its body, which admission reads."""
    if not isinstance(entry, dict):
        raise _refusal("", 'expected an object such as {"custom_id": "a", "body": {"prompt": "a red cube"}}')
    name = {"custom_id": entry.get("custom_id")}
    unusable = [FieldProblem(pointer, detail) for pointer, detail in unusable_texts(name)]
    if unusable:
        raise Refused("invalid-request", unusable)
    try:
        return _Envelope.model_validate(entry)
    except ValidationError as error:
        problems = [field_problem(entry, dict(one)) for one in error.errors(include_url=False)]
        raise Refused("invalid-request", problems) from None


def _readable_custom_id(entry: object) -> str | None:
    """Find the name of a line that may be invalid, so that its sender recognizes it."""
    found = entry.get("custom_id") if isinstance(entry, dict) else None
    fits = isinstance(found, str) and 1 <= len(found) <= MAX_CUSTOM_ID and not any(unusable_texts(found))
    return found if fits else None


def _refusal(pointer: str, detail: str) -> Refused:
    return Refused("invalid-request", [FieldProblem(pointer, detail)])


def _told(refused: Refused, blame: Callable[[str], str]) -> list[dict[str, str]]:
    """Write down what is wrong; `blame` turns a pointer into the job's body into one into the request."""
    return [
        {"pointer": blame(one.pointer), "detail": one.detail, "code": refused.code}
        for one in refused.problems[:MAX_PROBLEMS]
    ]


def _blame(plan: Plan, body: Mapping[str, Any], here: str) -> Callable[[str], str]:
    """Find where a job's field was written: in the sweep, in the line, or in the defaults."""

    def blame(pointer: str) -> str:
        steps = [part.replace("~1", "/").replace("~0", "~") for part in pointer.split("/")[1:]]
        for one in plan.sweep:
            if steps[: len(one.path)] == list(one.path):
                return f"/sweep/{one.name.replace('~', '~0').replace('/', '~1')}"
        in_line, in_defaults = _depth(body, steps), _depth(plan.options.defaults, steps)
        return f"/defaults{pointer}" if in_defaults > in_line else f"{here}/body{pointer}"

    return blame


def _depth(value: Any, steps: Sequence[str]) -> int:
    """Count how many steps of a path exist in a JSON value."""
    for depth, step in enumerate(steps):
        if isinstance(value, dict) and step in value:
            value = value[step]
        elif isinstance(value, list) and step.isdigit() and int(step) < len(value):
            value = value[int(step)]
        else:
            return depth
    return len(steps)


class Lines:
    """Splits a stream of bytes into lines; one that is too long is dropped while it arrives, and told as None."""

    def __init__(self, max_bytes: int = MAX_LINE_BYTES) -> None:
        self._max_bytes = max_bytes
        self._rest = bytearray()
        self._dropping = False
        self._number = 0

    def feed(self, block: bytes) -> Iterator[tuple[int, bytes | None]]:
        """Give the lines that end in `block`, each with its number; blank ones are passed over."""
        *ended, rest = block.split(b"\n")
        for piece in ended:
            yield from self._end(piece)
        self._keep(rest)

    def end(self) -> Iterator[tuple[int, bytes | None]]:
        """Give the last line, if it does not end with a line break."""
        yield from self._end(b"")

    def _keep(self, piece: bytes) -> None:
        if len(self._rest) + len(piece) > self._max_bytes:
            self._dropping = True
            self._rest.clear()
        if not self._dropping:
            self._rest += piece

    def _end(self, piece: bytes) -> Iterator[tuple[int, bytes | None]]:
        self._keep(piece)
        self._number += 1
        line, dropped = bytes(self._rest).strip(), self._dropping
        self._rest.clear()
        self._dropping = False
        if dropped or line:
            yield self._number, None if dropped else line
