"""`dreamserve fsck`: what it says, what it repairs, and its exit codes."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from service.jobs.objects import artifact_key
from workers import main

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx
    from typer.testing import Result

    from service.jobs.objects import ObjectStore
    from service.jobs.states import Lease
    from service.jobs.store import JobStore
    from service.settings import Settings


@pytest.fixture
def done(http: httpx.Client, store: JobStore, finish: Callable[[Lease], None]) -> list[str]:
    """The ids of two jobs that have succeeded."""
    for prompt in ("a red cube", "a blue cube"):
        http.post("/generate", json={"prompt": prompt})
        lease = store.claim("worker")
        assert lease is not None
        finish(lease)
    return [job["id"] for job in http.get("/v1/jobs").json()["items"]]


@pytest.fixture
def fsck(settings: Settings) -> Callable[..., Result]:
    def run(*arguments: str) -> Result:
        return CliRunner().invoke(
            main.app,  # type: ignore[attr-defined]
            ["fsck", "--data-dir", str(settings.data_dir), *arguments],
        )

    return run


@pytest.mark.usefixtures("done")
def test_a_sound_store_exits_0(fsck: Callable[..., Result]) -> None:
    result = fsck()
    assert (result.exit_code, result.stdout) == (0, "")
    assert "2 objects are as the database says, 0 are not." in result.stderr


def test_what_is_wrong_exits_1_until_it_is_repaired(
    done: list[str], fsck: Callable[..., Result], settings: Settings, objects: ObjectStore, http: httpx.Client
) -> None:
    lost = artifact_key(done[0], 1, "object.glb")
    objects.delete(lost)
    orphan = artifact_key(done[1], 1, "thumbnail.png")
    objects.put(orphan, b"nobody's")
    long_ago = time.time() - 100_000
    os.utime(Path(settings.objects_url.removeprefix("file://"), orphan), (long_ago, long_ago))

    found = fsck("--json")
    assert found.exit_code == 1
    lines = [json.loads(line) for line in found.stdout.splitlines()]
    assert [(line["trouble"], line["key"], line["repaired"]) for line in lines] == [
        ("missing", lost, False),
        ("orphan", orphan, False),
    ]
    assert "dreamserve fsck --repair" in found.stderr
    assert fsck("--quick").exit_code == 1

    repaired = fsck("--repair")
    assert repaired.exit_code == 0, repaired.output
    assert repaired.stdout.count("repaired") == 2
    assert fsck().exit_code == 0
    (artifact,) = http.get(f"/v1/jobs/{done[0]}/artifacts").json()["items"]
    assert http.get(f"/v1/artifacts/{artifact['id']}/content").status_code == 410


def test_a_store_that_is_another_services_is_not_repaired_from(
    done: list[str], fsck: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DREAMSERVE_OBJECTS_URL", (tmp_path / "elsewhere").as_uri())
    result = fsck("--repair")
    assert result.exit_code == 1
    assert "one of them belongs to another service" in result.stderr
    monkeypatch.delenv("DREAMSERVE_OBJECTS_URL")
    assert fsck().exit_code == 0
