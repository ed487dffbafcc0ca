"""Problems: every answer that is not a success, as RFC 9457 `application/problem+json`."""

from __future__ import annotations

import json
import logging
from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated, Any, Final

from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.routing import Route

from service.jobs.errors import (
    ArtifactsExpired,
    BatchConflict,
    FieldProblem,
    IdempotencyKeyReused,
    JobActive,
    NothingToChoose,
    QueueFull,
    QuotaExceeded,
    Refused,
    StoreUnavailable,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fastapi import FastAPI, Request
    from starlette.routing import BaseRoute

__all__ = [
    "CODES",
    "MAKE_AGAIN",
    "PROBLEM_TYPE",
    "Problem",
    "ProblemDocument",
    "install_problem_handlers",
    "invalid",
    "problems",
    "unknown",
]

logger = logging.getLogger(__name__)

PROBLEM_TYPE: Final = "application/problem+json"
CODES: Final[dict[str, int]] = {
    "malformed-json": 400,
    "unauthenticated": 401,
    "forbidden": 403,
    "unknown-artifact": 404,
    "unknown-batch": 404,
    "unknown-delivery": 404,
    "unknown-job": 404,
    "unknown-key": 404,
    "unknown-route": 404,
    "unknown-webhook": 404,
    "method-not-allowed": 405,
    "batch-conflict": 409,
    "default-webhook": 409,
    "job-active": 409,
    "job-not-succeeded": 409,
    "no-candidates": 409,
    "too-many-webhooks": 409,
    "artifact-expired": 410,
    "body-too-large": 413,
    "unsupported-media-type": 415,
    "range-not-satisfiable": 416,
    "idempotency-key-reused": 422,
    "invalid-request": 422,
    "license-refused": 422,
    "method-unavailable": 422,
    "referee-is-reward": 422,
    "queue-full": 429,
    "quota-exceeded": 429,
    "rate-limited": 429,
    "too-many-streams": 429,
    "artifact-lost": 500,
    "internal": 500,
    "store-unavailable": 503,
}
"""Every `code` of a problem, and its status: programs rely on both."""
MAKE_AGAIN: Final = "Submit the job's spec again: the same seed makes the same object."
STORE_RETRY_S: Final = 5
"""What `Retry-After` says while a store is down: a restart of one takes some seconds."""


class FieldError(BaseModel):
    """One field of the request that is wrong: a JSON pointer (RFC 6901), or `/name` of a parameter."""

    pointer: str
    detail: str


class ProblemDocument(BaseModel):
    """The body of every error answer (RFC 9457); `code` is for programs, `detail` for people."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    code: Annotated[str, Field(json_schema_extra={"enum": list(CODES)})]
    request_id: str
    retryable: bool
    errors: list[FieldError]
    suggestion: str | None


class Problem(HTTPException):
    """Refuse a request: raised anywhere in a handler, answered as a problem document. `CODES` has its code."""

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        suggestion: str | None = None,
        errors: Sequence[FieldProblem] = (),
        retry_after_s: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        assert CODES[code] == status, f"CODES says {CODES[code]} of {code}"
        retry = {} if retry_after_s is None else {"Retry-After": str(retry_after_s)}
        super().__init__(status, detail, {**(headers or {}), **retry})
        self.code = code
        self.suggestion = suggestion
        self.errors = errors
        self.retryable = retry_after_s is not None


def invalid(pointer: str, detail: str) -> Problem:
    """Refuse one field or parameter: 422."""
    return Problem(422, "invalid-request", f"{pointer}: {detail}", errors=[FieldProblem(pointer, detail)])


def unknown(what: str, identifier: str, listed_at: str = "/v1/jobs") -> Problem:
    """Say that there is no such thing: 404; `listed_at` is the route that lists what there is."""
    return Problem(
        404,
        f"unknown-{what}",
        f"There is no {what} {identifier!r} here.",
        suggestion=f"GET {listed_at} lists what there is.",
    )


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Describe problem answers for OpenAPI: the `responses=` of a route that may answer these statuses."""
    content = {PROBLEM_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemDocument"}}}
    return {status: {"description": HTTPStatus(status).phrase, "content": content} for status in statuses}


def install_problem_handlers(app: FastAPI, routes: Sequence[BaseRoute]) -> None:
    """Answer every exception of `app` with a problem document that carries the request's id.

    `routes` are all that it serves: what a path takes is said by several of them.
    """

    async def answer(request: Request, error: Exception) -> Response:
        problem = _as_problem(request, error)
        if problem.status_code == 405:
            problem.headers = {**(problem.headers or {}), **_allow(request.url.path, routes)}
        return _respond(problem, request.state.request_id)

    kinds = (
        HTTPException,
        RequestValidationError,
        Refused,
        ArtifactsExpired,
        BatchConflict,
        IdempotencyKeyReused,
        JobActive,
        NothingToChoose,
        QueueFull,
        QuotaExceeded,
        StoreUnavailable,
    )
    for kind in (*kinds, Exception):
        app.add_exception_handler(kind, answer)


def _as_problem(request: Request, error: Exception) -> Problem:
    match error:
        case Problem():
            return error
        case HTTPException(status_code=404 | 405):
            return _framework_problem(request, error)
        case RequestValidationError():
            return _parameter_problem(error)
        case Refused():
            return Problem(422, error.code, str(error), suggestion=error.suggestion, errors=error.problems)
        case BatchConflict():
            return Problem(409, "batch-conflict", str(error))
        case IdempotencyKeyReused():
            suggestion = "Use a new key for a new request; repeat a key only with the very same body."
            return Problem(422, "idempotency-key-reused", str(error), suggestion=suggestion)
        case JobActive():
            suggestion = "Cancel it first, and wait until it has ended."
            return Problem(409, "job-active", str(error), suggestion=suggestion)
        case NothingToChoose():
            suggestion = "Choose when the job has succeeded, among the `candidates` of its result."
            return Problem(409, error.code, str(error), suggestion=suggestion)
        case ArtifactsExpired():
            return Problem(410, "artifact-expired", str(error), suggestion=MAKE_AGAIN)
        case QueueFull():
            return Problem(429, "queue-full", str(error), retry_after_s=error.retry_after_s)
        case QuotaExceeded():
            return Problem(429, "quota-exceeded", str(error), retry_after_s=error.retry_after_s)
        case StoreUnavailable():
            # The driver's words may name hosts and users: they are for the operator's log, not for the answer.
            logger.error("request %s: %s", request.state.request_id, error)
            return store_down({error.dependency: ""})
        case _:
            # The server logs the traceback: this only keeps the answer's shape.
            return Problem(
                500,
                "internal",
                "Something broke in the service; the request may or may not have taken effect.",
                suggestion="Tell the operator the request_id: the log has the cause beside it.",
            )


def store_down(dependencies: Mapping[str, str]) -> Problem:
    """Say which stores do not answer: 503, never a guess; to each belongs what the operator is to do, or nothing."""
    names = " and ".join({"objects": "object store"}.get(name, name) for name in dependencies)
    told = "".join(f" To do: {advice}." for advice in dependencies.values() if advice)
    return Problem(
        503,
        "store-unavailable",
        f"The {names} of this service cannot be reached.{told}",
        suggestion="Try again in a moment. Operators: GET /readyz and the service's log say more.",
        errors=[
            FieldProblem(f"/dependencies/{name}", f"unavailable: {advice}" if advice else "unavailable")
            for name, advice in dependencies.items()
        ],
        retry_after_s=STORE_RETRY_S,
    )


def _framework_problem(request: Request, error: HTTPException) -> Problem:
    """Translate what the framework refuses by itself: no such route, wrong method."""
    path, see = request.url.path, "GET /docs shows every route."
    if error.status_code == 404:
        return Problem(404, "unknown-route", f"There is nothing at {path!r}.", suggestion=see)
    detail = f"{path!r} does not take {request.method}."
    return Problem(405, "method-not-allowed", detail, suggestion=see, headers=error.headers)


def _allow(path: str, routes: Sequence[BaseRoute]) -> dict[str, str]:
    """List what a path takes; the framework names one route's methods only. A route without parameters comes first."""
    known = [route for route in routes if isinstance(route, Route)]
    here = [route for route in known if route.path == path]
    here = here or [route for route in known if route.path_regex.match(path)]
    methods = sorted({method for route in here for method in route.methods or ()})
    return {"Allow": ", ".join(methods)} if methods else {}


def _parameter_problem(error: RequestValidationError) -> Problem:
    found = [
        FieldProblem("".join(f"/{part}" for part in detail["loc"][1:]), detail["msg"])
        for detail in error.errors()
    ]
    detail = "; ".join(f"{each.pointer}: {each.detail}" for each in found)
    return Problem(422, "invalid-request", detail, errors=found)


def _respond(problem: Problem, request_id: str) -> Response:
    document = ProblemDocument(
        title=HTTPStatus(problem.status_code).phrase,
        status=problem.status_code,
        detail=problem.detail,
        code=problem.code,
        request_id=request_id,
        retryable=problem.retryable,
        errors=[FieldError(pointer=each.pointer, detail=each.detail) for each in problem.errors],
        suggestion=problem.suggestion,
    )
    # ASCII carries even what UTF-8 cannot, such as a lone surrogate that a refused path or field held.
    body = json.dumps(document.model_dump()).encode("ascii")
    headers = {**(problem.headers or {}), "Request-Id": request_id}
    return Response(body, problem.status_code, headers, PROBLEM_TYPE)
