"""Bad input: each line of the table has a status, a code and a pointer, and an answer that can be read."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.jobs.spec import JobRequest

if TYPE_CHECKING:
    import httpx

JSON = {"Content-Type": "application/json"}
CUBE = "a red cube"


def refuse(http: httpx.Client, body: Any, status: int = 422) -> dict[str, Any]:
    """POST a body (bytes, or something to write as ASCII JSON) and check the shape of the refusal."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode("ascii")
    answer = http.post("/generate", content=content, headers=JSON)
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    problem: dict[str, Any] = json.loads(answer.content.decode("utf-8"))
    json.dumps(problem, ensure_ascii=False).encode("utf-8")
    assert set(problem) == {
        "type", "title", "status", "detail", "code", "request_id", "retryable", "errors", "suggestion",
    }  # fmt: skip
    assert problem["status"] == status
    assert problem["retryable"] is False
    assert http.get("/v1/jobs").json()["items"] == []
    return problem


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({}, "/prompt"),
        ({"prompt": ""}, "/prompt"),
        ({"prompt": " \t\n"}, "/prompt"),
        ({"prompt": "x" * 1_001}, "/prompt"),
        ({"prompt": "nul \0 inside"}, "/prompt"),
        ({"prompt": "half \ud83e of a pair"}, "/prompt"),
        ({"prompt": None}, "/prompt"),
        ({"prompt": 7}, "/prompt"),
        ({"prompt": [CUBE]}, "/prompt"),
        ({"prompt": CUBE, "negative_prompt": "\udc80"}, "/negative_prompt"),
        ({"prompt": CUBE, "stepz": 5}, "/stepz"),
        ({"prompt": CUBE, "a/b~c": 5}, "/a~1b~0c"),
        ({"prompt": CUBE, "\ud800": 5}, None),
        ({"prompt": CUBE, "method": "gan"}, "/method"),
        ({"prompt": CUBE, "method": {"name": "gan"}}, "/method/name"),
        ({"prompt": CUBE, "method": {"guidance_scale": 5}}, "/method/name"),
        ({"prompt": CUBE, "method": {"name": "sds", "guidance_scale": "high"}}, "/method/guidance_scale"),
        ({"prompt": CUBE, "method": {"name": "sds", "tau": 0.1}}, "/method/tau"),
        ({"prompt": CUBE, "steps": -1}, "/steps"),
        ({"prompt": CUBE, "steps": 0}, "/steps"),
        ({"prompt": CUBE, "steps": 10**9}, "/steps"),
        ({"prompt": CUBE, "steps": 10**30}, "/steps"),
        ({"prompt": CUBE, "steps": 1.5}, "/steps"),
        ({"prompt": CUBE, "steps": "100"}, "/steps"),
        ({"prompt": CUBE, "steps": True}, "/steps"),
        ({"prompt": CUBE, "seed": -1}, "/seed"),
        ({"prompt": CUBE, "effort": "heroic"}, "/effort"),
        ({"prompt": CUBE, "mesh": {"target_faces": 0}}, "/mesh/target_faces"),
        ({"prompt": CUBE, "mesh": {"formats": ["glb", "fbx"]}}, "/mesh/formats/1"),
        ({"prompt": CUBE, "metadata": {"k": 1}}, "/metadata/k"),
        ([], ""),
        ("a red cube", ""),
        (None, ""),
    ],
)
def test_an_invalid_request_is_refused_with_the_field(
    http: httpx.Client, body: Any, pointer: str | None
) -> None:
    problem = refuse(http, body)
    assert problem["code"] == "invalid-request"
    assert problem["errors"], problem
    if pointer is not None:
        assert problem["errors"][0]["pointer"] == pointer, problem
        assert problem["errors"][0]["detail"]


def test_a_longest_prompt_of_the_widest_characters_is_taken(http: httpx.Client) -> None:
    answer = http.post("/generate", json={"prompt": "🧊" * 1_000, "negative_prompt": "\u2028" * 1_000})
    assert answer.status_code == 202


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"prompt=a+red+cube",
        b'{"prompt": "a red cube",}',
        b'{"prompt": "a red cube", "seed": NaN}',
        b'{"prompt": "a red cube", "seed": -Infinity}',
        b'{"prompt": "a red cube", "seed": ' + b"9" * 5_000 + b"}",
        b'{"prompt": "a red cube", "prompt": "a blue cube"}',
        b'{"prompt": "\xff"}',
        "{}".encode("utf-16"),
        b"[" * 100_000,
        b'{"prompt": "raw \x00 byte"}',
    ],
)
def test_a_body_that_is_not_json_is_a_400(http: httpx.Client, body: bytes) -> None:
    assert refuse(http, body, 400)["code"] == "malformed-json"


@pytest.mark.parametrize("content_type", [None, "text/plain", "application/x-www-form-urlencoded"])
def test_another_content_type_is_a_415_that_says_what_to_send(
    http: httpx.Client, content_type: str | None
) -> None:
    headers = {} if content_type is None else {"Content-Type": content_type}
    answer = http.post("/generate", content=b'{"prompt": "a red cube"}', headers=headers)
    assert answer.status_code == 415
    assert answer.json()["code"] == "unsupported-media-type"
    assert "application/json" in answer.json()["suggestion"]


@pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "application/merge-patch+json"])
def test_relatives_of_json_are_taken(http: httpx.Client, content_type: str) -> None:
    answer = http.post(
        "/generate", content=b'{"prompt": "a red cube"}', headers={"Content-Type": content_type}
    )
    assert answer.status_code == 202


def test_a_body_without_end_is_a_413(http: httpx.Client) -> None:
    problem = refuse(http, b'{"prompt": "' + b"x" * 300_000 + b'"}', 413)
    assert problem["code"] == "body-too-large"


def test_a_prior_that_no_worker_has_is_refused_at_submit(http: httpx.Client) -> None:
    problem = refuse(http, {"prompt": CUBE, "prior": "stable-diffusion-2.1"})
    assert problem["code"] == "method-unavailable"
    assert problem["errors"][0]["pointer"] == "/prior"
    assert problem["suggestion"]


@pytest.mark.parametrize(
    "path",
    [
        "/v1/jobs/job_01ARZ3NDEKTSV4RRFFQ69G5FAV",
        "/v1/jobs/no-id-at-all",
        "/v1/jobs/job_%00",
        "/v1/jobs/%27%20OR%201=1",
        "/v1/jobs/job_01ARZ3NDEKTSV4RRFFQ69G5FAV/events",
        "/v1/jobs/job_01ARZ3NDEKTSV4RRFFQ69G5FAV/artifacts",
        "/v1/artifacts/art_01ARZ3NDEKTSV4RRFFQ69G5FAV",
        "/v1/artifacts/art_01ARZ3NDEKTSV4RRFFQ69G5FAV/content",
        "/v1/artifacts/..%2f..%2fetc%2fpasswd/content",
    ],
)
def test_an_unknown_id_is_a_404(http: httpx.Client, path: str) -> None:
    answer = http.get(path)
    assert answer.status_code == 404
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.json()["code"].startswith("unknown-")


def test_canceling_an_unknown_job_is_a_404(http: httpx.Client) -> None:
    assert http.post("/v1/jobs/job_01ARZ3NDEKTSV4RRFFQ69G5FAV/cancel").status_code == 404


def test_a_wrong_method_is_a_405_that_names_the_right_one(http: httpx.Client) -> None:
    answer = http.get("/generate")
    assert answer.status_code == 405
    assert answer.headers["Allow"] == "POST"
    assert answer.json()["code"] == "method-not-allowed"


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text(max_size=8), inside, max_size=3),
    max_leaves=6,
)
FIELDS = st.sampled_from(sorted(JobRequest.model_fields)) | st.text(max_size=8)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    body=ANY_JSON
    | st.dictionaries(FIELDS, ANY_JSON, max_size=4).map(lambda fields: {"prompt": CUBE} | fields)
)
def test_no_body_breaks_the_service(http: httpx.Client, body: Any) -> None:
    answer = http.post("/generate", content=json.dumps(body).encode("ascii"), headers=JSON)
    assert answer.status_code in (202, 422, 429), answer.text
    answer.content.decode("utf-8")
    if answer.status_code == 422:
        assert all(error["detail"] for error in answer.json()["errors"])
