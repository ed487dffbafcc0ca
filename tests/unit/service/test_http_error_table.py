"""The product's error table, row by row: what is wrong, and the status, code and pointer of the answer.

No code of `CODES`, nor of a failed job, is without a row. Many more kinds of wrong bodies are in
`test_http_bad_input.py`, keys in `test_http_auth.py`, stores that are down (503) in `test_http_operation.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

import httpx
import pytest

from service.http import stream
from service.http.api import build_api
from service.http.errors import CODES
from service.jobs.capabilities import PartFacts, embedded_capabilities
from service.jobs.errors import RefusalCode
from service.jobs.keys import KeyStore, NewKey, Quotas
from service.jobs.states import FailureCode
from service.jobs.store import JobStore
from service.jobs.webhooks import MAX_ENDPOINTS
from tests.unit.service.conftest import RESULT, InProcess

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
    Row("POST", f"/v1/jobs/job_{NOBODY}/keep", 404, "unknown-job", json={"candidates": [0]}),
    Row("DELETE", f"/v1/jobs/job_{NOBODY}", 404, "unknown-job"),
    Row("GET", f"/v1/artifacts/art_{NOBODY}", 404, "unknown-artifact"),
    Row("GET", f"/v1/artifacts/art_{NOBODY}/content", 404, "unknown-artifact"),
    Row("GET", f"/v1/batches/batch_{NOBODY}", 404, "unknown-batch"),
    Row("GET", f"/v1/webhooks/whk_{NOBODY}", 404, "unknown-webhook"),
    Row("POST", f"/v1/webhooks/whk_{NOBODY}/deliveries/msg_{NOBODY}/replay", 404, "unknown-delivery"),
    Row("DELETE", f"/v1/keys/key_{NOBODY}", 404, "unknown-key"),
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


def test_a_wrong_method_is_told_all_that_the_path_takes(http: httpx.Client) -> None:
    job = f"/v1/jobs/job_{NOBODY}"
    for path, allowed in (("/v1/jobs", "GET, POST"), (job, "DELETE, GET"), ("/v1/webhooks/default", "POST")):
        assert http.put(path).headers["Allow"] == allowed


# ---- what depends on what was before


@dataclass
class Service:
    """The application and all that lies under it."""

    api: FastAPI
    http: httpx.Client
    store: JobStore
    objects: ObjectStore
    settings: Settings
    finish: Callable[..., None]
    client: Callable[..., httpx.Client]
    """A client behind authentication, with a new key of these fields, or without."""

    def submit(self) -> dict[str, Any]:
        answer = self.http.post("/v1/jobs", json=CUBE)
        assert answer.status_code == 202, answer.text
        return dict(answer.json())

    def artifact(self, retention_s: float = 60.0) -> str:
        """Where the content of a finished job's artifact is."""
        job = self.submit()
        store = JobStore(self.settings.database_url, retention_s=retention_s)
        lease = store.claim("worker")
        assert lease is not None
        self.finish(lease, store)
        store.close()
        (artifact,) = self.http.get(f"/v1/jobs/{job['id']}/artifacts").json()["items"]
        assert self.http.get(f"/v1/artifacts/{artifact['id']}").status_code == 200
        return f"/v1/artifacts/{artifact['id']}/content"


@pytest.fixture
def service(
    api: FastAPI,
    http: httpx.Client,
    store: JobStore,
    objects: ObjectStore,
    settings: Settings,
    finish: Callable[..., None],
    guarded: Callable[..., httpx.Client],
) -> Service:
    return Service(api, http, store, objects, settings, finish, guarded)


def without_a_key(service: Service) -> httpx.Response:
    assert service.client().post("/v1/jobs", json=CUBE).status_code == 401
    return service.client().get("/v1/usage")


def with_a_key_for_reading(service: Service) -> httpx.Response:
    reader = service.client(name="reader", scopes=["read"])
    assert reader.get("/v1/usage").status_code == 200
    return reader.post("/v1/jobs", json=CUBE)


def usage_of_all_without_admin(service: Service) -> httpx.Response:
    return service.client(name="reader", scopes=["read"]).get("/v1/usage?all_owners=true")


def erasing_an_active_job(service: Service) -> httpx.Response:
    return service.http.delete(f"/v1/jobs/{service.submit()['id']}")


def retrying_an_active_job(service: Service) -> httpx.Response:
    return service.http.post(f"/v1/jobs/{service.submit()['id']}/retry")


def choosing_before_the_end(service: Service) -> httpx.Response:
    return service.http.post(f"/v1/jobs/{service.submit()['id']}/keep", json={"candidates": [0]})


def choosing_among_nothing(service: Service) -> httpx.Response:
    job, lease = service.submit(), service.store.claim("worker")
    assert lease is not None
    service.store.finish(lease, {**RESULT, "candidates": [], "mesh": None}, [])
    return service.http.post(f"/v1/jobs/{job['id']}/keep", json={"candidates": [0]})


def resuming_a_canceled_batch(service: Service) -> httpx.Response:
    batch = service.http.post("/v1/batches", json={"items": [{"body": CUBE}]}).json()
    service.http.post(f"/v1/batches/{batch['id']}/cancel")
    return service.http.post(f"/v1/batches/{batch['id']}/resume")


def sending_a_test_to_the_default_webhook(service: Service) -> httpx.Response:
    webhook = service.http.post("/v1/webhooks/default").json()
    return service.http.post(f"/v1/webhooks/{webhook['id']}/test")


def one_webhook_too_many(service: Service) -> httpx.Response:
    for _ in range(MAX_ENDPOINTS):
        answer = service.http.post("/v1/webhooks", json={"url": "https://example.com/hook"})
        assert answer.status_code == 201, answer.text
    return service.http.post("/v1/webhooks", json={"url": "https://example.com/hook"})


def an_expired_artifact(service: Service) -> httpx.Response:
    return service.http.get(service.artifact(retention_s=0.0))


def a_range_behind_the_end(service: Service) -> httpx.Response:
    return service.http.get(service.artifact(), headers={"Range": "bytes=1000000-"})


def an_artifact_that_somebody_deleted(service: Service) -> httpx.Response:
    content = service.artifact()
    for key in [one.key for one in service.objects.list("")]:
        service.objects.delete(key)
    return service.http.get(content)


def a_key_with_another_body(service: Service) -> httpx.Response:
    headers = {"Idempotency-Key": "one"}
    service.http.post("/v1/jobs", json=CUBE, headers=headers)
    return service.http.post("/v1/jobs", json={"prompt": "a blue cube"}, headers=headers)


def parts_without_the_license(service: Service) -> httpx.Response:
    can = embedded_capabilities()
    restricted = PartFacts(license="CC-BY-NC-4.0", commercial_ok=False, views=4)
    service.store.publish_capabilities("worker", can.model_copy(update={"priors": {"embedded": restricted}}))
    return service.http.post("/v1/jobs", json={**CUBE, "license_policy": "commercial_ok"})


def a_full_queue(service: Service) -> httpx.Response:
    for _ in range(3):
        service.submit()
    return service.http.post("/v1/jobs", json=CUBE)


def a_quota_used_up(service: Service) -> httpx.Response:
    client = service.client(name="ann", quotas=Quotas(max_queued=1))
    assert client.post("/v1/jobs", json=CUBE).status_code == 202
    return client.post("/v1/jobs", json=CUBE)


def a_key_that_comes_too_often(service: Service) -> httpx.Response:
    service.settings = service.settings.model_copy(update={"rate_limit_per_s": 0.001})
    client = service.client(settings=service.settings, name="ann")
    assert client.get("/v1/jobs").status_code == 200
    return client.get("/v1/jobs")


def too_many_streams(service: Service) -> httpx.Response:
    service.api.state.open_streams = stream.MAX_STREAMS
    return service.http.get(f"/v1/jobs/{service.submit()['id']}/events")


def a_database_that_is_gone(service: Service) -> httpx.Response:
    service.store.close()
    service.settings.data_dir.rename(service.settings.data_dir.with_name("gone"))
    return service.http.get("/v1/jobs")


def a_fault_of_ours(service: Service) -> httpx.Response:
    service.api.state.store = None
    return service.http.get("/v1/jobs")


SITUATIONS: list[tuple[Callable[[Service], httpx.Response], int, str, str | None]] = [
    (without_a_key, 401, "unauthenticated", None),
    (with_a_key_for_reading, 403, "forbidden", None),
    (usage_of_all_without_admin, 403, "forbidden", None),
    (erasing_an_active_job, 409, "job-active", None),
    (retrying_an_active_job, 409, "job-active", None),
    (choosing_before_the_end, 409, "job-not-succeeded", None),
    (choosing_among_nothing, 409, "no-candidates", None),
    (resuming_a_canceled_batch, 409, "batch-conflict", None),
    (sending_a_test_to_the_default_webhook, 409, "default-webhook", None),
    (one_webhook_too_many, 409, "too-many-webhooks", None),
    (an_expired_artifact, 410, "artifact-expired", None),
    (a_range_behind_the_end, 416, "range-not-satisfiable", None),
    (a_key_with_another_body, 422, "idempotency-key-reused", None),
    (parts_without_the_license, 422, "license-refused", "/prior"),
    (a_full_queue, 429, "queue-full", None),
    (a_quota_used_up, 429, "quota-exceeded", None),
    (a_key_that_comes_too_often, 429, "rate-limited", None),
    (too_many_streams, 429, "too-many-streams", None),
    (an_artifact_that_somebody_deleted, 500, "artifact-lost", None),
    (a_fault_of_ours, 500, "internal", None),
    (a_database_that_is_gone, 503, "store-unavailable", "/dependencies/database"),
]


@pytest.mark.parametrize(
    ("situation", "status", "code", "pointer"), SITUATIONS, ids=[one[0].__name__ for one in SITUATIONS]
)
def test_a_request_at_the_wrong_time_gets_its_row_of_the_table(
    service: Service,
    situation: Callable[[Service], httpx.Response],
    status: int,
    code: str,
    pointer: str | None,
) -> None:
    check(situation(service), status, code, pointer)


def test_every_code_has_a_row_and_every_row_a_code() -> None:
    rows = {(row.code, row.status) for row in ROWS} | {(code, status) for _, status, code, _ in SITUATIONS}
    assert rows == set(CODES.items())
    assert set(get_args(RefusalCode)) <= CODES.keys()


@pytest.fixture
def guarded(
    store: JobStore, objects: ObjectStore, settings: Settings, portal: BlockingPortal
) -> Iterator[Callable[..., httpx.Client]]:
    """Clients of the same stores behind authentication; the call makes one with a key, or without."""
    opened = []

    def client(settings: Settings = settings, **key: Any) -> httpx.Client:
        api = build_api(store, objects, settings.model_copy(update={"auth": "on"}))
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
