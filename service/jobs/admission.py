"""The gate between a request and the queue: read it, fill in the defaults, refuse what could not run.

The last two are `defaults.py` and `runnable.py`.
"""

from __future__ import annotations

import json
import secrets
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ValidationError

from service.jobs.capabilities import embedded_capabilities
from service.jobs.defaults import with_defaults
from service.jobs.errors import FieldProblem, Refused
from service.jobs.runnable import check_runnable
from service.jobs.spec import METHOD_NAMES, JobRequest
from service.jobs.webhook_targets import url_problem

if TYPE_CHECKING:
    from collections.abc import Iterator

    from service.jobs.capabilities import Capabilities
    from service.jobs.defaults import Admitted
    from service.settings import Settings

__all__ = ["admit", "check_webhook_url", "field_problem", "parse_request", "read_as", "unusable_texts"]

_Model = TypeVar("_Model", bound=BaseModel)

_SEEDS = 2**32
"""Seeds drawn here are short enough to read aloud."""
_MAX_DETAIL = 300


def admit(body: object, capabilities: Capabilities | None, settings: Settings) -> Admitted:
    """Turn a request's parsed JSON into a job that this server can run, or raise `Refused`.

    `capabilities` is `JobStore.capabilities()`: None when no worker has ever spoken, which means that what the
    embedded default can do decides. A seed is drawn here when the request has none.
    """
    can = capabilities or embedded_capabilities()
    admitted = with_defaults(parse_request(body), can, settings, secrets.randbelow(_SEEDS))
    check_runnable(admitted.spec, can)
    if admitted.spec.webhook is not None:
        check_webhook_url(admitted.spec.webhook, settings)
    return admitted


def check_webhook_url(url: str, settings: Settings, pointer: str = "/webhook") -> None:
    """Raise `Refused` for a URL that no webhook may have."""
    problem = url_problem(url, allow_private=settings.webhook_allow_private)
    if problem is not None:
        suggestion = "Give an https URL that this server can reach over the internet."
        raise Refused("invalid-request", [FieldProblem(pointer, problem)], suggestion)


def parse_request(body: object) -> JobRequest:
    """Read parsed JSON as a `JobRequest`; raise `Refused` (`invalid-request`) naming every wrong field."""
    return read_as(
        JobRequest,
        body,
        smallest='The smallest job request is {"prompt": "a red cube"}.',
        see="GET /v1/methods lists methods, knobs and bounds.",
    )


def read_as(model: type[_Model], body: object, *, smallest: str, see: str) -> _Model:
    """Read parsed JSON as `model`; raise `Refused` (`invalid-request`) naming every wrong field.

    `smallest` and `see` are suggestions: for what is no object, and for wrong fields.
    """
    unusable = [FieldProblem(pointer, detail) for pointer, detail in unusable_texts(body)]
    if unusable:
        raise Refused("invalid-request", unusable, "Send plain Unicode text.")
    if not isinstance(body, dict):
        problem = FieldProblem("", f"found {_shown(body)}, expected an object")
        raise Refused("invalid-request", [problem], smallest)
    try:
        return model.model_validate(body)
    except ValidationError as error:
        problems = [field_problem(body, dict(one)) for one in error.errors(include_url=False)]
        raise Refused("invalid-request", problems, see) from None


def unusable_texts(body: object) -> Iterator[tuple[str, str]]:
    """Find texts that cannot be stored or answered: with NUL, or with half a surrogate pair."""
    waiting: list[tuple[str, object]] = [("", body)]
    while waiting:
        pointer, value = waiting.pop()
        match value:
            case str():
                if "\0" in value:
                    yield pointer, "the text contains NUL (U+0000)"
                if any("\ud800" <= character <= "\udfff" for character in value):
                    yield pointer, "the text contains half of a surrogate pair, which is not a character"
            case dict():
                for key, held in value.items():
                    inside = f"{pointer}/{_escaped(key)}"
                    if _encodable(key) != key:
                        yield inside, "the field's name contains half of a surrogate pair"
                    waiting.append((inside, held))
            case list():
                waiting.extend((f"{pointer}/{index}", held) for index, held in enumerate(value))
            case _:
                pass


def _encodable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _escaped(part: object) -> str:
    """Write one step of a JSON pointer (RFC 6901)."""
    return _encodable(str(part)).replace("~", "~0").replace("/", "~1")[:_MAX_DETAIL]


def field_problem(body: dict[str, Any], error: dict[str, Any]) -> FieldProblem:
    """Translate one of pydantic's errors into the field and the words of the user."""
    path = [part for part in error["loc"] if part != "[key]"]
    if path[:1] == ["method"] and len(path) > 1 and path[1] in METHOD_NAMES:
        del path[1]  # pydantic names the member of the union; the request has no such level
    if error["type"] in ("union_tag_invalid", "union_tag_not_found", "model_attributes_type"):
        return _method_problem(body["method"])
    pointer = "".join(f"/{_escaped(part)}" for part in path)
    return FieldProblem(pointer, _detail(error))


def _method_problem(method: object) -> FieldProblem:
    names = ", ".join(METHOD_NAMES)
    if isinstance(method, dict):
        if "name" not in method:
            return FieldProblem("/method/name", f"a method needs its name, one of {names}")
        return FieldProblem("/method/name", f"found {_shown(method['name'])}, expected one of {names}")
    return FieldProblem(
        "/method", f"found {_shown(method)}, expected one of {names}, or an object with a name"
    )


def _shown(value: object) -> str:
    """Write what was found as short JSON; nested values are named only."""
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "an array"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:59] + "…"


def _detail(error: dict[str, Any]) -> str:
    match error["type"]:
        case "extra_forbidden":
            detail = "there is no such field"
        case "missing":
            detail = "this field is needed"
        case "tuple_type":
            detail = f"found {_shown(error['input'])}, expected an array"
        case "value_error":
            detail = str(error["ctx"]["error"])
        case "string_too_long" | "string_too_short":
            detail = f"found {len(error['input'])} characters, but it {_lower(error['msg'])}"
        case "dict_type" | "model_type" | "model_attributes_type":
            detail = f"found {_shown(error['input'])}, expected an object"
        case _:
            detail = f"found {_shown(error['input'])}, but it {_lower(error['msg'])}"
    return _encodable(detail)[:_MAX_DETAIL]


def _lower(message: str) -> str:
    """Drop pydantic's subject: "Input should be …" becomes "should be …"."""
    return message.partition(" ")[2]
