"""Artifacts over HTTP: whole, in parts, unchanged, elsewhere, expired, lost."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from service.jobs.local_store import LocalStore
from service.jobs.objects import artifact_key
from service.jobs.store import JobStore

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx
    from fastapi import FastAPI

    from service.jobs.objects import ObjectStore
    from service.jobs.states import Lease
    from service.settings import Settings


@pytest.fixture
def artifact(http: httpx.Client, store: JobStore, finish: Callable[[Lease], None]) -> dict[str, Any]:
    """The GLB of a finished job, as the API describes it."""
    job = http.post("/generate", json={"prompt": "a red cube"}).json()
    lease = store.claim("worker")
    assert lease is not None
    finish(lease)
    page = http.get(f"/v1/jobs/{job['id']}/artifacts").json()
    assert page["next_cursor"] is None
    found: dict[str, Any] = page["items"][0]
    return found


@pytest.fixture
def path(artifact: dict[str, Any]) -> str:
    return f"/v1/artifacts/{artifact['id']}/content"


def test_an_artifact_is_described_alike_everywhere(http: httpx.Client, artifact: dict[str, Any]) -> None:
    assert http.get(f"/v1/artifacts/{artifact['id']}").json() == artifact
    assert http.get(f"/v1/jobs/{artifact['job_id']}").json()["result"]["artifacts"] == [artifact]


def test_the_whole_content_comes_with_its_hash(http: httpx.Client, path: str, glb: bytes) -> None:
    answer = http.get(path)
    assert answer.status_code == 200
    assert answer.content == glb
    digest = hashlib.sha256(glb)
    assert answer.headers["ETag"] == f'"{digest.hexdigest()}"'
    assert answer.headers["Repr-Digest"] == f"sha-256=:{base64.b64encode(digest.digest()).decode()}:"
    assert answer.headers["Content-Type"] == "model/gltf-binary"
    assert answer.headers["Content-Length"] == str(len(glb))
    assert answer.headers["Content-Disposition"] == "attachment; filename*=UTF-8''object.glb"


def test_head_answers_without_the_content(http: httpx.Client, path: str, glb: bytes) -> None:
    answer = http.head(path)
    assert answer.status_code == 200
    assert answer.content == b""
    assert answer.headers["Content-Length"] == str(len(glb))


@pytest.mark.parametrize(
    ("header", "start", "end"),
    [
        ("bytes=0-3", 0, 4),
        ("bytes=4-4", 4, 5),
        ("bytes=100-", 100, None),
        ("bytes=-16", -16, None),
        ("bytes=10-999999999", 10, None),
        ("bytes=-999999999", 0, None),
    ],
)
def test_a_range_gives_that_part(
    http: httpx.Client, path: str, glb: bytes, header: str, start: int, end: int | None
) -> None:
    answer = http.get(path, headers={"Range": header})
    assert answer.status_code == 206
    assert answer.content == glb[start:end]
    first = start % len(glb)
    assert answer.headers["Content-Range"] == f"bytes {first}-{first + len(answer.content) - 1}/{len(glb)}"


@pytest.mark.parametrize("header", ["bytes=999999999-", "bytes=-0"])
def test_a_range_beyond_the_end_is_a_416_that_tells_the_size(
    http: httpx.Client, path: str, glb: bytes, header: str
) -> None:
    answer = http.get(path, headers={"Range": header})
    assert answer.status_code == 416
    assert answer.headers["Content-Range"] == f"bytes */{len(glb)}"
    assert answer.json()["code"] == "range-not-satisfiable"


@pytest.mark.parametrize("header", ["bytes=5-2", "bytes=-", "bytes=0-1,4-5", "items=0-1", "bytes=x-y", ""])
def test_a_range_that_is_none_gives_the_whole(http: httpx.Client, path: str, glb: bytes, header: str) -> None:
    answer = http.get(path, headers={"Range": header})
    assert answer.status_code == 200
    assert answer.content == glb


def test_a_range_of_another_version_gives_the_whole(http: httpx.Client, path: str, glb: bytes) -> None:
    etag = http.get(path).headers["ETag"]
    resumed = http.get(path, headers={"Range": "bytes=4-", "If-Range": etag})
    assert (resumed.status_code, resumed.content) == (206, glb[4:])
    other = http.get(path, headers={"Range": "bytes=4-", "If-Range": '"other"'})
    assert (other.status_code, other.content) == (200, glb)


def test_what_the_client_has_already_is_not_sent_again(http: httpx.Client, path: str) -> None:
    etag = http.get(path).headers["ETag"]
    for condition in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        answer = http.get(path, headers={"If-None-Match": condition})
        assert (answer.status_code, answer.content) == (304, b"")
        assert answer.headers["ETag"] == etag
    assert http.get(path, headers={"If-None-Match": '"other"'}).status_code == 200


def test_a_lost_object_is_not_passed_over(
    http: httpx.Client, path: str, artifact: dict[str, Any], objects: ObjectStore
) -> None:
    objects.delete(artifact_key(artifact["job_id"], 1, "object.glb"))
    answer = http.get(path)
    assert answer.status_code == 500
    assert answer.json()["code"] == "artifact-lost"


def test_an_expired_artifact_is_gone(
    http: httpx.Client, settings: Settings, objects: ObjectStore, finish: Callable[..., None]
) -> None:
    job = http.post("/generate", json={"prompt": "a red cube"}).json()
    forgetful = JobStore(settings.database_url, retention_s=0.0)
    lease = forgetful.claim("worker")
    assert lease is not None
    finish(lease, forgetful)
    forgetful.close()
    artifact = http.get(f"/v1/jobs/{job['id']}/artifacts").json()["items"][0]
    answer = http.get(f"/v1/artifacts/{artifact['id']}/content")
    assert answer.status_code == 410
    assert answer.json()["code"] == "artifact-expired"


class SigningStore(LocalStore):
    """Local objects that another server hands out, as S3 does."""

    def presign(self, key: str, expires_s: int, filename: str) -> str | None:
        return f"https://objects.example/{key}?expires={expires_s}&as={filename}"


def test_a_store_that_presigns_hands_the_bytes_out_itself(
    http: httpx.Client, api: FastAPI, settings: Settings, path: str
) -> None:
    api.state.objects = SigningStore(Path(settings.objects_url.removeprefix("file://")))
    etag = http.head(path).headers["ETag"]
    answer = http.get(path)
    assert answer.status_code == 302
    assert answer.headers["Location"].startswith("https://objects.example/")
    assert answer.headers["Location"].endswith("expires=300&as=object.glb")
    assert answer.headers["Cache-Control"] == "no-store"
    assert http.get(path, headers={"If-None-Match": etag}).status_code == 304
