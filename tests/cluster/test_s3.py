"""The whole walk against a real S3 server (SeaweedFS), and the metrics against Prometheus's own checker."""

from __future__ import annotations

import hashlib
import subprocess
from typing import TYPE_CHECKING

import httpx
import pytest

from service.doctor import check_objects
from service.jobs.objects import ObjectExists, open_object_store
from service.settings import Settings
from tests.cluster.seaweed import BUCKET, needed, running_seaweed, s3_client

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.cluster.conftest import Up

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


@pytest.fixture(scope="module")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A SeaweedFS with one bucket: the environment by which programs reach it."""
    with running_seaweed(tmp_path_factory.mktemp("weed")) as environment:
        yield environment


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


def test_the_doctor_tells_a_bucket_that_is_there_from_one_that_is_not(
    seaweed: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in seaweed.items():
        monkeypatch.setenv(name, value)
    assert check_objects(Settings(objects_url=f"s3://{BUCKET}/doctor")).status == "ok"
    assert "Contents" not in s3_client(seaweed).list_objects_v2(Bucket=BUCKET, Prefix="doctor/")
    wrong = check_objects(Settings(objects_url="s3://mesh/doctor"))
    assert wrong.status == "fail"
    assert "bucket mesh: 404" in wrong.found
    assert "make it, or name another one in DREAMSERVE_OBJECTS_URL" in wrong.found
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret")
    stranger = check_objects(Settings(objects_url=f"s3://{BUCKET}/doctor"))
    assert stranger.status == "fail"
    assert "may these credentials read" in stranger.found
