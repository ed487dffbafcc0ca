"""A real S3 server for tests: SeaweedFS."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["BUCKET", "needed", "running_seaweed", "s3_client"]

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


@contextmanager
def running_seaweed(folder: Path) -> Iterator[dict[str, str]]:
    """A SeaweedFS with one bucket: the environment by which programs reach it."""
    weed = needed("weed")
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
    try:
        yield environment
    finally:
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
