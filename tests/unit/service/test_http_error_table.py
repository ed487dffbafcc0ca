"""The product's error table, row by row: what is wrong, and the status, code and pointer of the answer.

Many more kinds of wrong bodies are in `test_http_bad_input.py`, keys in `test_http_auth.py`, stores that are down
(503) in `test_http_operation.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import httpx
import pytest

from service.http import stream
from service.http.api import build_api
from service.jobs.capabilities import PartFacts, embedded_capabilities
from service.jobs.keys import KeyStore, NewKey, Quotas
from service.jobs.states import FailureCode
from service.jobs.store import JobStore
from tests.unit.service.conftest import InProcess

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from anyio.from_thread import BlockingPortal
    from fastapi import FastAPI

    from service.jobs.objects import ObjectStore
    from service.jobs.states import Lease
    from service.settings import Settings

CUBE = {"prompt": "a red cube"}
NOBODY = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
JSON = {"Content-Type": "application/json"}


class Row(NamedTuple):
    """A request that is wrong by itself, and its answer."""

    method: str
    path: str
    status: int
    code: str
    pointer: str | None = None
    json: Any = None
    content: bytes | None = None
    headers: dict[str, str] | None = None


ROWS = [
    # 400: the body is no JSON
    Row("POST", "/v1/jobs", 400, "malformed-json", content=b"{", headers=JSON),
    Row("POST", "/v1/estimates", 400, "malformed-json", content=b"{'prompt': 1}", headers=JSON),
    Row("POST", f"/v1/jobs/job_{NOBODY}/cancel", 400, "malformed-json", content=b"yes", headers=JSON),
    # 404: never existed
    Row("GET", f"/v1/jobs/job_{NOBODY}", 404, "unknown-job"),
    Row("GET", f"/v1/jobs/job_{NOBODY}/events", 404, "unknown-job"),
    Row("GET", f"/v1/jobs/job_{NOBODY}/artifacts", 404, "unknown-job"),
    Row("POST", f"/v1/jobs/job_{NOBODY}/cancel", 404, "unknown-job"),
    Row("POST", f"/v1/jobs/job_{NOBODY}/retry", 404, "unknown-job"),
    Row("DELETE", f"/v1/jobs/job_{NOBODY}", 404, "unknown-job"),
    Row("GET", f"/v1/artifacts/art_{NOBODY}", 404, "unknown-artifact"),
    Row("GET", f"/v1/artifacts/art_{NOBODY}/content", 404, "unknown-artifact"),
    Row("GET", f"/v1/batches/batch_{NOBODY}", 404, "unknown-batch"),
    Row("GET", "/v1/nothing", 404, "unknown-route"),
    Row("PUT", "/v1/jobs", 405, "method-not-allowed"),
    # 413, 415: a body that is not read
    Row("POST", "/v1/jobs", 413, "body-too-large", content=b" " * 300_000, headers=JSON),
    Row("POST", "/v1/jobs", 415, "unsupported-media-type", content=b"prompt=a+red+cube"),
    # 422: JSON that cannot be a job
    Row("POST", "/v1/jobs", 422, "invalid-request", "/prompt", {}),
    Row("POST", "/v1/jobs", 422, "invalid-request", "/stepz", {**CUBE, "stepz": 5}),
    Row("POST", "/v1/jobs", 422, "invalid-request", "/candidates", {**CUBE, "candidates": {"keep": 2}}),
    Row("POST", "/v1/jobs", 422, "invalid-request", "/limits/max_gpu_s", {**CUBE, "limits": {"max_gpu_s": 0}}),
    Row("POST", "/v1/estimates", 422, "invalid-request", "/mesh/formats/0", {**CUBE, "mesh": {"formats": ["fbx"]}}),
    Row("GET", "/v1/jobs?limit=0", 422, "invalid-request", "/limit"),
    Row("GET", "/v1/jobs?batch_id=mine", 422, "invalid-request", "/batch_id"),
    Row("GET", "/v1/usage?since=soon", 422, "invalid-request", "/since"),
    # 422: a job that no worker here could run
    Row("POST", "/v1/jobs", 422, "method-unavailable", "/prior", {**CUBE, "prior": "mvdream"}),
    Row("POST", "/v1/jobs", 422, "method-unavailable", "/rewards/0/name", {**CUBE, "rewards": [{"name": "taste"}]}),
    Row(
        "POST",
        "/v1/jobs",
        422,
        "referee-is-reward",
        "/referee",
        {**CUBE, "method": "dreamfl", "rewards": [{"name": "embedded-alignment"}], "referee": "embedded-alignment"},
    ),
]  # fmt: skip


def check(answer: httpx.Response, status: int, code: str, pointer: str | None = None) -> dict[str, Any]:
    """Compare an answer with its row of the table."""
    assert (answer.status_code, answer.headers["Content-Type"]) == (status, "application/problem+json")
    problem: dict[str, Any] = answer.json()
    assert (problem["status"], problem["code"]) == (status, code), problem
    assert problem["request_id"] == answer.headers["Request-Id"]
    assert problem["detail"]
    assert problem["retryable"] == (status in (429, 503))
    assert ("Retry-After" in answer.headers) == problem["retryable"]
    if pointer is not None:
        assert problem["errors"][0]["pointer"] == pointer, problem
    return problem


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.method} {row.path} {row.status} {row.code}")
def test_a_wrong_request_gets_its_row_of_the_table(http: httpx.Client, row: Row) -> None:
    answer = http.request(row.method, row.path, json=row.json, content=row.content, headers=row.headers)
    check(answer, row.status, row.code, row.pointer)
    assert http.get("/v1/jobs").json()["items"] == []


def test_parts_whose_license_the_job_excludes_are_a_422(http: httpx.Client, store: JobStore) -> None:
    can = embedded_capabilities()
    restricted = PartFacts(license="CC-BY-NC-4.0", commercial_ok=False, views=4)
    store.publish_capabilities("worker", can.model_copy(update={"priors": {"embedded": restricted}}))
    answer = http.post("/v1/jobs", json={**CUBE, "license_policy": "commercial_ok"})
    check(answer, 422, "license-refused", "/prior")


def test_an_idempotency_key_with_another_body_is_a_422(http: httpx.Client) -> None:
    headers = {"Idempotency-Key": "one"}
    http.post("/v1/jobs", json=CUBE, headers=headers)
    answer = http.post("/v1/jobs", json={"prompt": "a blue cube"}, headers=headers)
    check(answer, 422, "idempotency-key-reused")


def test_what_an_active_job_does_not_allow_is_a_409(http: httpx.Client) -> None:
    job = http.post("/v1/jobs", json=CUBE).json()
    check(http.delete(f"/v1/jobs/{job['id']}"), 409, "job-active")
    check(http.post(f"/v1/jobs/{job['id']}/retry"), 409, "job-active")


def test_an_expired_artifact_is_a_410(
    http: httpx.Client, settings: Settings, finish: Callable[..., None]
) -> None:
    job = http.post("/v1/jobs", json=CUBE).json()
    forgetful = JobStore(settings.database_url, retention_s=0.0)
    lease = forgetful.claim("worker")
    assert lease is not None
    finish(lease, forgetful)
    forgetful.close()
    (artifact,) = http.get(f"/v1/jobs/{job['id']}/artifacts").json()["items"]
    check(http.get(f"/v1/artifacts/{artifact['id']}/content"), 410, "artifact-expired")
    assert http.get(f"/v1/artifacts/{artifact['id']}").status_code == 200


# ---- 401, 403, 404: who asks


@pytest.fixture
def guarded(
    store: JobStore, objects: ObjectStore, settings: Settings, portal: BlockingPortal
) -> Iterator[Callable[..., httpx.Client]]:
    """Clients of the same stores behind authentication; the call makes one with a key, or without."""
    api = build_api(store, objects, settings.model_copy(update={"auth": "on"}))
    opened = []

    def client(**key: Any) -> httpx.Client:
        headers = {}
        if key:
            _, token = KeyStore(store.database).create(NewKey(**key))
            headers = {"Authorization": f"Bearer {token}"}
        opened.append(
            httpx.Client(base_url="http://dreamserve", transport=InProcess(api, portal), headers=headers)
        )
        return opened[-1]

    yield client
    for one in opened:
        one.close()


def test_a_request_without_a_key_is_a_401(guarded: Callable[..., httpx.Client]) -> None:
    anonymous = guarded()
    check(anonymous.post("/v1/jobs", json=CUBE), 401, "unauthenticated")
    check(anonymous.get("/v1/usage"), 401, "unauthenticated")


def test_a_key_without_the_scope_is_a_403(guarded: Callable[..., httpx.Client]) -> None:
    reader = guarded(name="reader", scopes=["read"])
    check(reader.post("/v1/jobs", json=CUBE), 403, "forbidden")
    check(reader.get("/v1/usage?all_owners=true"), 403, "forbidden")
    assert reader.get("/v1/usage").status_code == 200


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", ""),
        ("GET", "/events"),
        ("GET", "/artifacts"),
        ("POST", "/cancel"),
        ("POST", "/retry"),
        ("DELETE", ""),
    ],
)
def test_anothers_job_is_a_404(guarded: Callable[..., httpx.Client], method: str, path: str) -> None:
    owner, other = guarded(name="ann"), guarded(name="bob")
    job = owner.post("/v1/jobs", json=CUBE).json()
    check(other.request(method, f"/v1/jobs/{job['id']}{path}"), 404, "unknown-job")
    assert owner.get(f"/v1/jobs/{job['id']}").json()["status"] == "queued"
    assert other.get("/v1/usage").json()["items"] == []
    assert other.get("/v1/queue").json()["yours"] == {"queued": 0, "running": 0}


# ---- 429: not now


def test_a_full_queue_is_a_429(http: httpx.Client) -> None:
    for _ in range(3):
        http.post("/v1/jobs", json=CUBE)
    check(http.post("/v1/jobs", json=CUBE), 429, "queue-full")


def test_a_quota_used_up_is_a_429(guarded: Callable[..., httpx.Client]) -> None:
    client = guarded(name="ann", quotas=Quotas(max_queued=1))
    assert client.post("/v1/jobs", json=CUBE).status_code == 202
    check(client.post("/v1/jobs", json=CUBE), 429, "quota-exceeded")


def test_too_many_streams_are_a_429(http: httpx.Client, api: FastAPI) -> None:
    job = http.post("/v1/jobs", json=CUBE).json()
    api.state.open_streams = stream.MAX_STREAMS
    check(http.get(f"/v1/jobs/{job['id']}/events"), 429, "too-many-streams")


# ---- jobs that fail


@pytest.mark.parametrize("code", list(FailureCode))
def test_a_failed_job_has_one_of_the_codes_and_says_whether_it_was_retried(
    http: httpx.Client, store: JobStore, code: FailureCode
) -> None:
    job = http.post("/v1/jobs", json={**CUBE, "limits": {"max_attempts": 1}}).json()
    lease: Lease | None = store.claim("worker")
    assert lease is not None
    store.fail(lease, code, "as it happens")
    found = http.get(f"/v1/jobs/{job['id']}").json()
    if code is FailureCode.PREEMPTED:  # is nobody's fault, and never ends a job
        assert found["status"] == "queued"
        return
    assert found["status"] == "failed"
    told = FailureCode.POISON_JOB if code is FailureCode.WORKER_LOST else code
    assert (found["error"]["code"], found["error"]["retryable"]) == (told, told.retryable)


def test_the_failure_codes_are_those_of_the_product() -> None:
    retried = {"gpu-out-of-memory", "worker-lost", "preempted", "stage-timeout", "storage-error"}
    final = {
        "weights-missing",
        "nan-divergence",
        "empty-mesh",
        "invalid-glb",
        "deadline-exceeded",
        "gpu-budget-exceeded",
        "poison-job",
        "internal",
    }
    assert {code for code in FailureCode if code.retryable} == retried
    assert {code for code in FailureCode if not code.retryable} == final
