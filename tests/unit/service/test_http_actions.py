"""What can be done to a job over HTTP: cancel it and keep the rest, try it again, erase it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from service.jobs.capabilities import embedded_capabilities
from service.jobs.errors import StoreUnavailable
from service.jobs.local_store import LocalStore
from service.jobs.states import FailureCode, Stage
from service.jobs.sweeping import Sweeper

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx
    from fastapi import FastAPI

    from service.jobs.objects import ObjectStore
    from service.jobs.states import Lease
    from service.jobs.store import JobStore

PROMPT = "a red cube on top of a blue cylinder"
NOBODY = "job_01ARZ3NDEKTSV4RRFFQ69G5FAV"


def submit(http: httpx.Client, **fields: Any) -> str:
    answer = http.post("/generate", json={"prompt": PROMPT, **fields})
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def claim(store: JobStore) -> Lease:
    lease = store.claim("worker")
    assert lease is not None
    return lease


# ---- cancel


@pytest.mark.parametrize("body", [b"", b"{}", b'{"keep_partial": false}', b'{"keep_partial": true}'])
def test_a_cancel_says_whether_to_keep_the_partial_result(
    http: httpx.Client, store: JobStore, body: bytes
) -> None:
    job_id = submit(http)
    lease = claim(store)
    headers = {"Content-Type": "application/json"} if body else {}
    answer = http.post(f"/v1/jobs/{job_id}/cancel", content=body, headers=headers)
    assert answer.status_code == 202
    told = store.report(lease, stage=Stage.COARSE, step=3, steps_total=300)
    assert told.cancel_requested
    assert told.keep_partial == (b"true" in body)


def test_the_newest_cancel_decides_what_is_kept(http: httpx.Client, store: JobStore) -> None:
    job_id = submit(http)
    lease = claim(store)
    http.post(f"/v1/jobs/{job_id}/cancel", json={"keep_partial": True})
    http.post(f"/v1/jobs/{job_id}/cancel")
    assert not store.report(lease, stage=Stage.COARSE, step=3, steps_total=300).keep_partial


@pytest.mark.parametrize(
    ("body", "pointer"),
    [({"keep_partial": "yes"}, "/keep_partial"), ({"keep": True}, "/keep"), ([], "")],
)
def test_a_cancel_with_a_wrong_body_cancels_nothing(http: httpx.Client, body: Any, pointer: str) -> None:
    job_id = submit(http)
    answer = http.post(f"/v1/jobs/{job_id}/cancel", json=body)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == pointer
    assert http.get(f"/v1/jobs/{job_id}").json()["status"] == "queued"


# ---- retry


def test_a_retry_is_a_new_job_with_the_same_spec(http: httpx.Client, store: JobStore) -> None:
    old = submit(http, seed=11, metadata={"k": "v"})
    store.fail(claim(store), FailureCode.NAN_DIVERGENCE, "at step 3")
    before = http.get(f"/v1/jobs/{old}").json()
    answer = http.post(f"/v1/jobs/{old}/retry")
    assert answer.status_code == 202, answer.text
    job = answer.json()
    assert job["id"] != old
    assert (job["retry_of"], job["spec"], job["status"]) == (old, before["spec"], "queued")
    assert answer.headers["Location"] == f"/v1/jobs/{job['id']}"
    assert http.get(f"/v1/jobs/{old}").json() == before
    assert claim(store).job_id == job["id"]


def test_a_preview_can_be_retried(http: httpx.Client, store: JobStore) -> None:
    store.publish_capabilities(
        "worker", embedded_capabilities().model_copy(update={"efforts": ("preview", "draft", "full")})
    )
    old = submit(http, effort="preview")
    http.post(f"/v1/jobs/{old}/cancel")
    assert http.post(f"/v1/jobs/{old}/retry").json()["spec"]["steps"] == 0


def test_an_active_job_is_neither_retried_nor_erased(http: httpx.Client, store: JobStore) -> None:
    job_id = submit(http)
    for _ in range(2):  # queued, then running
        for answer in (http.post(f"/v1/jobs/{job_id}/retry"), http.delete(f"/v1/jobs/{job_id}")):
            assert answer.status_code == 409
            assert answer.json()["code"] == "job-active"
            assert answer.json()["suggestion"]
        store.claim("worker")
    assert len(http.get("/v1/jobs").json()["items"]) == 1


def test_one_idempotency_key_makes_one_retry(http: httpx.Client) -> None:
    first, second = submit(http), submit(http)
    for job_id in (first, second):
        http.post(f"/v1/jobs/{job_id}/cancel")
    headers = {"Idempotency-Key": "again"}
    made = {http.post(f"/v1/jobs/{first}/retry", headers=headers).json()["id"] for _ in range(3)}
    assert len(made) == 1
    answer = http.post(f"/v1/jobs/{second}/retry", headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (422, "idempotency-key-reused")


def test_a_retry_that_no_worker_could_run_is_refused(http: httpx.Client, store: JobStore) -> None:
    job_id = submit(http, method="psd")
    http.post(f"/v1/jobs/{job_id}/cancel")
    can = embedded_capabilities()
    store.publish_capabilities("worker", can.model_copy(update={"methods": {"sds": can.methods["sds"]}}))
    answer = http.post(f"/v1/jobs/{job_id}/retry")
    assert (answer.status_code, answer.json()["code"]) == (422, "method-unavailable")
    assert answer.json()["errors"][0]["pointer"] == "/method"


# ---- erase


def test_an_erased_job_has_never_existed_for_anybody_who_asks(
    http: httpx.Client, store: JobStore, objects: ObjectStore, finish: Callable[[Lease], None]
) -> None:
    job_id = submit(http)
    finish(claim(store))
    artifact = http.get(f"/v1/jobs/{job_id}/artifacts").json()["items"][0]
    for _ in range(2):
        answer = http.delete(f"/v1/jobs/{job_id}")
        assert (answer.status_code, answer.content) == (204, b"")
    paths = (f"/v1/jobs/{job_id}", f"/v1/jobs/{job_id}/events", f"/v1/artifacts/{artifact['id']}/content")
    for path in paths:
        assert http.get(path).status_code == 404
    assert http.get("/v1/jobs").json()["items"] == []
    assert list(objects.list()) == []


def test_what_was_erased_stays_in_the_usage(
    http: httpx.Client, store: JobStore, finish: Callable[[Lease], None]
) -> None:
    job_id = submit(http)
    lease = claim(store)
    store.report(lease, stage=Stage.COARSE, step=3, steps_total=300, worker_s=12.5)
    finish(lease)
    before = http.get("/v1/usage").json()
    assert before["items"][0]["worker_s"] == 12.5
    http.delete(f"/v1/jobs/{job_id}")
    assert http.get("/v1/usage").json() == before


class Away(LocalStore):
    """Local objects that cannot be listed now."""

    def list(self, prefix: str = "") -> Any:
        raise StoreUnavailable("objects", "gone for a moment")


def test_an_erasure_with_the_object_store_away_is_finished_later(
    http: httpx.Client,
    api: FastAPI,
    store: JobStore,
    objects: ObjectStore,
    finish: Callable[[Lease], None],
) -> None:
    job_id = submit(http)
    finish(claim(store))
    api.state.objects = Away(objects._root)  # type: ignore[attr-defined]
    assert http.delete(f"/v1/jobs/{job_id}").status_code == 204
    assert http.get(f"/v1/jobs/{job_id}").status_code == 404
    assert list(objects.list())
    Sweeper(store.database, objects).sweep()
    assert list(objects.list()) == []


@pytest.mark.parametrize(("method", "suffix"), [("POST", "/retry"), ("DELETE", "")])
def test_there_is_nothing_to_do_to_a_job_that_never_existed(
    http: httpx.Client, method: str, suffix: str
) -> None:
    for job_id in (NOBODY, "no-id"):
        answer = http.request(method, f"/v1/jobs/{job_id}{suffix}")
        assert (answer.status_code, answer.json()["code"]) == (404, "unknown-job")
