"""schemathesis against the real application: every operation of the OpenAPI document, all checks, no exception."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from service.http import stream
from service.jobs.states import FailureCode
from service.jobs.store import JobStore
from workers.networks import load_networks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from service.jobs.objects import ObjectStore
    from service.jobs.states import Lease
    from service.settings import Settings

MAX_EXAMPLES = 40
SEED = 7


@pytest.fixture
def store(settings: Settings) -> Iterator[JobStore]:
    """A store whose queue does not fill up: a 429 would hide what a request is answered otherwise."""
    store = JobStore(settings.database_url)
    yield store
    store.close()


@pytest.mark.slow
def test_whatever_the_document_allows_is_answered_as_it_says(
    url: str,
    store: JobStore,
    objects: ObjectStore,
    finish: Callable[[Lease], None],
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The document says what live workers can do: here, what one with the shipped weights can.
    store.publish_capabilities("worker", load_networks(settings).capabilities(), ttl_s=3_600)
    # Event streams end at once, so that they are read to their end too (`MAX_STREAM_S` is 15 minutes).
    monkeypatch.setattr(stream, "MAX_STREAM_S", 0.0)
    for ends in (finish, lambda lease: store.fail(lease, FailureCode.NAN_DIVERGENCE, "at step 3"), None):
        httpx.post(f"{url}/generate", json={"prompt": "a red cube"}, timeout=60.0).raise_for_status()
        if ends is not None and (lease := store.claim("worker")) is not None:
            ends(lease)
    command = [Path(sys.executable).with_name("schemathesis"), "--config-file", "/dev/null", "run"]
    options = ["--phases", "examples,coverage,fuzzing,stateful", "--max-examples", str(MAX_EXAMPLES)]
    repeatable = ["--seed", str(SEED), "--generation-deterministic"]
    found = subprocess.run(
        [*command, f"{url}/openapi.json", *options, *repeatable, "--no-color"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stdout[-20_000:] + found.stderr[-2_000:]
