"""What this server can do now: its methods with their knobs, and its rewards."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, get_args

from fastapi import APIRouter

from service.http.answers.base import answer
from service.http.answers.operation import MethodPage, RewardPage
from service.http.errors import problems
from service.http.requests import Store  # noqa: TC001 - FastAPI reads the annotations
from service.jobs.capabilities import embedded_capabilities
from service.jobs.documents import rfc3339
from service.jobs.presets import PRESETS
from service.jobs.spec import AnyMethod

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import BaseModel

    from service.jobs.capabilities import AbsentFacts, Capabilities, PartFacts
    from service.jobs.fleet import Known

__all__ = ["how_known", "router"]

router = APIRouter(tags=["capabilities"])

METHODS: Final[dict[str, type[BaseModel]]] = {
    method.model_fields["name"].default: method for method in get_args(AnyMethod)
}


@router.get("/v1/methods", responses={200: answer(MethodPage), **problems(503)})
def list_methods(store: Store) -> dict[str, Any]:
    """List the methods that workers can run, with the defaults, ranges and sources of their knobs.

    With each come the priors (those without weights too, saying what is missing) and the presets of that method.
    `known_from` says whether `live_workers` have told this, the `last_workers` (none lives now; `seen_at` says when one
    did), or the `settings` (there never was one).
    """
    able, known = _capabilities(store)
    priors = _parts(able.priors, able.absent_priors)
    return {
        "items": [
            {"name": name}
            | _facts(method)
            | _knobs(METHODS[name])
            | {"priors": priors, "presets": _presets(name)}
            for name, method in able.methods.items()
            if name in METHODS
        ],
        "next_cursor": None,
        **known,
    }


@router.get("/v1/rewards", responses={200: answer(RewardPage), **problems(503)})
def list_rewards(store: Store) -> dict[str, Any]:
    """List the rewards that workers can steer with, with license, range and hash of the weights.

    A reward that is not `available` says which files are missing and how to get them. `known_from` is as in
    `/v1/methods`.
    """
    able, known = _capabilities(store)
    return {"items": _parts(able.rewards, able.absent_rewards), "next_cursor": None, **known}


def _parts(present: Mapping[str, PartFacts], absent: Mapping[str, AbsentFacts]) -> list[dict[str, Any]]:
    """Describe priors or rewards, first those that are there."""
    there = [
        {"name": name, "available": True, **_facts(part), "missing": [], "how": None}
        for name, part in present.items()
    ]
    gone = [
        {"name": name, "available": False, "weights": None, **part.model_dump(mode="json")}
        for name, part in absent.items()
    ]
    return there + gone


def _presets(method: str) -> list[dict[str, Any]]:
    """Describe the presets of a method: what they fill in."""
    return [preset.model_dump(mode="json") for preset in PRESETS.values() if preset.method.name == method]


def how_known(known: Known | None) -> dict[str, Any]:
    """Say who has told what can be run, and when it was last true."""
    if known is None:
        return {"known_from": "settings", "seen_at": None}
    return {
        "known_from": "live_workers" if known.num_live else "last_workers",
        "seen_at": rfc3339(known.seen_at),
    }


def _capabilities(store: Store) -> tuple[Capabilities, dict[str, Any]]:
    known = store.known_capabilities()
    return embedded_capabilities() if known is None else known.capabilities, how_known(known)


def _facts(part: PartFacts) -> dict[str, Any]:
    return part.model_dump(mode="json")


def _knobs(method: type[BaseModel]) -> dict[str, Any]:
    """Describe a method's knobs: what a request may say, and what holds when it says nothing."""
    return {
        "summary": (method.__doc__ or "").strip(),
        "defaults": method().model_dump(mode="json", exclude={"name"}),
        "parameters": method.model_json_schema(),
    }
