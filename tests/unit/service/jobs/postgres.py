"""A throw-away PostgreSQL server for tests."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["find_programs", "running_server"]


def find_programs() -> Path | None:
    """Find the folder of `initdb`, on PATH or where Debian puts it."""
    found = shutil.which("initdb")
    if found is not None:
        return Path(found).resolve().parent
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return versions[-1].parent if versions else None


def account() -> str | None:
    """The account to run the server under: PostgreSQL refuses root. None: this process' own."""
    if os.getuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


@contextmanager
def running_server(programs: Path, *, durable: bool = False) -> Iterator[str]:
    """Start a server that listens on a Unix socket only; yields the URL of its databases, less their name.

    `durable`: it syncs the disk as a real one does, which tests need not wait for.
    """
    user = account()
    # A short path: those of Unix sockets are limited to 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    if user is not None:
        shutil.chown(folder, user)

    def run(program: str, *arguments: str) -> None:
        command = [str(programs / program), "-D", str(folder / "data"), *arguments]
        subprocess.run(command, user=user, cwd=folder, check=True, stdout=subprocess.DEVNULL, timeout=60)

    try:
        run("initdb", "-A", "trust", "-U", "tester", "--no-sync", "-E", "UTF8", "--no-locale")
        options = f"-c listen_addresses='' -c fsync={'on' if durable else 'off'} -k {folder}"
        run("pg_ctl", "-w", "-l", str(folder / "log"), "-o", options, "start")
        try:
            yield f"postgresql+psycopg://tester@/{{name}}?host={folder}"
        finally:
            run("pg_ctl", "-w", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder)
