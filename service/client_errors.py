"""What can go wrong between a client and the service: an exception tree that programs can tell apart."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import httpx

if TYPE_CHECKING:
    from collections.abc import Mapping

    from service.client_core import JobDocument

__all__ = [
    "ApiError",
    "ClientError",
    "DownloadError",
    "InvalidRequestError",
    "JobFailedError",
    "NotFoundError",
    "RefusedError",
    "ServiceUnavailableError",
    "UnauthorizedError",
    "WaitTimeoutError",
    "raise_for_problem",
]


class ClientError(Exception):
    """Anything that went wrong between this client and the service."""

    request_id = ""
    """What finds the request in the service's log, where the service answered at all."""


class ServiceUnavailableError(ClientError):
    """Nobody answers at the URL, or the service says that a store of its own is down (503)."""

    def __init__(self, detail: str, request_id: str = "") -> None:
        super().__init__(detail)
        self.request_id = request_id


class WaitTimeoutError(ClientError):
    """The job had not ended in the given time; it goes on."""


class DownloadError(ClientError):
    """There is no such artifact, or its bytes are not those that the service recorded."""


class JobFailedError(ClientError):
    """The job ended without the result that was asked for; `code` says why."""

    def __init__(self, job: JobDocument) -> None:
        error = job.document.get("error") or {"code": job.status, "detail": f"the job was {job.status}"}
        super().__init__(f"job {job.id} {job.status}: {error['detail']} ({error['code']})")
        self.job = job
        self.code: str = error["code"]


class ApiError(ClientError):
    """The service refused a request: `code` is for programs, the text for people."""

    def __init__(self, status: int, problem: Mapping[str, Any]) -> None:
        self.status = status
        self.code: str = problem.get("code", f"http-{status}")
        self.detail: str = problem.get("detail", "")
        self.request_id = problem.get("request_id", "")
        self.retryable: bool = problem.get("retryable", False)
        self.errors: list[dict[str, str]] = problem.get("errors", [])
        self.suggestion: str | None = problem.get("suggestion")
        super().__init__(" ".join(part for part in (self.detail, self.suggestion) if part) or self.code)


class InvalidRequestError(ApiError):
    """The request cannot be served as it is (400, 413, 415, 422); `errors` point at the fields."""


class UnauthorizedError(ApiError):
    """The API key is missing, unknown or not allowed to do this (401, 403)."""


class NotFoundError(ApiError):
    """There is no such job or artifact, or it is not yours (404), or it has expired (410)."""


class RefusedError(ApiError):
    """Not now: the queue is full or a quota is used up (429), or the job's state forbids it (409)."""


ERRORS_BY_STATUS: Final[dict[int, type[ApiError]]] = {
    400: InvalidRequestError,
    401: UnauthorizedError,
    403: UnauthorizedError,
    404: NotFoundError,
    409: RefusedError,
    410: NotFoundError,
    413: InvalidRequestError,
    415: InvalidRequestError,
    422: InvalidRequestError,
    429: RefusedError,
}


def raise_for_problem(response: httpx.Response) -> None:
    """Raise the typed error for an answer that is neither a success nor a redirect; its body was read."""
    if response.is_success or response.is_redirect:
        return
    try:
        problem = response.json()
    except ValueError:
        problem = {
            "detail": f"{response.request.url} answered {response.status_code}, and not as Dreamserve does."
        }
    if response.status_code == httpx.codes.SERVICE_UNAVAILABLE:
        raise ServiceUnavailableError(problem["detail"], problem.get("request_id", ""))
    raise ERRORS_BY_STATUS.get(response.status_code, ApiError)(response.status_code, problem)
