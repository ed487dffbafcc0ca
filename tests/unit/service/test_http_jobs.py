"""Jobs over HTTP: submitting, waiting, listing, canceling, and repeating all of it safely."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from service.jobs.errors import StoreUnavailable
from service.jobs.states import FailureCode

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx

    from service.jobs.states import Lease
    from service.jobs.store import JobStore

PROMPT = "a red cube on top of a blue cylinder"


def submit(http: httpx.Client, **fields: Any) -> dict[str, Any]:
    answer = http.post("/generate", json={"prompt": PROMPT, **fields})
    assert answer.status_code == 202, answer.text
    document: dict[str, Any] = answer.json()
    return document


@pytest.mark.parametrize("path", ["/generate", "/v1/jobs"])
def test_a_prompt_alone_makes_a_job_that_the_location_leads_to(http: httpx.Client, path: str) -> None:
    answer = http.post(path, json={"prompt": PROMPT})
    assert answer.status_code == 202
    job = answer.json()
    assert job["status"] == "queued"
    assert job["spec"]["prompt"] == PROMPT
    assert job["spec"]["steps"] > 0
    assert http.get(answer.headers["Location"]).json()["id"] == job["id"]


def test_every_answer_carries_a_request_id_of_its_own(http: httpx.Client) -> None:
    answers = [http.get("/healthz"), http.get("/v1/jobs/job_none"), http.get("/nowhere")]
    ids = [answer.headers["Request-Id"] for answer in answers]
    assert len(set(ids)) == 3
    assert answers[1].json()["request_id"] == ids[1]


@pytest.mark.parametrize(
    "prompt",
    [
        "${oc.env:HOME}",
        "a: b",
        "null",
        "# a cube",
        "'single' \"double\" `back` \\ slash",
        "{{braces}} %s {0} $(id)",
        "\u202eright to left\u202c مكعب",
        "🧊 on 🛢️",
        "two\nlines\tand a tab",
        "e\u0301 is not \u00e9",
    ],
)
def test_a_prompt_reaches_the_worker_byte_equal(http: httpx.Client, store: JobStore, prompt: str) -> None:
    job = http.post("/generate", json={"prompt": prompt}).json()
    assert job["spec"]["prompt"] == prompt
    assert http.get(f"/v1/jobs/{job['id']}").json()["spec"]["prompt"] == prompt
    lease = store.claim("worker")
    assert lease is not None
    assert lease.spec.prompt == prompt


def test_one_idempotency_key_makes_one_job(http: httpx.Client) -> None:
    headers = {"Idempotency-Key": "order-66"}
    first = http.post("/generate", json={"prompt": PROMPT, "steps": 5}, headers=headers)
    again = http.post("/v1/jobs", json={"steps": 5, "prompt": PROMPT}, headers=headers)
    assert again.status_code == 202
    assert again.json()["id"] == first.json()["id"]
    assert again.headers["Location"] == first.headers["Location"]
    assert len(http.get("/v1/jobs").json()["items"]) == 1


def test_an_idempotency_key_with_another_body_is_refused(http: httpx.Client) -> None:
    headers = {"Idempotency-Key": "order-66"}
    http.post("/generate", json={"prompt": PROMPT}, headers=headers)
    answer = http.post("/generate", json={"prompt": "a green cone"}, headers=headers)
    assert answer.status_code == 422
    assert answer.json()["code"] == "idempotency-key-reused"
    assert "new key" in answer.json()["suggestion"]


@pytest.mark.parametrize("key", ["", "with space", "x" * 256])
def test_an_unusable_idempotency_key_is_refused(http: httpx.Client, key: str) -> None:
    answer = http.post("/generate", json={"prompt": PROMPT}, headers={"Idempotency-Key": key})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == "/idempotency-key"


def test_a_preferred_wait_answers_as_soon_as_the_job_ends(
    http: httpx.Client, store: JobStore, finish: Callable[[Lease], None]
) -> None:
    def work() -> None:
        while (lease := store.claim("worker")) is None:
            pass
        finish(lease)

    worker = threading.Thread(target=work)
    worker.start()
    answer = http.post("/generate", json={"prompt": PROMPT}, headers={"Prefer": "wait=30"})
    worker.join()
    assert answer.status_code == 200
    assert answer.json()["status"] == "succeeded"
    assert answer.headers["Preference-Applied"] == "wait=30"


def test_a_preferred_wait_that_is_too_short_answers_202(http: httpx.Client) -> None:
    answer = http.post("/generate", json={"prompt": PROMPT}, headers={"Prefer": "respond-async, wait=0"})
    assert answer.status_code == 202
    assert answer.json()["status"] == "queued"


@pytest.mark.parametrize("found", ["an outage", "an erased job"])
def test_a_job_that_is_queued_is_answered_whatever_happens_while_waiting(
    http: httpx.Client, store: JobStore, monkeypatch: pytest.MonkeyPatch, found: str
) -> None:
    def get(*_: object) -> None:
        if found == "an outage":
            raise StoreUnavailable("database", "gone")

    monkeypatch.setattr(store, "get", get)
    answer = http.post("/generate", json={"prompt": PROMPT}, headers={"Prefer": "wait=1"})
    assert answer.status_code == 202
    assert answer.json()["status"] == "queued"


@pytest.mark.parametrize("preference", ["wait=soon", "wait=-1", "patience", "await=5"])
def test_a_preference_that_means_nothing_is_ignored(http: httpx.Client, preference: str) -> None:
    answer = http.post("/generate", json={"prompt": PROMPT}, headers={"Prefer": preference})
    assert answer.status_code == 202
    assert "Preference-Applied" not in answer.headers


def test_posts_at_the_same_time_are_answered_each_for_itself(http: httpx.Client, store: JobStore) -> None:
    bodies = [{"prompt": PROMPT}] * 6 + [{"prompt": ""}, {"prompt": PROMPT, "steps": 0}]
    with ThreadPoolExecutor(len(bodies)) as callers:
        answers = list(callers.map(lambda body: http.post("/generate", json=body), bodies))
    assert [answer.status_code for answer in answers[6:]] == [422, 422]
    assert [answer.json()["errors"][0]["pointer"] for answer in answers[6:]] == ["/prompt", "/steps"]
    assert Counter(answer.status_code for answer in answers[:6]) == {202: 3, 429: 3}
    queued = {job["id"] for job in store.list_jobs()[0]}
    assert queued == {answer.json()["id"] for answer in answers if answer.status_code == 202}


def test_a_full_queue_answers_429_with_retry_after(http: httpx.Client) -> None:
    for _ in range(3):
        submit(http)
    answer = http.post("/generate", json={"prompt": PROMPT})
    assert answer.status_code == 429
    assert answer.json()["code"] == "queue-full"
    assert answer.json()["retryable"] is True
    assert int(answer.headers["Retry-After"]) > 0


def test_pages_follow_each_other_newest_first(http: httpx.Client) -> None:
    made = [submit(http)["id"] for _ in range(3)]
    first = http.get("/v1/jobs", params={"limit": 2}).json()
    second = http.get("/v1/jobs", params={"limit": 2, "cursor": first["next_cursor"]}).json()
    assert [job["id"] for job in first["items"] + second["items"]] == made[::-1]
    assert second["next_cursor"] is None


def test_lists_are_filtered_by_status_method_and_metadata(http: httpx.Client, store: JobStore) -> None:
    plain = submit(http, method="sds")
    tagged = submit(http, method={"name": "dreamdpo"}, metadata={"project": "chess & draughts", "n": "1"})
    store.cancel(plain["id"])

    def ids(**params: str) -> list[str]:
        return [job["id"] for job in http.get("/v1/jobs", params=params).json()["items"]]

    assert ids(status="canceled") == [plain["id"]]
    assert ids(method="dreamdpo") == [tagged["id"]]
    assert ids(**{"metadata[project]": "chess & draughts", "metadata[n]": "1"}) == [tagged["id"]]
    assert ids(**{"metadata[project]": "chess"}) == []


@pytest.mark.parametrize(
    ("query", "pointer"),
    [
        ("status=done", "/status"),
        ("method=gan", "/method"),
        ("limit=0", "/limit"),
        ("limit=1000", "/limit"),
        ("cursor=yesterday", "/cursor"),
        ("stauts=queued", "/stauts"),
        ("metadata[a%00]=1", "/metadata[a\0]"),
        ("metadata[a]=%00", "/metadata[a]"),
    ],
)
def test_a_wrong_list_parameter_is_refused_by_name(http: httpx.Client, query: str, pointer: str) -> None:
    answer = http.get(f"/v1/jobs?{query}")
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == pointer


def test_canceling_a_queued_job_ends_it_and_may_be_repeated(http: httpx.Client) -> None:
    job = submit(http)
    for _ in range(2):
        answer = http.post(f"/v1/jobs/{job['id']}/cancel")
        assert answer.status_code == 200
        assert answer.json()["status"] == "canceled"


def test_canceling_a_running_job_asks_its_worker(http: httpx.Client, store: JobStore) -> None:
    job = submit(http)
    lease = store.claim("worker")
    assert lease is not None
    answer = http.post(f"/v1/jobs/{job['id']}/cancel")
    assert answer.status_code == 202
    assert answer.json()["status"] == "canceling"
    store.cancel_confirmed(lease)
    assert http.get(f"/v1/jobs/{job['id']}").json()["status"] == "canceled"


@pytest.mark.parametrize("code", [FailureCode.NAN_DIVERGENCE, FailureCode.EMPTY_MESH])
def test_a_failed_job_says_why(http: httpx.Client, store: JobStore, code: FailureCode) -> None:
    job = submit(http)
    lease = store.claim("worker")
    assert lease is not None
    store.fail(lease, code, "at step 3")
    document = http.get(f"/v1/jobs/{job['id']}").json()
    assert document["status"] == "failed"
    assert document["error"] == {"code": code.value, "detail": "at step 3", "retryable": False}
