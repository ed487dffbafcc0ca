"""What operators and programs look at: probes, metrics, documentation, capabilities, and a store that is down."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa
from sqlalchemy import make_url

from service.jobs import tables, troubles
from service.jobs.capabilities import Capabilities, PartFacts, RewardFacts, embedded_capabilities
from service.jobs.leadership import Leadership

if TYPE_CHECKING:
    import httpx
    from fastapi import FastAPI

    from service.jobs.store import JobStore
    from service.settings import Settings

JOB = "/v1/jobs/job_01ARZ3NDEKTSV4RRFFQ69G5FAV"


@pytest.fixture
def _database_down(store: JobStore, settings: Settings) -> None:
    """Break the open connections and put a folder where the database was."""
    file = Path(make_url(settings.database_url).database or "")
    store.close()
    for part in file.parent.glob(f"{file.name}*"):
        part.unlink()
    file.mkdir()


def test_a_service_with_its_stores_is_ready(http: httpx.Client) -> None:
    assert http.get("/healthz").json() == {"service": "dreamserve", "status": "ok"}
    ready = http.get("/readyz").json()
    (trouble,) = ready.pop("trouble")
    assert ready == {
        "service": "dreamserve",
        "status": "ready",
        "workers": 0,
        "known_from": "settings",
        "seen_at": None,
    }
    assert (trouble["source"], trouble["detail"].partition(". ")[0]) == (
        "pool",
        "no worker lives, and no pool runs that would start one",
    )
    assert "`dreamserve pool`" in trouble["detail"]


def test_a_pool_that_has_nothing_to_do_is_no_trouble(http: httpx.Client, store: JobStore) -> None:
    leadership = Leadership(store.database, "pool-scaler", "me")
    assert leadership.hold()
    assert http.get("/readyz").json()["trouble"] == []
    leadership.give_up()
    store.heartbeat("worker")
    assert http.get("/readyz").json()["trouble"] == []


def test_what_keeps_workers_from_starting_is_named_until_one_has_started(
    http: httpx.Client, store: JobStore
) -> None:
    store.note_trouble("worker", "no GPU\0 \ud800")
    store.note_trouble("pool", "no node")
    store.note_trouble("worker", "no weights" + "!" * 5_000)
    pool, worker = http.get("/readyz").json()["trouble"]
    assert (pool["source"], pool["detail"]) == ("pool", "no node")
    assert worker["detail"].startswith("no weights!")
    assert len(worker["detail"]) == 1_000
    assert worker["at"].endswith("Z")
    store.heartbeat("worker")
    store.publish_capabilities("worker", embedded_capabilities())
    assert http.get("/readyz").json()["trouble"] == []
    # Another one that does not start is told of beside the one that lives, which speaks again and again.
    store.note_trouble("worker", "no GPU")
    store.publish_capabilities("worker", embedded_capabilities())
    ready = http.get("/readyz")
    assert ready.status_code == 200
    assert (ready.json()["workers"], ready.json()["trouble"][0]["detail"]) == (1, "no GPU")


def test_a_trouble_of_long_ago_is_not_told(store: JobStore, http: httpx.Client) -> None:
    store.note_trouble("worker", "no GPU")
    with store.database.writing() as tx:
        tx.execute(sa.update(tables.troubles).values(at=tx.now - troubles.KEPT_S - 1))
    assert [one["source"] for one in http.get("/readyz").json()["trouble"]] == ["pool"]


@pytest.mark.usefixtures("_database_down")
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/jobs"),
        ("GET", JOB),
        ("GET", f"{JOB}/events"),
        ("GET", f"{JOB}/artifacts"),
        ("POST", f"{JOB}/cancel"),
        ("POST", f"{JOB}/retry"),
        ("DELETE", JOB),
        ("GET", "/v1/queue"),
        ("GET", "/v1/usage"),
        ("GET", "/v1/artifacts/art_01ARZ3NDEKTSV4RRFFQ69G5FAV"),
        ("GET", "/v1/methods"),
        ("GET", "/metrics"),
    ],
)
def test_a_database_that_is_down_is_a_503_and_no_guess(http: httpx.Client, method: str, path: str) -> None:
    answer = http.request(method, path)
    assert answer.status_code == 503
    problem = answer.json()
    assert problem["code"] == "store-unavailable"
    assert problem["retryable"] is True
    assert problem["errors"] == [{"pointer": "/dependencies/database", "detail": "unavailable"}]
    assert int(answer.headers["Retry-After"]) > 0


@pytest.mark.usefixtures("_database_down")
def test_readiness_says_what_to_do_about_a_database_that_is_down(
    http: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        answer = http.get("/readyz")
    assert answer.status_code == 503
    (error,) = answer.json()["errors"]
    assert error["pointer"] == "/dependencies/database"
    assert (
        error["detail"]
        == "unavailable: see that it is there and lets us in; DREAMSERVE_DATABASE_URL names it"
    )
    assert error["detail"].removeprefix("unavailable: ") in answer.json()["detail"]
    assert "unable to open database file" in caplog.text, "the driver's words are in the log"
    assert "unable to open" not in answer.text


@pytest.mark.usefixtures("_database_down")
def test_submitting_to_a_database_that_is_down_is_a_503(
    http: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        answer = http.post("/generate", json={"prompt": "a red cube"})
    assert answer.status_code == 503
    assert answer.json()["request_id"] in caplog.text
    assert http.get("/healthz").status_code == 200


def test_readiness_names_an_object_store_that_is_down(http: httpx.Client, settings: Settings) -> None:
    folder = Path(settings.objects_url.removeprefix("file://"))
    folder.rename(folder.with_name("moved"))
    folder.write_text("a file where the folder was")
    answer = http.get("/readyz")
    assert answer.status_code == 503
    assert [error["pointer"] for error in answer.json()["errors"]] == ["/dependencies/objects"]
    assert "object store" in answer.json()["detail"]


def test_metrics_are_text_that_prometheus_reads(http: httpx.Client) -> None:
    http.post("/generate", json={"prompt": "a red cube"})
    answer = http.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["Content-Type"].startswith("text/plain")
    assert "dreamserve_jobs_submitted_total 1.0" in answer.text


def test_methods_tell_defaults_ranges_and_license(http: httpx.Client) -> None:
    methods = {item["name"]: item for item in http.get("/v1/methods").json()["items"]}
    assert {"sds", "dreamfl", "dreamdpo"} <= set(methods)
    dreamdpo = methods["dreamdpo"]
    assert dreamdpo["defaults"]["tau"] >= 0
    assert dreamdpo["parameters"]["properties"]["tau"]["minimum"] == 0
    assert dreamdpo["license"]
    assert dreamdpo["priors"][0]["name"] == "embedded"


def test_capabilities_are_those_that_live_workers_published(http: httpx.Client, store: JobStore) -> None:
    reward = RewardFacts(license="MIT", weights="sha256:abc", differentiable=True, score_range=(-1.0, 1.0))
    store.publish_capabilities(
        "worker",
        Capabilities(
            methods={"sds": PartFacts(about="baseline")},
            priors={"embedded": PartFacts(weights="sha256:def")},
            rewards={"embedded-multiview": reward},
        ),
    )
    (method,) = http.get("/v1/methods").json()["items"]
    assert (method["name"], method["about"]) == ("sds", "baseline")
    assert method["priors"][0]["weights"] == "sha256:def"
    (item,) = http.get("/v1/rewards").json()["items"]
    assert (item["name"], item["license"], item["weights"]) == ("embedded-multiview", "MIT", "sha256:abc")
    assert item["score_range"] == [-1.0, 1.0]


def test_a_pool_without_workers_takes_what_the_last_ones_could_run(
    http: httpx.Client, store: JobStore
) -> None:
    can = embedded_capabilities()
    store.publish_capabilities("worker", can.model_copy(update={"methods": {"sds": can.methods["sds"]}}))
    assert http.get("/readyz").json()["workers"] == 1
    assert http.get("/v1/methods").json()["known_from"] == "live_workers"
    store.retire("worker")
    ready = http.get("/readyz")
    assert (ready.status_code, ready.json()["workers"]) == (200, 0)
    methods = http.get("/v1/methods").json()
    assert methods["known_from"] == ready.json()["known_from"] == "last_workers"
    assert methods["seen_at"] == ready.json()["seen_at"] is not None
    assert [item["name"] for item in methods["items"]] == ["sds"]
    assert http.post("/generate", json={"prompt": "a red cube", "method": "sds"}).status_code == 202
    refused = http.post("/generate", json={"prompt": "a red cube", "method": "psd"})
    assert (refused.status_code, refused.json()["code"]) == (422, "method-unavailable")


def test_the_documentation_describes_requests_and_refusals(http: httpx.Client) -> None:
    document = http.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    assert {"JobRequest", "ProblemDocument", "DreamDpoMethod"} <= set(schemas)
    generate = document["paths"]["/generate"]["post"]
    body = generate["requestBody"]["content"]["application/json"]["schema"]
    assert body == {"$ref": "#/components/schemas/JobRequest"}
    assert {"202", "400", "413", "415", "422", "429", "503"} <= set(generate["responses"])
    problem = generate["responses"]["422"]["content"]["application/problem+json"]["schema"]
    assert problem == {"$ref": "#/components/schemas/ProblemDocument"}


def test_the_documentations_page_needs_no_internet(http: httpx.Client) -> None:
    page = http.get("/docs").text
    assert not re.findall("https?://", page)
    assets = re.findall(r'(?:href|src)="([^"]*)"', page)
    assert len(assets) == 3
    for asset in [*assets, re.search(r"url: '([^']*)'", page)[1]]:  # type: ignore[index]
        assert not asset.startswith("/"), "it holds behind a proxy's prefix too"
        assert http.get(f"/{asset}").status_code == 200
    assert http.get("/docs/assets/none.js").json()["code"] == "unknown-route"


def test_a_defect_of_ours_keeps_the_shape_and_hides_its_cause(http: httpx.Client, api: FastAPI) -> None:
    del api.state.settings
    answer = http.post("/generate", json={"prompt": "a red cube"})
    assert answer.status_code == 500
    assert answer.json()["code"] == "internal"
    assert answer.json()["request_id"] == answer.headers["Request-Id"]
    assert "settings" not in answer.text
