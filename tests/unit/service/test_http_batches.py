"""Batches over HTTP: both ways in, bad input with its exact pointer, steering, results, events."""

from __future__ import annotations

import gzip
import json
from typing import TYPE_CHECKING, Any

import pytest

from service.http import batches as routes
from service.jobs import batch_input
from service.jobs.batch_input import MAX_ITEMS, MAX_LINE_BYTES
from service.jobs.batches import BatchStore
from service.jobs.errors import StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx
    from fastapi import FastAPI

    from service.jobs.states import Lease
    from service.jobs.store import JobStore

UNKNOWN = "batch_01ARZ3NDEKTSV4RRFFQ69G5FAV"
LINE = {"body": {"prompt": "a red cube"}}
JSONL = {"Content-Type": "application/jsonl"}


def jsonl(*lines: object) -> bytes:
    return b"".join((one if isinstance(one, bytes) else json.dumps(one).encode()) + b"\n" for one in lines)


def upload(http: httpx.Client, *lines: object, **params: Any) -> httpx.Response:
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in params.items()}
    return http.post("/v1/batches", content=jsonl(*lines), headers=JSONL, params=texts)


def problem_of(answer: httpx.Response, status: int = 422, code: str = "invalid-request") -> dict[str, Any]:
    problem: dict[str, Any] = answer.json()
    assert (answer.status_code, problem["code"]) == (status, code), problem
    return problem


def pointers_of(answer: httpx.Response) -> list[str]:
    return [one["pointer"] for one in problem_of(answer)["errors"]]


# ---- both ways in


def test_a_batch_that_is_accepted_is_answered_even_if_no_line_can_be_queued_yet(
    http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def advance(_: BatchStore) -> None:
        raise StoreUnavailable("database", "gone")

    monkeypatch.setattr(BatchStore, "advance", advance)
    answer = upload(http, LINE)
    assert (answer.status_code, answer.json()["counts"]["total"]) == (202, 1)


def test_a_document_and_the_same_lines_make_the_same_batch(http: httpx.Client) -> None:
    options = {"defaults": {"steps": 7}, "sweep": {"seed": [1, 2]}, "metadata": {"a": "b"}}
    items = [{"custom_id": "x", **LINE}, {"custom_id": "y", "body": {"prompt": "雪 🙂", "steps": 9}}]
    made = [
        http.post("/v1/batches", json={"items": items, "max_parallel": 3, **options}),
        upload(http, *items, max_parallel=3, **options),
    ]
    for answer in made:
        assert answer.status_code == 202, answer.text
        batch = answer.json()
        assert answer.headers["Location"] == f"/v1/batches/{batch['id']}"
        assert batch["counts"]["total"] == 4
        assert {name: batch[name] for name in options} == options
        assert batch["max_parallel"] == 3
        results = http.get(f"/v1/batches/{batch['id']}/results").json()
        assert [(one["custom_id"], one["sweep"]) for one in results["items"]] == [
            (name, {"seed": seed}) for name in ("x", "y") for seed in (1, 2)
        ]
    jobs = http.get("/v1/jobs", params={"batch_id": made[1].json()["id"]}).json()["items"]
    assert {job["spec"]["steps"] for job in jobs} <= {7, 9}
    listed = http.get("/v1/batches").json()["items"]
    assert [one["id"] for one in listed] == [answer.json()["id"] for answer in made[::-1]]


def test_a_broken_line_3_is_told_and_keeps_nobody(http: httpx.Client) -> None:
    batch = upload(http, LINE, LINE, b'{"body": {"prompt": "x"', LINE).json()
    assert (batch["counts"]["total"], batch["counts"]["invalid"]) == (4, 1)
    assert batch["problems"][0]["pointer"] == "/items/2"
    assert batch["problems"][0]["line"] == 3
    assert "the line is not JSON" in batch["problems"][0]["detail"]


def test_an_unknown_field_in_line_3_is_told_by_its_pointer(http: httpx.Client) -> None:
    wrong = {"custom_id": "c", "body": {"prompt": "x", "stepz": 3}}
    for answer in (
        upload(http, LINE, LINE, wrong),
        http.post("/v1/batches", json={"items": [LINE, LINE, wrong]}),
    ):
        assert answer.json()["problems"] == [
            {
                "line": 3,
                "custom_id": "c",
                "pointer": "/items/2/body/stepz",
                "detail": "there is no such field",
                "code": "invalid-request",
            }
        ]


def test_a_line_that_is_too_long_is_dropped_while_it_arrives_and_told(http: httpx.Client) -> None:
    long = {"custom_id": "long", "body": {"prompt": "x" * (MAX_LINE_BYTES + 1)}}
    batch = upload(http, LINE, long, LINE).json()
    assert batch["counts"]["invalid"] == 1
    assert batch["problems"][0]["pointer"] == "/items/1"
    assert "longer than 262,144 bytes" in batch["problems"][0]["detail"]


def test_a_problem_points_to_where_the_field_was_written(http: httpx.Client) -> None:
    assert pointers_of(upload(http, LINE, defaults={"stepz": 1})) == ["/defaults/stepz"]
    assert pointers_of(
        upload(http, LINE, sweep={"method.pushh": [1]}, defaults={"method": {"name": "dreamdpo"}})
    ) == ["/sweep/method.pushh"]
    assert pointers_of(upload(http, {"body": {"prompt": " "}})) == ["/items/0/body/prompt"]
    assert pointers_of(upload(http, {"body": {"seed": 1}}, defaults={"steps": 1})) == ["/items/0/body/prompt"]


# ---- bad input


@pytest.mark.parametrize(
    ("content", "pointers"),
    [
        (b"", ["/items"]),
        (b"\n \n\n", ["/items"]),
        (jsonl(1), ["/items/0"]),
        (
            jsonl({"body": {"prompt": 1}}, {"custom_id": 7, "body": {}}),
            ["/items/0/body/prompt", "/items/1/custom_id"],
        ),
        (jsonl({"custom_id": "\ud800", **LINE}), ["/items/0/custom_id"]),
        (jsonl({"custom_id": "", **LINE}), ["/items/0/custom_id"]),
        (b'{"body": {"prompt": "\xff"}}', ["/items/0"]),
        (b'{"body": {"prompt": "a", "seed": NaN}}', ["/items/0"]),
        (b'{"body": {"prompt": "a", "prompt": "b"}}', ["/items/0"]),
        (b"[" * 10_000, ["/items/0"]),
        (jsonl({"body": {"prompt": "a\0b"}}), ["/items/0/body/prompt"]),
        (jsonl({"custom_id": "a", **LINE}, LINE, {"custom_id": "a", **LINE}), ["/items/2/custom_id"]),
        (jsonl({"custom_id": "2", **LINE}, LINE), ["/items/1/custom_id"]),
    ],
)
def test_bad_lines_are_refused_by_their_pointers(
    http: httpx.Client, content: bytes, pointers: list[str]
) -> None:
    assert pointers_of(http.post("/v1/batches", content=content, headers=JSONL)) == pointers
    assert http.get("/v1/batches").json()["items"] == []


def test_a_custom_id_on_two_lines_is_refused_naming_both(http: httpx.Client) -> None:
    line = {"custom_id": "chair", **LINE}
    assert "on line 1 and on line 3" in problem_of(upload(http, line, LINE, line))["detail"]


def test_a_batch_without_a_valid_line_is_refused_with_the_first_20_problems(http: httpx.Client) -> None:
    problem = problem_of(upload(http, *[{"body": {"prompt": "x", "stepz": 1}}] * 30))
    assert [one["pointer"] for one in problem["errors"]] == [f"/items/{n}/body/stepz" for n in range(20)]
    assert "No line is valid" in problem["suggestion"]


@pytest.mark.parametrize(
    ("sweep", "pointer", "word"),
    [
        ({"seed": []}, "/sweep/seed", "at least one"),
        ({"seed": 1}, "/sweep/seed", "list"),
        ([1], "/sweep", "object"),
        ({"": [1]}, "/sweep/", "dotted path"),
        ({"a..b": [1]}, "/sweep/a..b", "dotted path"),
        ({"/method/push": [1], "method": [{}]}, "/sweep/method", "/method/push"),
        ({f"f{n}": [1] for n in range(9)}, "/sweep", "9 fields"),
        ({"seed": list(range(400)), "steps": list(range(400))}, "/sweep", "160,000 combinations"),
        ({"prompt.x": [1]}, "/items/0/body", "no place"),
    ],
)
def test_a_bad_sweep_is_refused(http: httpx.Client, sweep: object, pointer: str, word: str) -> None:
    body = {"items": [LINE], "sweep": sweep}
    for answer in (http.post("/v1/batches", json=body), upload(http, LINE, sweep=sweep)):
        error = problem_of(answer)["errors"][0]
        assert error["pointer"] == pointer
        assert word in error["detail"]


def test_lines_times_combinations_are_bounded(http: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_ITEMS == 100_000
    monkeypatch.setattr("service.jobs.batch_intake.MAX_ITEMS", 5)
    monkeypatch.setattr(batch_input, "MAX_ITEMS", 5)
    assert upload(http, LINE, sweep={"seed": [1, 2, 3, 4, 5]}).status_code == 202
    problem = problem_of(upload(http, LINE, LINE, LINE, sweep={"seed": [1, 2]}))
    assert problem["errors"][0]["pointer"] == "/items/2"
    assert "more than 5 jobs" in problem["detail"]


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ([], ""),
        ({}, "/items"),
        ({"items": []}, "/items"),
        ({"items": {}}, "/items"),
        ({"items": [LINE], "itemz": 1}, "/itemz"),
        ({"items": [LINE], "defaults": 1}, "/defaults"),
        ({"items": [LINE], "max_parallel": 0}, "/max_parallel"),
        ({"items": [LINE], "max_parallel": 1_001}, "/max_parallel"),
        ({"items": [LINE], "metadata": {"a b": "c"}}, "/metadata/a b"),
        ({"items": [LINE], "metadata": {"a": "\0"}}, "/metadata/a"),
    ],
)
def test_a_bad_document_is_refused_by_its_pointer(http: httpx.Client, body: object, pointer: str) -> None:
    assert pointers_of(http.post("/v1/batches", json=body)) == [pointer]


@pytest.mark.parametrize(
    ("params", "pointer"),
    [
        ({"default": "{}"}, "/default"),
        ({"defaults": "{"}, "/defaults"),
        ({"defaults": '{"seed": 1e999}'}, "/defaults"),
        ({"max_parallel": "0"}, "/max_parallel"),
        ({"metadata": "1"}, "/metadata"),
        ({"sweep": "x" * 20_000}, "/sweep"),
    ],
)
def test_a_bad_option_of_an_upload_is_refused(
    http: httpx.Client, params: dict[str, str], pointer: str
) -> None:
    assert pointers_of(http.post("/v1/batches", content=jsonl(LINE), headers=JSONL, params=params)) == [
        pointer
    ]


def test_options_of_a_document_belong_into_it(http: httpx.Client) -> None:
    answer = http.post("/v1/batches", json={"items": [LINE]}, params={"max_parallel": 2})
    assert pointers_of(answer) == ["/max_parallel"]


def test_what_is_no_batch_is_refused_by_type_and_size(
    http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    csv = http.post("/v1/batches", content=b"prompt\nx\n", headers={"Content-Type": "text/csv"})
    assert "application/jsonl" in problem_of(csv, 415, "unsupported-media-type")["suggestion"]
    headers = {"Content-Type": "application/json"}
    problem_of(http.post("/v1/batches", content=b"{", headers=headers), 400, "malformed-json")
    monkeypatch.setattr(routes, "MAX_DOCUMENT_BYTES", 100)
    large = http.post("/v1/batches", json={"items": [LINE] * 10})
    assert "application/jsonl" in problem_of(large, 413, "body-too-large")["suggestion"]
    monkeypatch.setattr(routes, "MAX_UPLOAD_BYTES", 100)
    problem_of(upload(http, *[LINE] * 10), 413, "body-too-large")
    assert http.get("/v1/batches").json()["items"] == []


def test_compressed_lines_are_not_taken_for_text(http: httpx.Client) -> None:
    answer = http.post("/v1/batches", content=gzip.compress(jsonl(LINE)), headers=JSONL)
    assert "not JSON" in problem_of(answer)["detail"]


# ---- idempotency


def test_a_key_makes_one_batch_and_refuses_another_body(http: httpx.Client) -> None:
    def send(*lines: object, **params: Any) -> httpx.Response:
        headers = {**JSONL, "Idempotency-Key": "k-1"}
        return http.post("/v1/batches", content=jsonl(*lines), headers=headers, params=params)

    first = send(LINE)
    assert send(LINE).json()["id"] == first.json()["id"]
    problem_of(send(LINE, LINE), 422, "idempotency-key-reused")
    problem_of(send(LINE, max_parallel=2), 422, "idempotency-key-reused")
    assert len(http.get("/v1/batches").json()["items"]) == 1


# ---- steering, results, events


def test_a_batch_is_steered_over_http(http: httpx.Client, store: JobStore) -> None:
    place = upload(http, LINE, LINE, max_parallel=1).headers["Location"]

    def post(what: str, status: int) -> str:
        answer = http.post(f"{place}/{what}")
        assert answer.status_code == status, answer.text
        return str(answer.json().get("status"))

    assert post("pause", 200) == "paused"
    assert store.claim("worker") is None
    assert post("resume", 200) == "expanding"
    assert store.claim("worker") is not None
    assert post("cancel", 202) == "canceling"
    problem_of(http.post(f"{place}/pause"), 409, "batch-conflict")
    problem_of(http.post(f"{place}/retry-failed"), 409, "batch-conflict")
    assert http.get(place).json()["counts"]["canceled"] == 1


def test_results_come_as_pages_or_as_lines(
    http: httpx.Client, store: JobStore, finish: Callable[[Lease], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routes, "RESULTS_AT_ONCE", 2)
    place = upload(http, *[LINE] * 5, b"broken").headers["Location"]
    lease = store.claim("worker")
    assert lease is not None
    finish(lease)
    answer = http.get(f"{place}/results", headers={"Accept": "application/jsonl"})
    assert answer.headers["Content-Type"].startswith("application/jsonl")
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert [one["line"] for one in lines] == [1, 2, 3, 4, 5, 6]
    done = next(one for one in lines if one["status"] == "succeeded")
    assert (done["job_id"], done["scores"]) == (lease.job_id, {"reward": 0.8})
    assert http.get(f"/v1/artifacts/{done['artifacts'][0]['id']}").status_code == 200
    page = http.get(f"{place}/results", params={"limit": 4}).json()
    rest = http.get(f"{place}/results", params={"cursor": page["next_cursor"]}).json()
    assert page["items"] + rest["items"] == lines
    assert rest["next_cursor"] is None
    broken = http.get(f"{place}/results", params={"status": "invalid"}).json()["items"]
    assert [one["line"] for one in broken] == [6]


def test_events_end_with_the_batch_and_are_resumable(
    http: httpx.Client, store: JobStore, finish: Callable[[Lease], None]
) -> None:
    place = upload(http, LINE).headers["Location"]
    lease = store.claim("worker")
    assert lease is not None
    finish(lease)
    BatchStore(store.database).advance()
    stream = http.get(f"{place}/events")
    assert stream.headers["Content-Type"].startswith("text/event-stream")
    assert "event: batch.completed" in stream.text
    page = http.get(f"{place}/events", headers={"Accept": "application/json"}).json()
    last = page["items"][-1]
    assert (last["type"], last["data"]["counts"]["succeeded"]) == ("batch.completed", 1)
    assert http.get(f"{place}/events", headers={"Last-Event-ID": str(last["id"])}).status_code == 204


@pytest.mark.parametrize("batch_id", [UNKNOWN, "batch_x", "job_01ARZ3NDEKTSV4RRFFQ69G5FAV", "%00"])
def test_an_unknown_batch_is_a_404_everywhere(http: httpx.Client, batch_id: str) -> None:
    place = f"/v1/batches/{batch_id}"
    for look in ("", "/results", "/events"):
        problem_of(http.get(place + look), 404, "unknown-batch")
    for steer in ("pause", "resume", "cancel", "retry-failed"):
        problem_of(http.post(f"{place}/{steer}"), 404, "unknown-batch")


def test_every_answer_is_documented(api: FastAPI) -> None:
    paths = api.openapi()["paths"]
    wanted = {
        ("/v1/batches", "post"): {"202", "400", "409", "413", "415", "422", "429", "503"},
        ("/v1/batches/{batch_id}", "get"): {"200", "404", "503"},
        ("/v1/batches/{batch_id}/cancel", "post"): {"200", "202", "404", "503"},
        ("/v1/batches/{batch_id}/pause", "post"): {"200", "404", "409", "503"},
        ("/v1/batches/{batch_id}/results", "get"): {"200", "404", "422", "503"},
    }
    for (path, method), statuses in wanted.items():
        assert set(paths[path][method]["responses"]) >= statuses
    assert "BatchRequest" in api.openapi()["components"]["schemas"]
