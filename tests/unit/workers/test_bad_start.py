"""What is missing at the start: the process says what and how to mend it, and /readyz names it.

A missing secret, a wrong bucket, a database that is down, a Ray of another version, no GPU.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import ray
from typer.testing import CliRunner

from service.jobs.errors import StoreUnavailable
from service.jobs.objects import open_object_store
from service.jobs.store import JobStore
from tests.unit.service.conftest import api, http, portal, settings, store  # noqa: F401 - fixtures
from tests.unit.service.jobs.test_objects import s3_bucket, s3_endpoint  # noqa: F401 - fixtures
from tests.unit.workers.small_workers import Service
from workers.cluster import WrongRay, connect
from workers.main import app
from workers.networks import load_networks
from workers.pool import lacking_place

if TYPE_CHECKING:
    from pathlib import Path

    import httpx

    from service.jobs.objects import ObjectStore

AWAY_S3 = {"AWS_EC2_METADATA_DISABLED": "true", "AWS_SHARED_CREDENTIALS_FILE": "/nowhere"}
SECRET = ("set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY", "no credentials")
BUCKET = ("make the bucket, or name another one in DREAMSERVE_OBJECTS_URL", "bucket wrong")


@pytest.fixture(params=["secret", "bucket"])
def objects(request: pytest.FixtureRequest, s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:  # noqa: F811
    """An object store that nobody gets into: without a secret, or in a bucket that is not there."""
    if request.param == "bucket":
        return open_object_store("s3://wrong/p")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name, value in AWAY_S3.items():
        monkeypatch.setenv(name, value)
    return open_object_store(f"s3://{s3_bucket}/p")


@pytest.fixture
def told(request: pytest.FixtureRequest) -> tuple[str, str]:
    """What is to be done about it, and what only the log says."""
    return BUCKET if request.node.callspec.params["objects"] == "bucket" else SECRET


def nowhere() -> int:
    """A port at which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def trouble_of(http: httpx.Client) -> dict[str, str]:  # noqa: F811
    """What /readyz says is the matter: as yet nothing, or one thing."""
    answer = http.get("/readyz")
    assert answer.status_code == 200
    return {one["source"]: one["detail"] for one in answer.json()["trouble"]}


def test_without_its_secret_or_in_a_wrong_bucket_the_frontend_is_not_ready(
    http: httpx.Client,  # noqa: F811
    told: tuple[str, str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    answer = http.get("/readyz")
    assert answer.status_code == 503
    (error,) = answer.json()["errors"]
    assert error["pointer"] == "/dependencies/objects"
    assert told[0] in error["detail"]
    assert told[0] in answer.json()["detail"]
    assert told[1] not in answer.text
    assert told[1] in caplog.text


def test_without_its_secret_or_in_a_wrong_bucket_a_worker_waits_and_claims_nothing(
    tmp_path: Path, objects: ObjectStore, told: tuple[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    service = Service(tmp_path)
    job_id = service.submit()
    worker = service.worker(objects=objects)
    service.run_until(lambda: any(told[0] in one.detail for one in service.store.troubles()), worker)
    assert service.job(job_id)["status"] == "queued"
    assert any(told[0] in one.detail for one in service.store.troubles()), "it has not started"
    assert all(part in caplog.text for part in told)
    service.finish(job_id)  # by a worker that gets in
    assert [one for one in service.store.troubles() if one.source == "worker"] == []


def test_without_the_clusters_token_the_pool_is_not_started(tmp_path: Path) -> None:
    environment = os.environ | {
        "RAY_AUTH_MODE": "token",
        "HOME": str(tmp_path),
        "DREAMSERVE_DATA_DIR": str(tmp_path),
    }
    environment.pop("RAY_AUTH_TOKEN", None)
    with socket.create_server(("127.0.0.1", 0)) as head:
        command = [sys.executable, "-m", "workers.main", "pool", "--timeout-s", "0"]
        command += ["--address", f"127.0.0.1:{head.getsockname()[1]}"]
        answer = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert answer.returncode == 2
    assert "The cluster's secret is missing: set RAY_AUTH_TOKEN" in answer.stderr
    assert "Traceback" not in answer.stderr
    (trouble,) = JobStore(f"sqlite:///{tmp_path}/jobs.sqlite3").troubles()
    assert trouble.source == "pool"
    assert "The cluster's secret is missing: set RAY_AUTH_TOKEN" in trouble.detail
    assert "127.0.0.1" not in trouble.detail


@pytest.mark.parametrize("command", ["pool", "worker"])
def test_a_database_that_is_down_is_told_with_what_to_do(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from service.settings import Settings
    from workers.up import check_stores

    url = f"postgresql://me:hidden@127.0.0.1:{nowhere()}/jobs"
    check_stores(Settings(data_dir=tmp_path, database_url=url))
    said = capsys.readouterr().err
    assert "Warning: the database did not answer: connection" in said
    assert "see that it is there and lets us in; DREAMSERVE_DATABASE_URL names it" in said
    assert "hidden" not in said
    monkeypatch.setenv("DREAMSERVE_DATABASE_URL", "no URL")
    answer = CliRunner().invoke(app, [command], env={"DREAMSERVE_DATA_DIR": str(tmp_path)})
    assert answer.exit_code == 2
    assert "DREAMSERVE_DATABASE_URL cannot be read as a URL; expected sqlite:///FILE" in answer.stderr


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        ("fe_sendauth: no password supplied", "put the password into DREAMSERVE_DATABASE_URL"),
        (
            'password authentication failed for user "x"',
            "correct user or password in DREAMSERVE_DATABASE_URL",
        ),
        ('database "x" does not exist', "make this database and its user, or name others in"),
    ],
)
def test_a_database_that_lets_nobody_in_is_told_apart(words: str, advice: str) -> None:
    from service.jobs.database import _advice

    assert advice in StoreUnavailable("database", words, _advice(words)).advice


def test_a_ray_of_another_version_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = "Version mismatch: The cluster was started with: Ray: 2.59.0; this process on 192.0.2.7: 2.60.0"

    def refuse(**_: Any) -> None:
        raise RuntimeError(found)  # as Ray does: a real one does in tests/cluster/test_on_a_head.py

    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.setenv("DREAMSERVE_DATA_DIR", str(tmp_path))
    with pytest.raises(WrongRay, match="give all images of the cluster the same, and set rayVersion"):
        connect("auto", 0)
    answer = CliRunner().invoke(app, ["pool", "--timeout-s", "0"])
    assert answer.exit_code == 2
    assert found in answer.stderr
    (trouble,) = JobStore(f"sqlite:///{tmp_path}/jobs.sqlite3").troubles()
    assert f"another Ray or Python than this image (Ray {ray.__version__}, Python 3." in trouble.detail
    assert "give all images of the cluster the same" in trouble.detail
    assert "192.0.2.7" not in trouble.detail


def test_a_worker_that_wants_a_gpu_and_finds_none_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    service = Service(tmp_path, device="cuda")
    with pytest.raises(ValueError, match="torch finds no GPU"):
        service.run_until(lambda: False, service.worker(load=lambda: load_networks(service.settings)))
    (trouble,) = service.store.troubles()
    assert trouble.source == "worker"
    assert "DREAMSERVE_DEVICE=cuda, but torch finds no GPU here. Give the worker one" in trouble.detail
    monkeypatch.setenv("DREAMSERVE_DEVICE", "cuda")
    answer = CliRunner().invoke(app, ["worker", "--data-dir", str(tmp_path)])
    assert answer.exit_code == 2
    assert (
        "finds no GPU; expected a GPU, as DREAMSERVE_DEVICE=cuda says. Install NVIDIA's driver"
        in answer.stderr
    )
    (trouble,) = service.store.troubles()
    assert "Install NVIDIA's driver" in trouble.detail


def test_a_worker_that_breaks_in_the_words_of_others_tells_only_the_kind(tmp_path: Path) -> None:
    service = Service(tmp_path)

    def load() -> Any:
        raise ConnectionError("to secret-host as me:hidden")

    with pytest.raises(ConnectionError):
        service.run_until(lambda: False, service.worker(load=load))
    (trouble,) = service.store.troubles()
    assert trouble.detail == "a worker could not start (ConnectionError); its log has the rest"


def test_a_cluster_without_a_gpu_for_a_worker_is_named() -> None:
    told = lacking_place(1, {"CPU": 8.0}, 75.0)
    assert "for 75 s a worker has not begun to run: it wants 1 GPU(s)" in told
    assert "the nodes of the Ray cluster have 0 GPU(s) and 8 CPU(s)" in told
    assert f"Add a node that has this (its image needs the same Ray, {ray.__version__}" in told
    assert "or lower DREAMSERVE_WORKER_GPUS" in told
