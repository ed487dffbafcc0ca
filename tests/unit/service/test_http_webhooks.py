"""Webhooks over HTTP: making, changing, testing, reading the log; what is refused, and whose they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from service.http.auth import Caller, authenticate
from service.jobs.webhook_tries import Answer
from service.jobs.webhooks import WebhookStore

if TYPE_CHECKING:
    import httpx
    from fastapi import FastAPI

    from service.jobs.store import JobStore

URL = "https://receiver.example/hook"
NO_ID = "01ARZ3NDEKTSV4RRFFQ69G5FAV"


def make(http: httpx.Client, **fields: Any) -> dict[str, Any]:
    answer = http.post("/v1/webhooks", json={"url": URL, **fields})
    assert answer.status_code == 201, answer.text
    document: dict[str, Any] = answer.json()
    return document


def refused(answer: httpx.Response, status: int, code: str, pointer: str | None = None) -> str:
    assert answer.status_code == status, answer.text
    problem = answer.json()
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert problem["code"] == code
    if pointer is not None:
        assert problem["errors"][0]["pointer"] == pointer
    return str(problem["detail"])


def test_the_secret_is_shown_once_and_the_location_leads_to_the_webhook(http: httpx.Client) -> None:
    answer = http.post("/v1/webhooks", json={"url": URL})
    made = answer.json()
    assert made["secret"].startswith("whsec_")
    assert answer.headers["Cache-Control"] == "no-store"
    del made["secret"]
    assert http.get(answer.headers["Location"]).json() == made
    assert http.get("/v1/webhooks").json() == {"items": [made], "next_cursor": None}
    assert made | {"id": "", "created_at": ""} == {
        "id": "",
        "url": URL,
        "event_types": ["job.canceled", "job.failed", "job.succeeded", "batch.completed"],
        "enabled": True,
        "disabled_at": None,
        "disabled_reason": None,
        "failing_since": None,
        "created_at": "",
    }


@pytest.mark.parametrize(
    ("body", "pointer", "detail"),
    [
        ({}, "/url", "needed"),
        ({"url": "http://receiver.example/"}, "/url", "https://"),
        ({"url": "https://127.0.0.1/"}, "/url", "not a public address"),
        ({"url": "https://[::ffff:10.0.0.1]/"}, "/url", "not a public address"),
        ({"url": "https://localhost/"}, "/url", "this machine"),
        ({"url": "https://a:b@receiver.example/"}, "/url", "password"),
        ({"url": "https://" + "a" * 3_000}, "/url", "2048"),
        ({"url": 5}, "/url", "string"),
        ({"url": "https://x.example/\0"}, "/url", "NUL"),
        ({"url": URL, "event_types": ["job.done"]}, "/event_types/0", "job.succeeded"),
        ({"url": URL, "event_types": []}, "/event_types", "at least 1"),
        ({"url": URL, "event_types": "job.failed"}, "/event_types", "array"),
        ({"url": URL, "events": []}, "/events", "no such field"),
        ({"url": URL, "secret": "whsec_mine"}, "/secret", "no such field"),
        ([], "", "object"),
    ],
)
def test_a_wrong_webhook_is_refused_with_the_field(
    http: httpx.Client, body: object, pointer: str, detail: str
) -> None:
    assert detail in refused(http.post("/v1/webhooks", json=body), 422, "invalid-request", pointer)
    assert http.get("/v1/webhooks").json()["items"] == []


@pytest.mark.parametrize(
    ("url", "detail"),
    [("http://receiver.example/", "https://"), ("https://10.0.0.1/", "not a public address")],
)
def test_a_jobs_own_webhook_is_checked_at_submit(http: httpx.Client, url: str, detail: str) -> None:
    answer = http.post("/generate", json={"prompt": "a red cube", "webhook": url})
    assert detail in refused(answer, 422, "invalid-request", "/webhook")


def test_a_job_with_a_webhook_is_taken(http: httpx.Client) -> None:
    answer = http.post("/generate", json={"prompt": "a red cube", "webhook": URL})
    assert (answer.status_code, answer.json()["spec"]["webhook"]) == (202, URL)


def test_a_repeated_request_with_its_key_gets_the_first_answer(http: httpx.Client) -> None:
    headers = {"Idempotency-Key": "k"}
    first = http.post("/v1/webhooks", json={"url": URL, "event_types": ["job.failed"]}, headers=headers)
    again = http.post("/v1/webhooks", json={"event_types": ["job.failed"], "url": URL}, headers=headers)
    assert again.json() == first.json()
    refused(http.post("/v1/webhooks", json={"url": URL}, headers=headers), 422, "idempotency-key-reused")


def test_a_webhook_is_changed_in_part(http: httpx.Client) -> None:
    made = make(http, event_types=["job.failed", "job.failed"])
    path = f"/v1/webhooks/{made['id']}"
    assert made["event_types"] == ["job.failed"]
    changed = http.patch(path, json={"url": "https://new.example/", "event_types": None}).json()
    assert (changed["url"], changed["event_types"]) == ("https://new.example/", ["job.failed"])
    off = http.patch(path, json={"enabled": False}).json()
    assert (off["enabled"], off["disabled_reason"]) == (False, "its owner disabled it")
    assert http.patch(path, json={"enabled": True}).json()["disabled_reason"] is None
    refused(http.patch(path, json={"url": "https://[fd00::1]/"}), 422, "invalid-request", "/url")
    refused(http.patch(path, json={"enabled": "yes"}), 422, "invalid-request", "/enabled")
    refused(
        http.patch(path, content=b"{", headers={"Content-Type": "application/json"}), 400, "malformed-json"
    )


def test_a_deleted_webhook_is_gone(http: httpx.Client) -> None:
    path = f"/v1/webhooks/{make(http)['id']}"
    assert http.delete(path).status_code == 204
    refused(http.get(path), 404, "unknown-webhook")
    refused(http.delete(path), 404, "unknown-webhook")


def test_rotation_shows_a_new_secret(http: httpx.Client) -> None:
    made = make(http)
    answer = http.post(f"/v1/webhooks/{made['id']}/rotate")
    assert answer.json()["secret"] != made["secret"]
    assert answer.headers["Cache-Control"] == "no-store"


def test_the_log_is_read_in_pages_with_every_try(http: httpx.Client, store: JobStore) -> None:
    path = f"/v1/webhooks/{make(http)['id']}"
    sent = [http.post(f"{path}/test") for _ in range(3)]
    assert {answer.status_code for answer in sent} == {202}
    webhooks = WebhookStore(store.database)
    webhooks.record(webhooks.claim(1, 60.0)[0], Answer(0.25, 500, None, "oops"))
    first = http.get(f"{path}/deliveries?limit=2").json()
    rest = http.get(f"{path}/deliveries?limit=2&cursor={first['next_cursor']}").json()
    found = {one["id"]: one for one in first["items"] + rest["items"]}
    assert found.keys() == {answer.json()["id"] for answer in sent}
    assert rest["next_cursor"] is None
    (tried,) = [one for one in found.values() if one["tries"]]
    assert (tried["status"], tried["type"], tried["url"]) == ("waiting", "webhook.test", URL)
    assert (tried["tries"][0]["status"], tried["tries"][0]["answer"]) == (500, "oops")
    replayed = http.post(f"{path}/deliveries/{tried['id']}/replay")
    assert (replayed.status_code, replayed.json()["id"]) == (202, tried["id"])
    refused(http.post(f"{path}/deliveries/msg_{NO_ID}/replay"), 404, "unknown-delivery")
    refused(http.get(f"{path}/deliveries?cursor=job_1"), 422, "invalid-request", "/cursor")


def test_the_default_webhook_shows_its_secret_and_has_no_url(http: httpx.Client) -> None:
    default = http.post("/v1/webhooks/default").json()
    assert default == http.post("/v1/webhooks/default").json()
    assert default["url"] is None
    path = f"/v1/webhooks/{default['id']}"
    assert http.get(f"{path}/deliveries").json() == {"items": [], "next_cursor": None}
    rotated = http.post(f"{path}/rotate").json()
    assert rotated["secret"] == http.post("/v1/webhooks/default").json()["secret"] != default["secret"]
    for answer in (http.delete(path), http.post(f"{path}/test"), http.patch(path, json={"url": URL})):
        refused(answer, 409, "default-webhook")


def test_another_owners_webhooks_do_not_exist(api: FastAPI, http: httpx.Client) -> None:
    path = f"/v1/webhooks/{make(http)['id']}"
    message = http.post(f"{path}/test").json()["id"]
    default = http.post("/v1/webhooks/default").json()
    api.dependency_overrides[authenticate] = lambda: Caller("somebody else", frozenset({"read", "submit"}))
    for answer in (
        http.get(path),
        http.patch(path, json={"enabled": False}),
        http.delete(path),
        http.post(f"{path}/rotate"),
        http.post(f"{path}/test"),
        http.get(f"{path}/deliveries"),
    ):
        refused(answer, 404, "unknown-webhook")
    refused(http.post(f"{path}/deliveries/{message}/replay"), 404, "unknown-delivery")
    refused(http.get(f"/v1/webhooks/{default['id']}"), 404, "unknown-webhook")
    assert http.get("/v1/webhooks").json()["items"] == []
    assert http.post("/v1/webhooks/default").json()["id"] != default["id"]


@pytest.mark.parametrize(
    "webhook_id", ["whk_none", f"job_{NO_ID}", f"whk_{NO_ID}", "whk_' OR 1=1 --", "default"]
)
def test_what_never_existed_is_a_404(http: httpx.Client, webhook_id: str) -> None:
    refused(http.get(f"/v1/webhooks/{webhook_id}"), 404, "unknown-webhook")


def test_the_documentation_describes_the_requests(http: httpx.Client) -> None:
    document = http.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    assert "job.succeeded" in schemas["WebhookRequest"]["properties"]["event_types"]["items"]["enum"]
    assert "enabled" in schemas["WebhookChange"]["properties"]
    paths = [path for path in document["paths"] if path.startswith("/v1/webhooks")]
    assert len(paths) == 7
    for path in paths:
        for operation in document["paths"][path].values():
            assert "503" in operation["responses"], path


def test_deliveries_are_counted_in_the_metrics(http: httpx.Client, store: JobStore) -> None:
    path = f"/v1/webhooks/{make(http)['id']}"
    http.post(f"{path}/test")
    webhooks = WebhookStore(store.database)
    webhooks.record(webhooks.claim(1, 60.0)[0], Answer(0.1, 200))
    assert 'dreamserve_webhook_deliveries_total{outcome="delivered"} 1.0' in http.get("/metrics").text
