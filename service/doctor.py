"""Is this installation sound? The checks that need neither torch nor Ray: database, clock, workers, objects, metrics.

Each says what was found and, where that is wrong, what was expected and what to do. None changes anything that stays.
`workers.doctor` has the others.
"""

from __future__ import annotations

import os
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import httpx
import sqlalchemy as sa
from prometheus_client.parser import text_string_to_metric_families

from service.jobs import fleet, schema, troubles
from service.jobs.database import Clock, Database, database_time
from service.jobs.documents import rfc3339
from service.jobs.errors import StoreUnavailable, UnusableDatabase
from service.jobs.objects import UnfitStore, check_writes_once, open_object_store

if TYPE_CHECKING:
    from service.jobs.objects import ObjectStore
    from service.settings import Settings

__all__ = ["MAX_SKEW_S", "Checked", "check_database", "check_metrics", "check_objects", "check_workers"]

MAX_SKEW_S: Final = 5.0
"""Between this machine's clock and the database's: leases need none, but expiry times and signatures are compared."""


@dataclass(frozen=True, slots=True)
class Checked:
    """What one check has found."""

    name: str
    status: Literal["ok", "fail", "skipped"]
    found: str
    expected: str = ""
    action: str = ""
    """What to do about it."""


def check_database(settings: Settings, clock: Clock = database_time) -> list[Checked]:
    """Does the database answer, is its schema one of ours, is its clock this machine's?"""
    try:
        url = sa.make_url(settings.database_url)
    except sa.exc.ArgumentError:
        return [
            _no_database("a URL that cannot be read", "sqlite:///FILE or postgresql+psycopg://USER@HOST/NAME")
        ]
    where = url.render_as_string(hide_password=True)
    if (new := _missing_file(url)) is not None:
        return [_new_sqlite(new)]
    try:
        database = Database(settings.database_url, clock)
    except (ValueError, StoreUnavailable) as error:
        return [_no_database(f"{where}: {error}", "a database that can be opened")]
    try:
        before = time.time()
        server, revision, now = database.look()
        skew_s = max(before - now, now - time.time(), 0.0)
    except UnusableDatabase as error:
        return [Checked("database", "fail", str(error), f"schema {schema.head()} or older", "see above")]
    except StoreUnavailable as error:
        return [_no_database(f"{where}: {error}", "an answer within 5 s")]
    finally:
        database.close()
    current = f"schema {revision}" if revision == schema.head() else _to_come(revision)
    return [Checked("database", "ok", f"{server} at {where}, {current}"), _clock(skew_s)]


def _no_database(found: str, expected: str) -> Checked:
    action = "Start it, let this machine reach it, or correct DREAMSERVE_DATABASE_URL."
    return Checked("database", "fail", found, expected, action)


def _to_come(revision: str | None) -> str:
    have = "empty" if revision is None else f"schema {revision}"
    return f"{have}; the service brings it to {schema.head()} when it starts"


def _missing_file(url: sa.URL) -> Path | None:
    """Name the SQLite file that a look at the database would make."""
    is_missing = url.get_backend_name() == "sqlite" and url.database and not Path(url.database).exists()
    return Path(str(url.database)) if is_missing else None


def _new_sqlite(file: Path) -> Checked:
    folder = next(one for one in file.absolute().parents if one.exists())
    if folder.is_dir() and os.access(folder, os.W_OK):
        return Checked("database", "ok", f"no SQLite file {file} yet; the service makes it when it starts")
    action = "Make the folder writable, or name another --data-dir."
    return Checked(
        "database", "fail", f"no {file}, and {folder} cannot be written", "a writable folder", action
    )


def _clock(skew_s: float) -> Checked:
    found = f"this machine's clock and the database's differ by {skew_s:.1f} s"
    if skew_s <= MAX_SKEW_S:
        return Checked("clock", "ok", found)
    return Checked(
        "clock", "fail", found, f"at most {MAX_SKEW_S:.0f} s", "Let both machines set theirs by NTP."
    )


def check_workers(settings: Settings) -> list[Checked]:
    """What keeps workers from starting, as they and the pool have told; nothing where there are no tables yet."""
    try:
        if _missing_file(sa.make_url(settings.database_url)) is not None:
            return []
        database = Database(settings.database_url)
    except (sa.exc.ArgumentError, ValueError, StoreUnavailable):
        return []  # `check_database` has said so
    try:
        if database.look()[1] != schema.head():
            return []
        with database.reading() as tx:
            found, known = troubles.told(tx), fleet.known_capabilities(tx)
    except StoreUnavailable:
        return []  # `check_database` has said so
    finally:
        database.close()
    if not found:
        live = 0 if known is None else known.num_live
        return [Checked("workers", "ok", f"{live} live worker(s), and none has failed to start")]
    return [
        Checked(
            "workers",
            "fail",
            f"{one.source}, at {rfc3339(one.at)}: {one.detail}",
            "workers that start",
            "See above; this is forgotten as soon as a worker has started.",
        )
        for one in found
    ]


def check_objects(settings: Settings) -> Checked:
    """Does the object store keep, give back, and never replace? Leaves nothing behind."""
    url = settings.objects_url
    try:
        objects = open_object_store(url)
        objects.check()
        _put_and_get(objects)
        check_writes_once(objects, url)
    except StoreUnavailable as error:
        action = "Start it, let this machine reach it, or correct DREAMSERVE_OBJECTS_URL and AWS_*."
        return Checked("objects", "fail", f"{url}: {error}", "put, get, delete and list", action)
    except (UnfitStore, ValueError) as error:
        action = "Choose another store, and name it in DREAMSERVE_OBJECTS_URL."
        return Checked("objects", "fail", str(error), "a store that writes once", action)
    return Checked("objects", "ok", f"{url}: put, get and conditional put")


def _put_and_get(objects: ObjectStore) -> None:
    key, content = f"self-test/{uuid.uuid4().hex}", os.urandom(64)
    try:
        objects.put(key, content)
        if objects.get(key) != content:
            raise UnfitStore("the object store gave back other bytes than were put")
    finally:
        objects.delete(key)


def check_metrics(url: str, *, required: bool) -> Checked:
    """Does a service tell its metrics at `url`? Unless `required`, none need be there."""
    expected = f"the service's metrics at {url}/metrics"
    try:
        answer = httpx.get(f"{url}/metrics", timeout=10)
    except (httpx.TransportError, httpx.InvalidURL) as error:
        if not required:
            return Checked("metrics", "skipped", f"no service answers at {url}; name one with --url")
        return Checked("metrics", "fail", f"{url}: {error}", expected, "Start the service, or correct --url.")
    if answer.status_code != 200:
        action = f"Look at {url}/readyz, which names what is down."
        return Checked("metrics", "fail", f"HTTP {answer.status_code}", expected, action)
    try:
        found = {one.name: one for one in text_string_to_metric_families(answer.text)}
        workers = sum(sample.value for sample in found["dreamserve_workers"].samples)
    except (ValueError, KeyError):
        action = "Is it a Dreamserve that answers there? Correct --url."
        return Checked("metrics", "fail", f"{url}/metrics is something else", expected, action)
    return Checked("metrics", "ok", f"{len(found)} families at {url}/metrics, {workers:.0f} live worker(s)")
