"""The whole walk against a real S3 server (SeaweedFS), and the metrics against Prometheus's own checker."""

from __future__ import annotations

import asyncio
import hashlib
import subprocess
import time
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from service.doctor import check_objects
from service.jobs.objects import ObjectExists, open_object_store
from service.jobs.tallies import Total
from service.settings import Settings
from tests.chaos.proxy import FaultProxy
from tests.cluster.seaweed import BUCKET, needed, running_seaweed, s3_client
from tests.unit.workers.small_workers import Service

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.cluster.conftest import Up

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

LEASE_S, SOON_S = 8.0, 30.0
"""A short lease, and what may pass between the end of an outage and that of its job: a pause of 8 s, and the upload."""


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
    assert "make the bucket, or name another one in DREAMSERVE_OBJECTS_URL" in wrong.found
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret")
    stranger = check_objects(Settings(objects_url=f"s3://{BUCKET}/doctor"))
    assert stranger.status == "fail"
    assert "may these credentials read" in stranger.found


@pytest.fixture
def proxy(seaweed: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """The way to the bucket for this process."""
    port = int(seaweed["AWS_ENDPOINT_URL_S3"].rpartition(":")[2])
    proxy = FaultProxy(lambda: asyncio.open_connection("127.0.0.1", port))
    for name, value in (seaweed | {"AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{proxy.port}"}).items():
        monkeypatch.setenv(name, value)
    yield proxy
    proxy.close()


def upload_into_an_outage(
    service: Service, proxy: FaultProxy, is_over: Callable[[dict[str, Any], float], bool]
) -> tuple[dict[str, Any], float]:
    """Run a job whose bucket goes away before its upload, until `is_over`; it, and seconds from then to its success.

    `is_over` is told the job, and for how long its upload has been waiting.
    """
    job_id = service.submit(steps=30)
    times: dict[str, float] = {}

    def happens(what: str, is_so: bool) -> bool:
        """Whether it happens now, for the first time."""
        if not is_so or what in times:
            return False
        times[what] = time.monotonic()
        return True

    def ended() -> bool:
        job = service.job(job_id)
        if happens("gone", bool(job["progress"]) and job["progress"]["step"] >= 5):
            proxy.set_mode("refuse")
        happens("uploads", "gone" in times and job["stage"] == "upload")
        if "uploads" in times and happens("back", is_over(job, time.monotonic() - times["uploads"])):
            proxy.set_mode("pass")
        return bool(job["status"] == "succeeded")

    service.run_until(ended, service.worker(), timeout_s=120)
    return service.job(job_id), time.monotonic() - times["back"]


def test_a_job_outlives_an_outage_of_its_bucket_that_is_longer_than_its_lease(
    proxy: FaultProxy, tmp_path: Path
) -> None:
    service = Service(tmp_path, objects_url=f"s3://{BUCKET}/outage", lease_s=LEASE_S)
    outage_s = 1.25 * LEASE_S
    job, after_s = upload_into_an_outage(service, proxy, lambda job, waited_s: waited_s > outage_s)
    (attempt,) = job["attempts"]
    assert attempt["worker_s"] > outage_s
    assert after_s < SOON_S
    tallies = service.store.snapshot().tallies
    assert not [one for one in tallies if one.name == Total.LEASES_EXPIRED and one.value]


def test_an_outage_beyond_the_budget_fails_the_attempt_by_the_name_of_the_bucket(
    proxy: FaultProxy, tmp_path: Path
) -> None:
    service = Service(tmp_path, objects_url=f"s3://{BUCKET}/budget", storage_budget_s=2.0)
    job, _ = upload_into_an_outage(service, proxy, lambda job, waited_s: job["failures"] > 0)
    assert [one["outcome"] for one in job["attempts"]] == ["error", "succeeded"]
    (lost,) = [one["data"] for one in service.store.events(job["id"]) if one["type"] == "job.attempt_lost"]
    assert lost["code"] == "storage-error"
    assert f"the object store did not answer: bucket {BUCKET}: " in lost["detail"]
