"""Keys over HTTP: who is let in, what a scope permits, and that nobody sees what is another's."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest

from service.http.api import build_api
from service.http.rates import RateLimit
from service.jobs.keys import KeyStore, NewKey
from service.jobs.objects import open_object_store
from service.jobs.store import JobStore
from service.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import httpx
    from fastapi import FastAPI

    from service.jobs.states import Lease

OPEN = {"/healthz", "/readyz", "/metrics"}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data", auth="on")


def bearer(store: JobStore, name: str, *scopes: str) -> dict[str, str]:
    """The header of a new key."""
    fields = {"name": name} | ({"scopes": list(scopes)} if scopes else {})
    return {"Authorization": f"Bearer {KeyStore(store.database).create(NewKey.model_validate(fields))[1]}"}


@pytest.fixture
def alice(store: JobStore) -> dict[str, str]:
    return bearer(store, "alice")


@pytest.fixture
def bob(store: JobStore) -> dict[str, str]:
    return bearer(store, "bob")


@pytest.fixture
def admin(store: JobStore) -> dict[str, str]:
    return bearer(store, "operator", "admin")


def _operations(tmp_path: Path) -> list[tuple[str, str, dict[str, Any]]]:
    """Every operation of the OpenAPI document: method, path, description."""
    settings = Settings(data_dir=tmp_path, auth="on")
    store = JobStore(settings.database_url)
    document = build_api(store, open_object_store(settings.objects_url), settings).openapi()
    store.close()
    return [
        (method, path, operation)
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    ]


@pytest.fixture(scope="module")
def operations(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, str, dict[str, Any]]]:
    return _operations(tmp_path_factory.mktemp("document"))


# ---- who is let in


def test_every_operation_but_the_probes_refuses_a_caller_without_a_key(
    http: httpx.Client, operations: list[tuple[str, str, dict[str, Any]]]
) -> None:
    for method, path, operation in operations:
        answer = http.request(method, re.sub(r"\{\w+\}", "x", path))
        if path in OPEN:
            assert (answer.status_code, operation.get("security")) == (200, None), path
            continue
        assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated"), path
        assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert {"401", "403"} <= operation["responses"].keys(), path
        assert [*operation["security"][0]] == ["ApiKey"], path


def test_the_documentation_is_open(http: httpx.Client) -> None:
    assert http.get("/openapi.json").json()["components"]["securitySchemes"]["ApiKey"]["scheme"] == "bearer"
    assert http.get("/docs").status_code == 200


def test_the_metrics_name_no_owner(http: httpx.Client, alice: dict[str, str]) -> None:
    assert http.post("/generate", json={"prompt": "a zebra"}, headers=alice).status_code == 202
    text = http.get("/metrics").text
    assert "alice" not in text
    assert "zebra" not in text


@pytest.mark.parametrize(
    "header", ["Bearer ds_" + "A" * 43, "Bearer x", "Bearer ", "Basic YTpi", "ds_" + "A" * 43, "Bearer \xe9"]
)
def test_an_unknown_key_is_refused(http: httpx.Client, header: str) -> None:
    answer = http.get("/v1/jobs", headers={"Authorization": header.encode("latin-1")})
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")
    assert answer.headers["WWW-Authenticate"].startswith("Bearer")


def test_a_revoked_key_is_refused_at_once(http: httpx.Client, store: JobStore, alice: dict[str, str]) -> None:
    assert http.get("/v1/jobs", headers=alice).status_code == 200
    keys = KeyStore(store.database)
    keys.revoke(keys.list_keys()[0]["id"])
    answer = http.get("/v1/jobs", headers=alice)
    assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, 'Bearer error="invalid_token"')


def test_a_service_asks_for_keys_unless_it_is_told_not_to(
    http: httpx.Client, api: FastAPI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DREAMSERVE_AUTH", raising=False)
    api.state.settings = Settings(data_dir=tmp_path)
    assert http.get("/v1/jobs").status_code == 401


# ---- scopes


def test_a_scope_permits_its_methods_only(http: httpx.Client, store: JobStore) -> None:
    reader, submitter = bearer(store, "reader", "read"), bearer(store, "submitter", "submit")
    assert http.get("/v1/jobs", headers=reader).status_code == 200
    assert http.post("/v1/jobs", json={"prompt": "a cat"}, headers=submitter).status_code == 202
    for refused, scope in (
        (http.post("/v1/jobs", json={"prompt": "a cat"}, headers=reader), "submit"),
        (http.get("/v1/jobs", headers=submitter), "read"),
        (http.get("/v1/keys", headers=reader), "admin"),
    ):
        assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
        assert f"the scope '{scope}'" in refused.json()["detail"]
        assert f'scope="{scope}"' in refused.headers["WWW-Authenticate"]


# ---- /v1/keys


def test_a_key_is_made_used_listed_and_revoked(http: httpx.Client, admin: dict[str, str]) -> None:
    wanted = {"name": "studio", "quotas": {"max_running": 2}, "weight": 3}
    answer = http.post("/v1/keys", json=wanted, headers=admin)
    made = answer.json()
    assert (answer.status_code, answer.headers["Cache-Control"]) == (201, "no-store")
    assert (made["owner"], made["scopes"], made["weight"]) == ("studio", ["read", "submit"], 3)
    assert made["quotas"] == {"max_queued": None, "max_running": 2, "max_worker_s_per_day": None}
    studio = {"Authorization": f"Bearer {made['token']}"}
    assert http.get("/v1/jobs", headers=studio).status_code == 200
    listed = http.get("/v1/keys", headers=admin)
    assert made["token"] not in listed.text
    assert listed.json()["items"][1]["last_used_at"] is not None
    for _ in range(2):
        assert http.delete(f"/v1/keys/{made['id']}", headers=admin).status_code == 204
    assert http.get("/v1/jobs", headers=studio).status_code == 401
    assert http.get("/v1/keys", headers=admin).json()["items"][1]["revoked_at"] is not None


def test_a_key_that_never_existed_cannot_be_revoked(http: httpx.Client, admin: dict[str, str]) -> None:
    for key_id in ("key_01ARZ3NDEKTSV4RRFFQ69G5FAV", "x", "key_%00"):
        answer = http.delete(f"/v1/keys/{key_id}", headers=admin)
        assert (answer.status_code, answer.json()["code"]) == (404, "unknown-key")


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({}, "/name"),
        ({"name": ""}, "/name"),
        ({"name": "a b"}, "/name"),
        ({"name": "a", "scopes": []}, "/scopes"),
        ({"name": "a", "scopes": ["root"]}, "/scopes/0"),
        ({"name": "a", "weight": 0}, "/weight"),
        ({"name": "a", "quotas": {"max_running": -1}}, "/quotas/max_running"),
        ({"name": "a", "quotas": {"max_jobs": 1}}, "/quotas/max_jobs"),
        ({"name": "a", "token": "mine"}, "/token"),
    ],
)
def test_a_wrong_field_of_a_key_is_named(
    http: httpx.Client, admin: dict[str, str], body: dict[str, Any], pointer: str
) -> None:
    answer = http.post("/v1/keys", json=body, headers=admin)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid-request")
    assert answer.json()["errors"][0]["pointer"] == pointer


# ---- what is another's


@pytest.fixture
def made(
    http: httpx.Client, store: JobStore, alice: dict[str, str], finish: Callable[[Lease], None]
) -> dict[str, str]:
    """One of each of Alice's things, by the name of the path parameter that names it."""
    done = http.post("/v1/jobs", json={"prompt": "a cat"}, headers=alice).json()
    lease = store.claim("worker-1")
    assert lease is not None
    finish(lease)
    artifact = http.get(f"/v1/jobs/{done['id']}/artifacts", headers=alice).json()["items"][0]
    lines = {"items": [{"body": {"prompt": "a dog"}}]}
    batch = http.post("/v1/batches", json=lines, headers=alice).json()
    webhook = http.post("/v1/webhooks", json={"url": "https://example.com/hook"}, headers=alice).json()
    message = http.post(f"/v1/webhooks/{webhook['id']}/test", headers=alice).json()
    key = KeyStore(store.database).list_keys()[0]
    assert key["name"] == "alice"
    things = {
        "job": done,
        "artifact": artifact,
        "batch": batch,
        "webhook": webhook,
        "message": message,
        "key": key,
    }
    return {f"{name}_id": thing["id"] for name, thing in things.items()}


def test_every_route_answers_404_for_what_is_another_owners(
    http: httpx.Client,
    made: dict[str, str],
    alice: dict[str, str],
    bob: dict[str, str],
    operations: list[tuple[str, str, dict[str, Any]]],
) -> None:
    walked = 0
    for method, path, operation in operations:
        names = re.findall(r"\{(\w+)\}", path)
        if not names:
            continue
        assert set(names) <= made.keys(), f"make one for Alice in the fixture above: {path}"
        if operation["security"] == [{"ApiKey": ["admin"]}]:
            # Who has the scope admin sees every owner's keys; to anybody else it does not tell which there are.
            for key_id in (made["key_id"], "key_01ARZ3NDEKTSV4RRFFQ69G5FAV"):
                refused = http.request(method, path.format(key_id=key_id), headers=bob)
                assert (refused.status_code, refused.json()["code"]) == (403, "forbidden"), path
            continue
        url = path.format(**made)
        body = {"json": {}} if operation.get("requestBody") else {}
        refused = http.request(method, url, headers=bob, **body)
        assert (refused.status_code, refused.json()["code"][:8]) == (404, "unknown-"), f"{method} {path}"
        if method == "get":
            assert http.get(url, headers={**alice, "Accept": "application/json"}).status_code == 200, path
        walked += 1
    assert walked >= 20


def test_lists_show_what_is_ones_own(
    http: httpx.Client,
    made: dict[str, str],
    alice: dict[str, str],
    bob: dict[str, str],
    operations: list[tuple[str, str, dict[str, Any]]],
) -> None:
    looked = [path for method, path, _ in operations if method == "get" and "{" not in path]
    looked += [f"/v1/jobs?batch_id={made['batch_id']}", "/v1/usage?since=2020-01-01"]
    for path in looked:
        shown = http.get(path, headers=bob)
        assert shown.status_code == (403 if path == "/v1/keys" else 200), path
        for mine in (*made.values(), "alice", "a cat", "a dog"):
            assert mine not in shown.text, path
        if path != "/metrics" and (items := shown.json().get("items")):
            assert path in ("/v1/methods", "/v1/rewards"), items
    for path in ("/v1/jobs", "/v1/batches", "/v1/webhooks", "/v1/usage"):
        assert path in looked
        assert len(http.get(path, headers=alice).json()["items"]) >= 1, path


def test_idempotency_keys_of_two_owners_do_not_meet(
    http: httpx.Client, alice: dict[str, str], bob: dict[str, str]
) -> None:
    answers = [
        http.post("/v1/jobs", json={"prompt": prompt}, headers={**who, "Idempotency-Key": "k"}).json()["id"]
        for who, prompt in ((alice, "a cat"), (bob, "a dog"), (alice, "a cat"))
    ]
    assert answers[0] == answers[2] != answers[1]


# ---- quotas


def test_a_quota_refuses_with_429_and_says_when_to_come_back(http: httpx.Client, store: JobStore) -> None:
    new = NewKey.model_validate({"name": "small", "quotas": {"max_queued": 1}})
    small = {"Authorization": f"Bearer {KeyStore(store.database).create(new)[1]}"}
    assert http.post("/generate", json={"prompt": "a cat"}, headers=small).status_code == 202
    answer = http.post("/generate", json={"prompt": "a cat"}, headers=small)
    assert (answer.status_code, answer.json()["code"]) == (429, "quota-exceeded")
    assert int(answer.headers["Retry-After"]) > 0


# ---- rates


def test_a_key_that_comes_too_often_is_told_when_to_come_back(
    http: httpx.Client, api: FastAPI, alice: dict[str, str], bob: dict[str, str]
) -> None:
    now = 0.0
    api.state.rates = RateLimit(0.5, clock=lambda: now)
    assert http.get("/v1/jobs", headers=alice).status_code == 200
    for path in ("/v1/jobs", "/v1/queue"):
        answer = http.get(path, headers=alice)
        assert (answer.status_code, answer.json()["code"]) == (429, "rate-limited")
        assert (answer.headers["Retry-After"], answer.json()["retryable"]) == ("2", True)
    for path in OPEN:  # whoever asks these seldom has a key, and must not be turned away
        assert http.get(path, headers=alice).status_code == 200
    assert http.get("/v1/jobs", headers=bob).status_code == 200
    now = 2.0
    assert http.get("/v1/jobs", headers=alice).status_code == 200
    assert http.get("/v1/jobs", headers=alice).status_code == 429


def test_who_was_silent_may_send_a_burst_and_no_more() -> None:
    now = 0.0
    rates = RateLimit(10, clock=lambda: now)
    burst = [False] * 20 + [True]
    assert [rates.take(b"alice") > 0 for _ in burst] == burst
    now = 100.0
    assert [rates.take(b"alice") > 0 for _ in burst] == burst
    now = 100.05
    assert rates.take(b"alice") == pytest.approx(0.05)
    assert not any(RateLimit(0).take(b"alice") for _ in range(1_000))


def test_callers_who_have_gone_are_forgotten() -> None:
    now = 0.0
    rates = RateLimit(1, clock=lambda: now)
    for number in range(30_000):
        now += 0.001
        assert rates.take(str(number).encode()) == 0
    assert len(rates._buckets) <= 10_000
