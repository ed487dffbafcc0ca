"""A worker's life on real stores: what it publishes, how it ends, what it counts."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest

from tests.unit.workers.small_workers import Service

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def service(tmp_path: Path) -> Service:
    return Service(tmp_path)


@pytest.mark.parametrize("method", ["sds", "dreamfl", "dreamdpo"])
def test_a_prompt_becomes_a_checked_mesh_with_its_scores_and_origin(service: Service, method: str) -> None:
    (job,) = service.finish(service.submit(method=method))
    assert job["status"] == "succeeded", job["error"]
    result = job["result"]
    assert [one["kind"] for one in result["artifacts"]] == ["glb", "thumbnail", "report"]
    for document in result["artifacts"]:
        described, key = service.store.artifact(document["id"])
        assert hashlib.sha256(service.objects.get(key)).hexdigest() == described["sha256"]
    assert result["mesh"]["watertight"]
    (candidate,) = result["candidates"]
    assert candidate["scores"].keys() == {"embedded-multiview"}
    assert result["provenance"]["seed"] == 7
    assert result["provenance"]["weights"]["prior"].startswith("sha256:")
    assert "this one had" in result["provenance"]["determinism"]
    assert job["progress"]["step"] == 30
    (attempt,) = job["attempts"]
    assert attempt["outcome"] == "succeeded"
