"""Choosing among the candidates of a job: over HTTP, with both clients, and on the command line."""

from __future__ import annotations

import asyncio
import hashlib
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from service.cli import app
from service.client import AsyncClient, Client
from service.client_errors import DownloadError, InvalidRequestError, RefusedError
from service.jobs.objects import artifact_key
from service.jobs.states import NewArtifact
from service.jobs.store import JobStore
from tests.unit.service.conftest import CANDIDATE, MESH, RESULT

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import httpx

    from service.jobs.objects import ObjectStore
    from service.jobs.states import Lease
    from service.settings import Settings

WANTED: dict[str, Any] = {"prompt": "a red cube", "candidates": {"count": 3}}
"""The reward likes candidate 1; 2 has become no object."""


@pytest.fixture
def make(store: JobStore, objects: ObjectStore) -> Callable[..., None]:
    """Do what a worker does to the next job: store each candidate's GLB, which says whose it is, then the row."""

    def make(by: JobStore = store) -> None:
        lease: Lease | None = by.claim("worker")
        assert lease is not None
        files = []
        for index in (1, 0):
            name = f"mesh-{index}.glb"
            key = artifact_key(lease.job_id, lease.attempt, name)
            info = objects.put(key, glb(index))
            files.append(
                NewArtifact("glb", name, "model/gltf-binary", info.size_bytes, info.sha256, key, index)
            )
        candidates = [
            CANDIDATE
            | {
                "index": index,
                "scores": {"reward": 0.8 if index == 1 else 0.1},
                "kept": index == 1,
                "files": [] if index == 2 else [f"mesh-{index}.glb"],
                "mesh": MESH | {"faces": index},
                "field_sha256": str(index) * 64,
            }
            for index in range(3)
        ]
        choice = {"by": "reward", "candidates": [1], "at": None}
        by.finish(lease, RESULT | {"candidates": candidates, "choice": choice}, files)

    return make


def glb(index: int) -> bytes:
    return f"glTF of candidate {index}".encode()


def run(*arguments: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, arguments)
    return done.exit_code, done.stdout, done.stderr


def test_what_release_0_2_told_of_candidates_is_a_document_of_today(
    http: httpx.Client, store: JobStore
) -> None:
    job = http.post("/generate", json=WANTED).json()
    lease = store.claim("worker")
    assert lease is not None
    told = {name: CANDIDATE[name] for name in ("index", "seed", "scores", "referee", "kept", "files")}
    store.finish(lease, RESULT | {"candidates": [told]}, [])
    (candidate,) = http.get(f"/v1/jobs/{job['id']}").json()["result"]["candidates"]
    assert candidate == told


def test_downloads_follow_the_choice_of_a_person(url: str, make: Callable[[], None], tmp_path: Path) -> None:
    target = tmp_path / "out.glb"
    with Client(url) as client:
        job = client.generate(**WANTED)
        make()
        job.wait(timeout_s=20)
        assert job.download(target).read_bytes() == glb(1)
        assert job.download(target, candidate=0).read_bytes() == glb(0)
        with pytest.raises(DownloadError, match="candidate 2 has no 'glb' artifact; it has: nothing"):
            job.download(target, candidate=2)
        *_, last = job.events()
        assert job.keep([0]).document["result"]["choice"]["by"] == "person"
        assert [artifact["candidate"] for artifact in job.document["result"]["artifacts"]] == [0]
        assert job.download(target).read_bytes() == glb(0)
        (told,) = job.events(after=last.id, timeout_s=20)  # and the stream has ended
        assert (last.type, told.type) == ("job.succeeded", "job.chosen")
        assert told.data == job.document["result"]["choice"]
        with pytest.raises(InvalidRequestError, match="candidate 2 has become no object") as caught:
            job.keep([2])
        assert caught.value.errors[0]["pointer"] == "/candidates/0"


def test_the_awaited_client_chooses_too(url: str, make: Callable[[], None], tmp_path: Path) -> None:
    async def choose() -> None:
        async with AsyncClient(url) as client:
            job = await client.generate(**WANTED)
            with pytest.raises(RefusedError) as caught:
                await job.keep([0])
            assert caught.value.code == "job-not-succeeded"
            make()
            await job.keep([0, 1])
            assert job.document["result"]["choice"]["candidates"] == [0, 1]
            assert (await job.download(tmp_path / "kept.glb")).read_bytes() == glb(0)
            assert (await job.download(tmp_path / "other.glb", candidate=1)).read_bytes() == glb(1)

    asyncio.run(choose())


def test_the_command_line_chooses_and_fetches_what_was_chosen(
    url: str, make: Callable[[], None], tmp_path: Path
) -> None:
    target = tmp_path / "out.glb"
    with Client(url) as client:
        job = client.generate(**WANTED)
    make()
    assert run("get", job.id, "-o", str(target), "--candidate", "0", "--url", url)[0] == 0
    assert target.read_bytes() == glb(0)
    assert run("keep", job.id, "0", "1", "--url", url) == (
        0,
        f"{job.id}\n",
        f"{job.id} keeps candidate 0 and candidate 1.\n",
    )
    target.unlink()
    assert run("get", job.id, "-o", str(target), "--url", url)[0] == 0
    assert target.read_bytes() == glb(0)
    code, printed, said = run("keep", job.id, "7", "--url", url)
    assert (code, printed) == (2, "")
    assert "the job has the candidates 0 to 2, found 7" in said


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({}, "/candidates"),
        ({"candidates": []}, "/candidates"),
        ({"candidates": [1, 1]}, "/candidates"),
        ({"candidates": [-1]}, "/candidates/0"),
        ({"candidates": [True]}, "/candidates/0"),
        ({"candidates": [0, 2]}, "/candidates/1"),
        ({"candidates": [15]}, "/candidates/0"),
        ({"candidates": [0], "why": "nicer"}, "/why"),
        ([0], ""),
    ],
)
def test_a_choice_that_cannot_be_read_changes_nothing(
    http: httpx.Client, make: Callable[[], None], body: Any, pointer: str
) -> None:
    path = f"/v1/jobs/{http.post('/v1/jobs', json=WANTED).json()['id']}"
    make()
    answer = http.post(f"{path}/keep", json=body)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid-request")
    assert answer.json()["errors"][0]["pointer"] == pointer
    assert http.get(path).json()["result"]["choice"]["by"] == "reward"


def test_what_cannot_be_chosen_from_says_why(
    http: httpx.Client, make: Callable[..., None], settings: Settings
) -> None:
    job_id = http.post("/v1/jobs", json=WANTED).json()["id"]

    def answered() -> tuple[int, str, bool]:
        answer = http.post(f"/v1/jobs/{job_id}/keep", json={"candidates": [0]})
        return answer.status_code, answer.json()["code"], bool(answer.json()["suggestion"])

    assert answered() == (409, "job-not-succeeded", True)
    forgetful = JobStore(settings.database_url, retention_s=0.0)
    make(forgetful)
    forgetful.close()
    assert answered() == (410, "artifact-expired", True)
    job_id = "job_01ARZ3NDEKTSV4RRFFQ69G5FAV"
    assert answered() == (404, "unknown-job", True)
    assert http.post(f"/v1/jobs/{job_id}/keep", content=b"{").status_code == 415


def test_the_sha256_of_a_candidates_file_is_told(http: httpx.Client, make: Callable[[], None]) -> None:
    job_id = http.post("/v1/jobs", json=WANTED).json()["id"]
    make()
    listed = http.get(f"/v1/jobs/{job_id}/artifacts").json()["items"]
    assert [(one["candidate"], one["sha256"]) for one in listed] == [
        (index, hashlib.sha256(glb(index)).hexdigest()) for index in (1, 0)
    ]
    kept = http.get(f"/v1/jobs/{job_id}").json()["result"]["artifacts"]
    assert kept == listed[:1]
