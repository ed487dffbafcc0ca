"""The conformance suite of the object stores: a local folder, and S3 as moto speaks it.

moto checks neither signatures nor checksums: a real S3 server is asked in `tests/cluster`.
"""

from __future__ import annotations

import hashlib
import os
import urllib.request
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import boto3
import pytest
from moto.server import ThreadedMotoServer

from service.jobs import s3_store
from service.jobs.errors import StoreUnavailable
from service.jobs.local_store import LocalStore
from service.jobs.objects import (
    CHUNK_BYTES,
    ObjectExists,
    ObjectInfo,
    ObjectMissing,
    ObjectStore,
    UnfitStore,
    artifact_key,
    attempt_of,
    check_writes_once,
    checkpoint_key,
    job_prefix,
    open_checked_store,
    open_object_store,
)
from service.jobs.s3_store import S3Store

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

JOB = "job_01ARZ3NDEKTSV4RRFFQ69G5FAV"
KEY = artifact_key(JOB, 1, "object.glb")


def info_of(content: bytes) -> ObjectInfo:
    return ObjectInfo(hashlib.sha256(content).hexdigest(), len(content))


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3_bucket(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in (
        ("AWS_ACCESS_KEY_ID", "test"),
        ("AWS_SECRET_ACCESS_KEY", "test"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
        ("AWS_ENDPOINT_URL", s3_endpoint),
    ):
        monkeypatch.setenv(name, value)
    bucket = f"meshes-{uuid.uuid4().hex}"
    boto3.client("s3").create_bucket(Bucket=bucket)
    return bucket


@pytest.fixture(params=["local", "s3"])
def objects(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    if request.param == "local":
        return open_object_store((tmp_path / "ob jects").as_uri())
    return open_object_store(f"s3://{request.getfixturevalue('s3_bucket')}/some/prefix")


def test_what_is_put_is_got(objects: ObjectStore, tmp_path: Path) -> None:
    content = os.urandom(2 * CHUNK_BYTES + 7)
    assert objects.put(KEY, content, content_type="model/gltf-binary") == info_of(content)
    assert objects.get(KEY) == content
    assert objects.head(KEY) == info_of(content)
    (tmp_path / "file").write_bytes(b"from a file")
    assert objects.put(checkpoint_key(JOB, 1, 50), tmp_path / "file") == info_of(b"from a file")
    assert objects.get(checkpoint_key(JOB, 1, 50)) == b"from a file"


def test_an_empty_object_is_an_object(objects: ObjectStore) -> None:
    objects.put(KEY, b"")
    assert objects.get(KEY) == b""
    assert objects.head(KEY) == info_of(b"")


@pytest.mark.parametrize(
    ("start", "end"),
    [(0, None), (0, 1), (10, 20), (CHUNK_BYTES - 1, CHUNK_BYTES + 1), (CHUNK_BYTES, None), (5, 5)],
)
def test_a_range_is_read(objects: ObjectStore, start: int, end: int | None) -> None:
    content = os.urandom(CHUNK_BYTES + 100)
    objects.put(KEY, content)
    assert b"".join(objects.open_range(KEY, start, end)) == content[start:end]


def test_what_is_missing_is_missing(objects: ObjectStore) -> None:
    with pytest.raises(ObjectMissing, match=r"object\.glb"):
        objects.get(KEY)
    with pytest.raises(ObjectMissing):
        objects.open_range(KEY, 0, 10)
    assert objects.head(KEY) is None
    objects.delete(KEY)


def test_deleting_removes(objects: ObjectStore) -> None:
    objects.put(KEY, b"x")
    objects.delete(KEY)
    assert objects.head(KEY) is None


def test_an_object_is_created_once(objects: ObjectStore) -> None:
    objects.put(KEY, b"first")
    with pytest.raises(ObjectExists, match="written once"):
        objects.put(KEY, b"second")
    assert objects.get(KEY) == b"first"
    assert objects.put(KEY, b"first") == info_of(b"first")  # a retry after a lost answer
    objects.put(KEY, b"second", create_once=False)
    assert objects.get(KEY) == b"second"


def test_a_listing_tells_keys_and_sizes_below_a_prefix(objects: ObjectStore) -> None:
    other = JOB.replace("FAV", "FAW")
    sizes = {KEY: 3, checkpoint_key(JOB, 2, 50): 5, artifact_key(other, 1, "object.glb"): 7}
    for key, size in sizes.items():
        objects.put(key, b"x" * size)
    assert {found.key: found.size_bytes for found in objects.list()} == sizes
    below = list(objects.list(job_prefix(JOB)))
    assert [found.key for found in below] == [KEY, checkpoint_key(JOB, 2, 50)]
    assert all(-60 < found.age_s < 60 for found in below)
    assert list(objects.list(job_prefix(JOB.replace("FAV", "FAX")))) == []


def test_of_many_writers_one_creates_the_object(objects: ObjectStore) -> None:
    def put(number: int) -> bytes | None:
        content = f"writer {number}".encode()
        try:
            objects.put(KEY, content)
        except ObjectExists:
            return None
        return content

    with ThreadPoolExecutor(8) as pool:
        winners = [content for content in pool.map(put, range(16)) if content is not None]
    assert winners == [objects.get(KEY)]


def test_the_self_test_passes_and_leaves_nothing(objects: ObjectStore, tmp_path: Path) -> None:
    objects.check()
    check_writes_once(objects, "file:///somewhere")
    assert list(objects.list()) == []
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


# ---- a local folder


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    contents = [bytes([n]) * 300_000 for n in range(8)]
    store.put(KEY, contents[0])
    with ThreadPoolExecutor(4) as pool:
        writes = [pool.submit(store.put, KEY, content, create_once=False) for content in contents]
        while not all(write.done() for write in writes):
            assert store.get(KEY) in contents
        for write in writes:
            write.result()
    assert list((tmp_path / ".unfinished").iterdir()) == []


def test_deleting_the_last_file_leaves_no_folder_and_hinders_no_writer(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    keys = [artifact_key(JOB, attempt, "object.glb") for attempt in (1, 2)]
    with ThreadPoolExecutor(2) as pool:
        for key, _ in zip(keys * 50, range(100), strict=True):
            written = pool.submit(store.put, key, b"x")
            store.delete(keys[0])
            written.result()
    for key in keys:
        store.delete(key)
    assert [path.name for path in tmp_path.iterdir()] == [".unfinished"]


def test_a_file_may_be_deleted_as_soon_as_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LocalStore(tmp_path)
    link = os.link

    def link_and_delete(source: Path, target: Path) -> None:
        link(source, target)
        store.delete(KEY)

    monkeypatch.setattr(os, "link", link_and_delete)
    assert store.put(KEY, b"x").size_bytes == 1
    assert store.head(KEY) is None


def test_what_a_dead_writer_has_left_is_discarded_after_a_while(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    (tmp_path / ".unfinished" / "tmp1").write_bytes(b"half")
    assert store.discard_unfinished(older_than_s=60) == 0
    assert store.discard_unfinished(older_than_s=-1) == 1
    assert list(store.list()) == []


@pytest.mark.parametrize("key", ["../x", "a/../../x", "/etc/passwd", "a//b", ".unfinished/x", ""])
def test_a_key_cannot_leave_the_folder(tmp_path: Path, key: str) -> None:
    with pytest.raises(ValueError, match="plain names"):
        LocalStore(tmp_path / "root").put(key, b"x")


def test_a_folder_that_is_away_is_named(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "objects")
    (tmp_path / "objects" / ".unfinished").rmdir()
    with pytest.raises(StoreUnavailable, match=r"No such file") as caught:
        store.check()
    assert caught.value.dependency == "objects"
    (tmp_path / "file").touch()
    with pytest.raises(StoreUnavailable):
        LocalStore(tmp_path / "file")


def test_a_local_folder_signs_no_urls(tmp_path: Path) -> None:
    assert LocalStore(tmp_path).presign(KEY, 60, "object.glb") is None


# ---- S3


def test_a_signed_url_downloads_under_the_files_name(s3_bucket: str) -> None:
    store = S3Store(s3_bucket, "p")
    store.put(KEY, b"glTF", content_type="model/gltf-binary")
    url = store.presign(KEY, 60, "red-cube.glb")
    assert url is not None
    with urllib.request.urlopen(url) as answer:
        assert answer.read() == b"glTF"
        assert answer.headers["Content-Disposition"] == 'attachment; filename="red-cube.glb"'


def test_a_signed_url_names_the_public_endpoint(s3_bucket: str) -> None:
    store = S3Store(s3_bucket, "p", public_endpoint="https://files.example.org")
    url = store.presign(KEY, 60, "object.glb")
    assert url is not None
    assert url.startswith(f"https://files.example.org/{s3_bucket}/p/{KEY}?")


def test_a_server_that_ignores_conditions_is_noticed(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = S3Store(s3_bucket)
    client = store._client
    unconditional = client.put_object
    monkeypatch.setattr(
        client,
        "put_object",
        lambda **fields: unconditional(**{k: v for k, v in fields.items() if k != "IfNoneMatch"}),
    )
    with pytest.raises(UnfitStore, match=rf"s3://{s3_bucket} let a second writer .* If-None-Match"):
        check_writes_once(store, f"s3://{s3_bucket}")
    assert list(store.list()) == []


def test_at_the_start_an_unfit_store_is_refused_and_one_that_is_away_is_waited_for(
    tmp_path: Path, s3_bucket: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for url in (tmp_path.as_uri(), f"s3://{s3_bucket}/p"):
        assert list(open_checked_store(url).list()) == []
    assert "could not be tested" not in caplog.text
    assert open_checked_store("s3://no-such-bucket/p")
    assert "s3://no-such-bucket/p could not be tested" in caplog.text
    monkeypatch.setattr(LocalStore, "_link", lambda self, unfinished, path, info: unfinished.replace(path))
    with pytest.raises(UnfitStore, match="let a second writer replace"):
        open_checked_store(tmp_path.as_uri())


def test_a_bucket_that_is_away_is_named(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = S3Store("no-such-bucket")
    with pytest.raises(StoreUnavailable, match="no-such-bucket"):
        missing.check()
    with pytest.raises(StoreUnavailable, match="NoSuchBucket"):
        missing.put(KEY, b"x")
    with pytest.raises(StoreUnavailable, match="NoSuchBucket"):
        missing.get(KEY)
    monkeypatch.setattr(s3_store, "_ATTEMPTS", 1)
    silent = S3Store("meshes", endpoint="http://127.0.0.1:9")
    with pytest.raises(StoreUnavailable, match=r"127\.0\.0\.1"):
        silent.check()


def test_missing_credentials_are_named(
    s3_bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(StoreUnavailable, match="credentials"):
        S3Store(s3_bucket).check()


# ---- keys and URLs


def test_every_attempt_has_its_own_prefix() -> None:
    assert artifact_key(JOB, 2, "object.glb") == f"jobs/{JOB}/0002/object.glb"
    assert checkpoint_key(JOB, 2, 50) == f"jobs/{JOB}/0002/checkpoints/0000050.safetensors"


@pytest.mark.parametrize("name", ["../x.glb", "a/b.glb", "", ".hidden", "Ünicode.glb", "a b.glb", "a..glb"])
def test_an_artifacts_name_is_ours_and_plain(name: str) -> None:
    with pytest.raises(ValueError, match="lower-case"):
        artifact_key(JOB, 1, name)


def test_a_key_tells_the_attempt_that_wrote_it() -> None:
    assert attempt_of(artifact_key(JOB, 2, "object.glb")) == (JOB, 2)
    assert attempt_of(checkpoint_key(JOB, 12_345, 50)) == (JOB, 12_345)
    for foreign in (
        "jobs/x",
        "photos/cat.jpg",
        f"jobs/{JOB}/0001",
        f"jobs/{JOB}/x/y",
        f"old/jobs/{JOB}/0001/x",
    ):
        assert attempt_of(foreign) is None


def test_a_key_is_made_of_a_jobs_id_only() -> None:
    with pytest.raises(ValueError, match="looks like"):
        checkpoint_key("../../etc", 1, 1)


@pytest.mark.parametrize("url", ["", "/data", "http://host/bucket", "s3:///prefix", "file://host/x"])
def test_a_url_that_is_no_object_store_is_refused_with_the_reason(url: str) -> None:
    with pytest.raises(ValueError, match="s3://BUCKET/PREFIX"):
        open_object_store(url)
