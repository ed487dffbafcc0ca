"""Objects as files in one folder: the embedded default, nothing to install."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from service.jobs.errors import StoreUnavailable
from service.jobs.objects import CHUNK_BYTES, ObjectExists, ObjectInfo, ObjectMissing, StoredObject, describe

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

__all__ = ["LocalStore"]

_NAMING_ATTEMPTS = 50


class LocalStore:
    """An `ObjectStore` under the folder `root`: every file is whole, and on disk, before it has its name."""

    def __init__(self, root: Path) -> None:
        self._root = root
        with _outages_named():
            # Unfinished files live beside the objects, on the same file system, so that a link is atomic.
            self._unfinished = root / ".unfinished"
            self._unfinished.mkdir(parents=True, exist_ok=True)

    def put(
        self,
        key: str,
        content: bytes | Path,
        *,
        content_type: str = "application/octet-stream",
        create_once: bool = True,
    ) -> ObjectInfo:
        """See `ObjectStore.put`; the content type is not kept."""
        path = self._path(key)
        with _outages_named():
            descriptor, name = tempfile.mkstemp(dir=self._unfinished)
            unfinished = Path(name)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    _write(file, content)
                info = describe(unfinished)
                self._name(unfinished, path, info, create_once=create_once)
                _sync_folders(path.parent, self._root)
            finally:
                unfinished.unlink(missing_ok=True)
        return info

    def _name(self, unfinished: Path, path: Path, info: ObjectInfo, *, create_once: bool) -> None:
        """Give a finished file its name, in a folder that a delete beside it may just have found empty."""
        for remaining in reversed(range(_NAMING_ATTEMPTS)):
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                if create_once:
                    self._link(unfinished, path, info)
                else:
                    unfinished.replace(path)
            except (FileNotFoundError, FileExistsError):  # gone before the link, or as `mkdir` looked
                if not remaining:
                    raise
            else:
                return

    @staticmethod
    def _link(unfinished: Path, path: Path, info: ObjectInfo) -> None:
        """Give a finished file its name, of which `os.link` lets exactly one writer be the first."""
        try:
            os.link(unfinished, path)
        except FileExistsError:
            if describe(path) != info:
                raise ObjectExists(
                    f"{path.name} exists with other content, and is written once only"
                ) from None

    def get(self, key: str) -> bytes:
        """See `ObjectStore.get`."""
        with _outages_named(), self._open(key) as file:
            return file.read()

    def open_range(self, key: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """See `ObjectStore.open_range`."""
        with _outages_named():
            file = self._open(key)
        return _chunks(file, start, end)

    def head(self, key: str) -> ObjectInfo | None:
        """See `ObjectStore.head`; this reads the whole file."""
        path = self._path(key)
        with _outages_named():
            try:
                return describe(path)
            except FileNotFoundError:
                return None

    def delete(self, key: str) -> None:
        """See `ObjectStore.delete`; folders that become empty go, too."""
        path = self._path(key)
        with _outages_named():
            path.unlink(missing_ok=True)
        with suppress(OSError):  # a folder is not empty, or gone already
            for folder in path.parents[: len(key.split("/")) - 1]:
                folder.rmdir()

    def presign(self, key: str, expires_s: int, filename: str) -> str | None:
        """Return None: the service itself sends the bytes."""
        return None

    def check(self) -> None:
        """See `ObjectStore.check`."""
        with _outages_named(), tempfile.TemporaryFile(dir=self._unfinished):
            pass

    def list(self, prefix: str = "") -> Iterator[StoredObject]:
        """See `ObjectStore.list`."""
        folder = self._path(prefix.rstrip("/")) if prefix else self._root
        with _outages_named():
            for parent, folders, names in os.walk(folder):
                folders[:] = sorted(name for name in folders if not name.startswith("."))
                for name in sorted(names):
                    if (found := self._stored(Path(parent, name))) is not None:
                        yield found

    def _stored(self, path: Path) -> StoredObject | None:
        try:
            status = path.stat()
        except FileNotFoundError:  # deleted since its folder was read
            return None
        key = path.relative_to(self._root).as_posix()
        return StoredObject(key, status.st_size, time.time() - status.st_mtime)

    def discard_unfinished(self, older_than_s: float) -> int:
        """See `ObjectStore.discard_unfinished`."""
        num_discarded = 0
        with _outages_named():
            for path in self._unfinished.iterdir():
                with suppress(FileNotFoundError):  # its writer has finished
                    if time.time() - path.stat().st_mtime > older_than_s:
                        path.unlink()
                        num_discarded += 1
        return num_discarded

    def _open(self, key: str) -> BinaryIO:
        try:
            return self._path(key).open("rb")
        except FileNotFoundError:
            raise ObjectMissing(key) from None

    def _path(self, key: str) -> Path:
        parts = key.split("/")
        if any(part in ("", ".", "..") or part.startswith(".") for part in parts):
            raise ValueError(f"an object's key consists of plain names, found {key!r}")
        return self._root.joinpath(*parts)


def _write(file: BinaryIO, content: bytes | Path) -> None:
    """Write everything to disk, not only to the system's cache."""
    if isinstance(content, bytes):
        file.write(content)
    else:
        with content.open("rb") as source:
            shutil.copyfileobj(source, file)
    file.flush()
    os.fsync(file.fileno())


def _sync_folders(folder: Path, root: Path) -> None:
    """Bring a new file's name to disk, and the names of the folders made for it."""
    while folder != root:
        with suppress(FileNotFoundError):  # a delete beside it has taken the file, and the folder with it
            _sync_folder(folder)
        folder = folder.parent
    _sync_folder(root)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _chunks(file: BinaryIO, start: int, end: int | None) -> Iterator[bytes]:
    with file:
        file.seek(start)
        left = None if end is None else end - start
        while left is None or left > 0:
            chunk = file.read(CHUNK_BYTES if left is None else min(CHUNK_BYTES, left))
            if not chunk:
                return
            left = None if left is None else left - len(chunk)
            yield chunk


@contextmanager
def _outages_named() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreUnavailable("objects", f"{error.strerror} ({error.filename})") from error
