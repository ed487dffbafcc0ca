"""Where bytes live: one small interface over a local folder and S3. Keys come only from functions here."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "CHUNK_BYTES",
    "ObjectExists",
    "ObjectInfo",
    "ObjectMissing",
    "ObjectStore",
    "artifact_key",
    "checkpoint_key",
    "describe",
    "open_object_store",
]

CHUNK_BYTES = 256 * 1024
"""Bytes that a range read yields at a time."""


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What is stored under a key."""

    sha256: str
    """Lower-case hex."""
    size_bytes: int


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

    def self_test(self) -> list[str]:
        """Write once at start-up; returns the warnings that an operator should see."""
        ...


_ID = re.compile(r"[A-Za-z]+_[0-9A-Z]{26}")
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*(\.[a-z0-9]+)*")


def artifact_key(job_id: str, attempt: int, name: str) -> str:
    """Name the object of an artifact: one prefix per attempt, so that a late writer overwrites nothing."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"an artifact's name is lower-case letters, digits, - _ and dots, found {name!r}")
    return f"{_attempt_prefix(job_id, attempt)}/{name}"


def checkpoint_key(job_id: str, attempt: int, step: int) -> str:
    """Name the object of a checkpoint."""
    return f"{_attempt_prefix(job_id, attempt)}/checkpoints/{step:07d}.safetensors"


def _attempt_prefix(job_id: str, attempt: int) -> str:
    if not _ID.fullmatch(job_id):
        raise ValueError(f"a job's id looks like job_01ARZ3NDEKTSV4RRFFQ69G5FAV, found {job_id!r}")
    return f"jobs/{job_id}/{attempt:04d}"


def describe(content: bytes | Path) -> ObjectInfo:
    """Hash and measure bytes or a file."""
    if isinstance(content, bytes):
        return ObjectInfo(hashlib.sha256(content).hexdigest(), len(content))
    with content.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return ObjectInfo(digest, file.tell())


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
