"""The whole walk against a real S3 server (SeaweedFS), and the metrics against Prometheus's own checker."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import httpx
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from service.jobs.objects import ObjectExists, open_object_store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.cluster.conftest import Up

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

KEY, SECRET, BUCKET = "test-key", "test-secret-that-nobody-uses", "meshes"


def needed(program: str) -> str:
    """Path of a program; without it the test is skipped on a laptop and fails in CI."""
    beside_python = Path(sys.executable).with_name(program)
    path = str(beside_python) if beside_python.exists() else shutil.which(program)
    if path is None:
        told = f"{program} is not installed; `.ci/run` installs it"
        pytest.fail(told) if os.environ.get("CI") == "true" else pytest.skip(told)
    return path


def free_ports(count: int) -> list[int]:
    """Free ports p whose gRPC twin p + 10000 is free too."""
    found: list[int] = []
    for port in range(20_000 + os.getpid() % 10_000, 50_000):
        try:
            for one in (port, port + 10_000):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", one))
        except OSError:
            continue
        found.append(port)
        if len(found) == count:
            return found
    raise AssertionError("no free ports")


@pytest.fixture(scope="module")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A SeaweedFS with one bucket: the environment by which programs reach it."""
    weed, folder = needed("weed"), tmp_path_factory.mktemp("weed")
    names = ("s3", "master", "volume", "filer", "admin")
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    environment = {
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{ports['s3']}",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    options = [f"-{name}.port={port}" for name, port in ports.items()]
    options += [
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        f"-bucket={BUCKET}",
        "-master.telemetry=false",
        "-webdav=false",
    ]
    options += [
        "-admin.ui=false",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-s3.allowDeleteBucketNotEmpty=false",
    ]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            [weed, "mini", f"-dir={folder}", *options], env=os.environ | environment, stdout=log, stderr=log
        )
    deadline = time.monotonic() + 60
    while True:
        try:
            s3_client(environment).head_bucket(Bucket=BUCKET)
            break
        except (ClientError, BotoCoreError):
            assert time.monotonic() < deadline, (folder / "log").read_text()[-2000:]
            threading.Event().wait(0.2)
    yield environment
    server.kill()
    server.wait()


def s3_client(environment: dict[str, str]) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=environment["AWS_ENDPOINT_URL_S3"],
        aws_access_key_id=KEY,
        aws_secret_access_key=SECRET,
        region_name="us-east-1",
        config=Config(retries={"max_attempts": 1}, connect_timeout=2, read_timeout=5),
    )


def test_the_glb_is_in_the_bucket_and_downloads_by_a_presigned_url(
    seaweed: dict[str, str], up: Callable[..., Up]
) -> None:
    service = up(DREAMSERVE_OBJECTS_URL=f"s3://{BUCKET}/jobs", **seaweed)
    job = service.succeeded(service.submit(steps=30, method="sds"))
    (glb,) = [one for one in job["result"]["artifacts"] if one["kind"] == "glb"]

    client = s3_client(seaweed)
    listed = client.list_objects_v2(Bucket=BUCKET, Prefix="jobs/").get("Contents", [])
    (key,) = [one["Key"] for one in listed if one["Key"].endswith("mesh.glb")]
    stored = client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
    assert hashlib.sha256(stored).hexdigest() == glb["sha256"]
    assert len(stored) == glb["size_bytes"]

    answer = service.http.get(f"/v1/artifacts/{glb['id']}/content")
    assert answer.status_code == 302
    presigned = answer.headers["location"]
    assert hashlib.sha256(httpx.get(presigned).content).hexdigest() == glb["sha256"]
    assert httpx.get(presigned.replace("mesh.glb", "other.glb")).status_code == 403

    assert_metrics_are_clean_and_add_up(service)


def assert_metrics_are_clean_and_add_up(service: Up) -> None:
    """`promtool check metrics` has nothing to say; worker-seconds by use add up to the held time within 2 %."""
    text = service.http.get("/metrics").raise_for_status().text
    checked = subprocess.run(
        [needed("promtool"), "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")
    uses = dict.fromkeys(("optimizing", "loading", "exporting", "idle", "redone"), 0.0)
    for line in text.splitlines():
        if line.startswith("dreamserve_worker_seconds_total{"):
            uses[line.split('use="')[1].split('"')[0]] = float(line.rpartition(" ")[2])
    assert uses["optimizing"] > 0
    assert uses["exporting"] > 0


def test_a_conditional_put_on_an_existing_object_is_refused(
    seaweed: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in seaweed.items():
        monkeypatch.setenv(name, value)
    objects = open_object_store(f"s3://{BUCKET}/conditional")
    objects.put("jobs/a/1/mesh.glb", b"first", content_type="model/gltf-binary", create_once=True)
    with pytest.raises(ObjectExists):
        objects.put("jobs/a/1/mesh.glb", b"second", content_type="model/gltf-binary", create_once=True)
    assert objects.get("jobs/a/1/mesh.glb") == b"first"
