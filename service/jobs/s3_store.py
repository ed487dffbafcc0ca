"""Objects in an S3 bucket, through boto3 (endpoint, region and credentials by the standard `AWS_*` variables)."""

from __future__ import annotations

import base64
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

from service.jobs.errors import StoreUnavailable
from service.jobs.objects import CHUNK_BYTES, ObjectExists, ObjectInfo, ObjectMissing, StoredObject, describe

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["S3Store"]

_CONNECT_TIMEOUT_S = 5
_READ_TIMEOUT_S = 15
_ATTEMPTS = 3
_CONFLICT_ATTEMPTS = 3


class S3Store:
    """An `ObjectStore` in `bucket`, under `prefix`.

    Timeouts times attempts stay below a minute, so that a silent server cannot hold a worker past its lease.
    `endpoint` and `public_endpoint` are URLs; by default `AWS_ENDPOINT_URL`, else Amazon's.
    """

    def __init__(
        self,
        bucket: str,
        prefix: str = "",
        *,
        endpoint: str | None = None,
        public_endpoint: str | None = None,
    ) -> None:
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        with _outages_named(bucket):
            self._client = _client(endpoint)
            self._signer = _client(public_endpoint) if public_endpoint else self._client

    def put(
        self,
        key: str,
        content: bytes | Path,
        *,
        content_type: str = "application/octet-stream",
        create_once: bool = True,
    ) -> ObjectInfo:
        """See `ObjectStore.put`; the server compares the SHA-256 with what it received."""
        info = describe(content)
        arguments: dict[str, Any] = {
            "ContentType": content_type,
            "ContentLength": info.size_bytes,
            "ChecksumSHA256": base64.b64encode(bytes.fromhex(info.sha256)).decode(),
            "Metadata": {"sha256": info.sha256},
        }
        if create_once:
            arguments["IfNoneMatch"] = "*"
        with _outages_named(self._bucket):
            if not self._put(key, content, arguments) and self.head(key) != info:
                raise ObjectExists(f"{key} exists with other content, and is written once only")
        return info

    def _put(self, key: str, content: bytes | Path, arguments: dict[str, Any]) -> bool:
        """Send one object; False when the server has one under that key already."""
        for remaining in reversed(range(_CONFLICT_ATTEMPTS)):
            try:
                if isinstance(content, bytes):
                    self._client.put_object(**self._place(key), Body=content, **arguments)
                else:
                    with content.open("rb") as file:
                        self._client.put_object(**self._place(key), Body=file, **arguments)
            except ClientError as error:
                status = _status(error)
                if status == 412:
                    return False
                # 409: another conditional write to this key is under way, so ask again.
                if status != 409 or not remaining:
                    raise
            else:
                return True
        raise AssertionError("the last round returns or raises")

    def get(self, key: str) -> bytes:
        """See `ObjectStore.get`."""
        return b"".join(self.open_range(key))

    def open_range(self, key: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """See `ObjectStore.open_range`."""
        if end is not None and end <= start:
            return iter(())
        last = "" if end is None else str(end - 1)
        span = {"Range": f"bytes={start}-{last}"} if start or end is not None else {}
        with _outages_named(self._bucket):
            try:
                body = self._client.get_object(**self._place(key), **span)["Body"]
            except ClientError as error:
                if _status(error) == 404 and _code(error) != "NoSuchBucket":
                    raise ObjectMissing(key) from None
                raise
        return self._chunks(body)

    def _chunks(self, body: Any) -> Iterator[bytes]:
        with _outages_named(self._bucket):
            try:
                yield from body.iter_chunks(CHUNK_BYTES)
            finally:
                body.close()

    def head(self, key: str) -> ObjectInfo | None:
        """See `ObjectStore.head`."""
        with _outages_named(self._bucket):
            try:
                found = self._client.head_object(**self._place(key))
            except ClientError as error:
                if _status(error) == 404:
                    return None
                raise
        return ObjectInfo(found["Metadata"].get("sha256", ""), found["ContentLength"])

    def delete(self, key: str) -> None:
        """See `ObjectStore.delete`."""
        with _outages_named(self._bucket):
            self._client.delete_object(**self._place(key))

    def presign(self, key: str, expires_s: int, filename: str) -> str | None:
        """See `ObjectStore.presign`."""
        disposition = f'attachment; filename="{filename}"'
        with _outages_named(self._bucket):
            url = self._signer.generate_presigned_url(
                "get_object",
                Params={**self._place(key), "ResponseContentDisposition": disposition},
                ExpiresIn=expires_s,
            )
        return str(url)

    def check(self) -> None:
        """See `ObjectStore.check`."""
        with _outages_named(self._bucket):
            self._client.head_bucket(Bucket=self._bucket)

    def list(self, prefix: str = "") -> Iterator[StoredObject]:
        """See `ObjectStore.list`."""
        pages = self._client.get_paginator("list_objects_v2")
        with _outages_named(self._bucket):
            for page in pages.paginate(Bucket=self._bucket, Prefix=f"{self._prefix}{prefix}"):
                now = datetime.now(UTC)
                for found in page.get("Contents", ()):
                    age_s = (now - found["LastModified"]).total_seconds()
                    yield StoredObject(found["Key"].removeprefix(self._prefix), found["Size"], age_s)

    def discard_unfinished(self, older_than_s: float) -> int:
        """See `ObjectStore.discard_unfinished`; a put is one request, of which S3 keeps all or nothing."""
        return 0

    def _place(self, key: str) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": f"{self._prefix}{key}"}


def _client(endpoint: str | None) -> Any:
    client = boto3.session.Session().client("s3", endpoint_url=endpoint, config=_config("auto"))
    if client.meta.endpoint_url.endswith(".amazonaws.com"):
        return client
    # Other servers are seldom reachable as bucket.host.
    return boto3.session.Session().client("s3", endpoint_url=endpoint, config=_config("path"))


def _config(addressing_style: str) -> Config:
    return Config(
        connect_timeout=_CONNECT_TIMEOUT_S,
        read_timeout=_READ_TIMEOUT_S,
        retries={"total_max_attempts": _ATTEMPTS, "mode": "standard"},
        s3={"addressing_style": addressing_style},
        signature_version="s3v4",
        # We send SHA-256 ourselves; boto3's own CRC trailers are unknown to some servers.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )


def _status(error: ClientError) -> int:
    return int(error.response["ResponseMetadata"]["HTTPStatusCode"])


def _code(error: ClientError) -> str:
    return str(error.response["Error"].get("Code", ""))


_ADVICE = {
    "NoSuchBucket": "make the bucket, or name another one in DREAMSERVE_OBJECTS_URL",
    "AccessDenied": "may these credentials read, write, list and delete in this bucket, and is it the right one?",
    "InvalidAccessKeyId": "AWS_ACCESS_KEY_ID is not known there",
    "SignatureDoesNotMatch": "AWS_SECRET_ACCESS_KEY does not fit AWS_ACCESS_KEY_ID",
    "RequestTimeTooSkewed": "set this machine's clock",
}
_NAMELESS = {"404": "NoSuchBucket", "403": "AccessDenied"}
"""The answer to a HEAD has no body, so the code is the status."""


def _advice(error: ClientError) -> str:
    code = _code(error)
    return _ADVICE.get(_NAMELESS.get(code, code), "")


@contextmanager
def _outages_named(bucket: str) -> Iterator[None]:
    """Turn whatever keeps the bucket from answering into `StoreUnavailable`: also a wrong key or name."""
    try:
        yield
    except ClientError as error:
        reason = error.response["Error"].get("Message") or f"HTTP {_status(error)}"
        told = f"bucket {bucket}: {_code(error)}: {reason}"
        raise StoreUnavailable("objects", told, _advice(error)) from error
    except NoCredentialsError as error:
        advice = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give this machine a role"
        raise StoreUnavailable("objects", f"bucket {bucket}: no credentials", advice) from error
    except BotoCoreError as error:
        raise StoreUnavailable("objects", f"bucket {bucket}: {error}") from error
    except OSError as error:
        raise StoreUnavailable("objects", f"bucket {bucket}: {error}") from error
