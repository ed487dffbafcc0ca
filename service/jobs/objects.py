"""Where bytes live: one small interface over a local folder and S3. Keys come only from functions here."""

from __future__ import annotations

import hashlib
import logging
import re
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from urllib.parse import unquote, urlsplit

from service.jobs.errors import StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "CHUNK_BYTES",
    "ObjectExists",
    "ObjectInfo",
    "ObjectMissing",
    "ObjectStore",
    "StoredObject",
    "UnfitStore",
    "artifact_key",
    "attempt_of",
    "check_writes_once",
    "checkpoint_key",
    "describe",
    "job_prefix",
    "open_checked_store",
    "open_object_store",
]

logger = logging.getLogger(__name__)

CHUNK_BYTES = 256 * 1024
"""Bytes that a range read yields at a time."""


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What is stored under a key."""

    sha256: str
    """Lower-case hex."""
    size_bytes: int


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An entry of a listing."""

    key: str
    size_bytes: int
    age_s: float
    """Since it was written, by the clocks of the store and of this machine."""


class UnfitStore(Exception):
    """The store answers, but does not keep a promise that results depend on; the text names it and says which."""


class ObjectExists(Exception):
    """A create-once put found other bytes under its key; nothing was changed."""


class ObjectMissing(KeyError):
    """Nothing is stored under this key."""

    def __str__(self) -> str:
        return f"there is no object {self.args[0]!r}"


class ObjectStore(Protocol):
    """Whole objects under keys; every method raises `StoreUnavailable` when the store does not answer."""

    def put(
        self,
        key: str,
        content: bytes | Path,
        *,
        content_type: str = "application/octet-stream",
        create_once: bool = True,
    ) -> ObjectInfo:
        """Store bytes or a file, whole or not at all; it is durable when this returns.

        With `create_once`, raise `ObjectExists` if other bytes are there (the same bytes are fine: a retry).
        """
        ...

    def get(self, key: str) -> bytes:
        """Read a whole object; raise `ObjectMissing`."""
        ...

    def open_range(self, key: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Read bytes start … end − 1 (to the end if `end` is None) in chunks; raise `ObjectMissing` at once."""
        ...

    def head(self, key: str) -> ObjectInfo | None:
        """Tell hash and size of what is stored; None when nothing is."""
        ...

    def delete(self, key: str) -> None:
        """Remove an object; nothing happens when there is none."""
        ...

    def presign(self, key: str, expires_s: int, filename: str) -> str | None:
        """Make a URL for a direct download, valid for `expires_s` seconds; None when this store cannot."""
        ...

    def check(self) -> None:
        """Raise `StoreUnavailable` unless the store answers (for /readyz)."""
        ...

    def list(self, prefix: str = "") -> Iterator[StoredObject]:
        """List what is stored under keys that begin with `prefix`: empty, or ending in a slash."""
        ...

    def discard_unfinished(self, older_than_s: float) -> int:
        """Remove what writers that died within a `put` have left; how much that was."""
        ...


def check_writes_once(objects: ObjectStore, url: str) -> None:
    """Put one object twice, as two attempts at one job might: raise `UnfitStore` unless the second is refused.

    `url` names the store in the error. Leaves nothing behind. Raises `StoreUnavailable`.
    """
    key = f"self-test/{uuid.uuid4().hex}"
    objects.put(key, b"first")
    try:
        objects.put(key, b"second")
    except ObjectExists:
        return
    finally:
        objects.delete(key)
    raise UnfitStore(
        f"the object store {url} let a second writer replace an object that is to be written once: it ignores "
        "If-None-Match. Choose a server that honors conditional writes (Amazon S3, SeaweedFS, MinIO, Ceph) "
        "and name it in DREAMSERVE_OBJECTS_URL"
    )


_ID = re.compile(r"[A-Za-z]+_[0-9A-Z]{26}")
_ATTEMPT_KEY = re.compile(rf"jobs/({_ID.pattern})/([0-9]{{4,9}})/.+")
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*(\.[a-z0-9]+)*")


def artifact_key(job_id: str, attempt: int, name: str) -> str:
    """Name the object of an artifact: one prefix per attempt, so that a late writer overwrites nothing."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"an artifact's name is lower-case letters, digits, - _ and dots, found {name!r}")
    return f"{_attempt_prefix(job_id, attempt)}/{name}"


def checkpoint_key(job_id: str, attempt: int, step: int) -> str:
    """Name the object of a checkpoint."""
    return f"{_attempt_prefix(job_id, attempt)}/checkpoints/{step:07d}.safetensors"


def job_prefix(job_id: str) -> str:
    """Name what all keys of a job begin with."""
    if not _ID.fullmatch(job_id):
        raise ValueError(f"a job's id looks like job_01ARZ3NDEKTSV4RRFFQ69G5FAV, found {job_id!r}")
    return f"jobs/{job_id}/"


def _attempt_prefix(job_id: str, attempt: int) -> str:
    return f"{job_prefix(job_id)}{attempt:04d}"


def attempt_of(key: str) -> tuple[str, int] | None:
    """Read from a key which attempt at which job has written the object; None when the key is none of ours."""
    found = _ATTEMPT_KEY.fullmatch(key)
    return None if found is None else (found[1], int(found[2]))


def describe(content: bytes | Path) -> ObjectInfo:
    """Hash and measure bytes or a file."""
    if isinstance(content, bytes):
        return ObjectInfo(hashlib.sha256(content).hexdigest(), len(content))
    with content.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return ObjectInfo(digest, file.tell())


def open_checked_store(url: str, *, public_endpoint: str | None = None) -> ObjectStore:
    """Open an object store at start-up and test it; raises `UnfitStore`.

    One that does not answer yet is taken on trust, since a service may start before its stores; /readyz watches it.
    """
    objects = open_object_store(url, public_endpoint=public_endpoint)
    try:
        check_writes_once(objects, url)
    except StoreUnavailable as error:
        logger.warning("the object store %s could not be tested: %s", url, error)
    return objects


def open_object_store(url: str, *, public_endpoint: str | None = None) -> ObjectStore:
    """Open `file:///folder` or `s3://bucket/prefix` (endpoint, region and credentials by `AWS_*`).

    `public_endpoint` is where clients reach the S3 server, if not where this process does.
    """
    from service.jobs.local_store import LocalStore
    from service.jobs.s3_store import S3Store

    parts = urlsplit(url)
    match parts.scheme:
        case "file" if parts.netloc in ("", "localhost") and parts.path:
            return LocalStore(Path(unquote(parts.path)))
        case "s3" if parts.netloc:
            return S3Store(parts.netloc, parts.path.strip("/"), public_endpoint=public_endpoint)
        case _:
            raise ValueError(
                f"the object store is {url!r}, expected file:///FOLDER or s3://BUCKET/PREFIX; "
                "set DREAMSERVE_OBJECTS_URL"
            )
