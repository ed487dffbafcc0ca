"""What the service answers, for the OpenAPI document: what clients are generated from.

The documents themselves are built beside the rows that they tell of (`service.jobs`), as plain JSON, and are not
checked again on their way out; tests hold answers against these models. Later releases may add fields, so
readers ignore what they do not know.
"""

from __future__ import annotations

from typing import Annotated, Any, Generic, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

__all__ = ["Answer", "Note", "Page", "Range", "Score", "Time", "answer"]

_T = TypeVar("_T")

Time: TypeAlias = Annotated[
    str,
    Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$"),
    WithJsonSchema({"type": "string", "format": "date-time"}),
]
"""UTC, RFC 3339 with milliseconds."""
Range: TypeAlias = Annotated[list[float], Field(min_length=2, max_length=2)]
"""`[low, high]`."""


class Answer(BaseModel):
    """A part of an answer; the texts below fields are their descriptions."""

    model_config = ConfigDict(use_attribute_docstrings=True)


class Page(Answer, Generic[_T]):
    """One page of a list."""

    items: list[_T]
    next_cursor: str | None
    """`cursor` of the next page; null: this is the last one."""


class Note(Answer):
    """Something that a user should know: `code` for programs, `detail` for people."""

    code: str
    detail: str


class Score(Answer):
    """What one reward says of one object."""

    name: str
    score: float


def answer(model: type[Answer], description: str | None = None) -> dict[str, Any]:
    """Describe one answer of a route, for its `responses=`; by default with what the model says of itself."""
    return {"model": model, "description": description or (model.__doc__ or "").strip()}
