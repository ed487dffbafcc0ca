"""What this server can do now: its methods with their knobs, and its rewards."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, get_args

from fastapi import APIRouter

from service.http.errors import problems
from service.http.requests import Store  # noqa: TC001 - FastAPI reads the annotations
from service.jobs.capabilities import embedded_capabilities
from service.jobs.spec import AnyMethod

if TYPE_CHECKING:
    from pydantic import BaseModel

    from service.jobs.capabilities import Capabilities, PartFacts

__all__ = ["router"]

router = APIRouter(tags=["capabilities"])

METHODS: Final[dict[str, type[BaseModel]]] = {
    method.model_fields["name"].default: method for method in get_args(AnyMethod)
}


@router.get("/v1/methods", responses=problems(503))
def list_methods(store: Store) -> dict[str, Any]:
    """List the methods that live workers can run, with the defaults, ranges and sources of their knobs."""
    able = _capabilities(store)
    priors = [{"name": name} | _facts(prior) for name, prior in able.priors.items()]
    return {
        "items": [
            {"name": name} | _facts(method) | _knobs(METHODS[name]) | {"priors": priors}
            for name, method in able.methods.items()
            if name in METHODS
        ],
        "next_cursor": None,
    }


@router.get("/v1/rewards", responses=problems(503))
def list_rewards(store: Store) -> dict[str, Any]:
    """List the rewards that live workers can steer with, with license, range and hash of the weights."""
    rewards = _capabilities(store).rewards
    return {
        "items": [{"name": name} | _facts(reward) for name, reward in rewards.items()],
        "next_cursor": None,
    }


def _capabilities(store: Store) -> Capabilities:
    return store.capabilities() or embedded_capabilities()


def _facts(part: PartFacts) -> dict[str, Any]:
    return part.model_dump(mode="json")


def _knobs(method: type[BaseModel]) -> dict[str, Any]:
    """Describe a method's knobs: what a request may say, and what holds when it says nothing."""
    return {
        "summary": (method.__doc__ or "").strip(),
        "defaults": method().model_dump(mode="json", exclude={"name"}),
        "parameters": method.model_json_schema(),
    }
