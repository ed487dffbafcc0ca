"""Claiming, looking and listing while there are many jobs: `python -m tests.bench.queue` (`FULL=1`: a million).

On SQLite, and on PostgreSQL where it is installed, one database holds a thousand jobs and another a hundred thousand:
half of them queued and half succeeded, of ten owners. Reads go to them in turns, so that what else the machine does
meets both alike. Promised: `get_p99_ratio_…` and `list_p99_ratio_…`, the large one's ÷ the small one's, are at most
1.5. `claims_per_s_…`: of four claimers at the same time, in threads of one process.
"""

from __future__ import annotations

import os
import random
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from ulid import ULID

from service.jobs import tables
from service.jobs.states import JobState
from service.jobs.store import JobStore
from tests.unit.service.jobs.job_samples import ARTIFACTS, claimed, result_of, spec_of
from tests.unit.service.jobs.postgres import find_programs, running_server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["measure"]

SMALL, LARGE = 1_000, 1_000_000 if os.environ.get("FULL") == "1" else 100_000
NUM_OWNERS, NUM_CLAIMERS, NUM_CLAIMS, NUM_READS = 10, 4, 200, 1_500
CHUNK = 1_000
AGE_S = 1.0
"""Between one job and the next: so their ids and turns are in order."""


def measure() -> dict[str, float]:
    """Measure every database that this machine has."""
    results: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        urls = {size: f"sqlite:///{Path(folder) / f'{size}.sqlite3'}" for size in (SMALL, LARGE)}
        results |= _measured("sqlite", urls)
    if (programs := find_programs()) is not None:
        with running_server(programs, durable=True) as template:
            results |= _measured("postgresql", dict(_created(template)))
    return results


def _created(template: str) -> Iterator[tuple[int, str]]:
    admin = sa.create_engine(template.format(name="postgres"), isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        for size in (SMALL, LARGE):
            connection.execute(sa.text(f"CREATE DATABASE jobs{size}"))
            yield size, template.format(name=f"jobs{size}")
    admin.dispose()


def _measured(name: str, urls: dict[int, str]) -> dict[str, float]:
    results = {}
    with _filled(urls) as stores:
        for what, read in (("get", _get), ("list", _list)):
            p99_ms = _p99_ms({size: read(store) for size, store in stores.items()})
            results |= {f"{what}_p99_ms_{name}_{size}": value for size, value in p99_ms.items()}
            results[f"{what}_p99_ratio_{name}"] = p99_ms[LARGE] / p99_ms[SMALL]
        for size, store in stores.items():
            results[f"claims_per_s_{name}_{size}"] = _claims_per_s(store)
    return results


@contextmanager
def _filled(urls: dict[int, str]) -> Iterator[dict[int, JobStore]]:
    stores = {size: JobStore(url) for size, url in urls.items()}
    for size, store in stores.items():
        fill(store, size)
    yield stores
    for store in stores.values():
        store.close()


def fill(store: JobStore, number: int) -> None:
    """Make many jobs at once, by copying all rows of a queued one and of one that has succeeded."""
    spec = spec_of(limits={"deadline_s": 604_800})
    store.submit(spec)
    store.finish(claimed(store), result_of(), ARTIFACTS)
    store.submit(spec)
    with store.database.writing() as tx:
        templates = [_rows_of(tx.connection, row) for row in tx.connection.execute(sa.select(tables.jobs))]
        begun_at = tx.now
    for first in range(0, number - len(templates), CHUNK):
        orders = range(first, min(first + CHUNK, number - len(templates)))
        with store.database.writing() as tx:
            for table in (tables.jobs, tables.attempts, tables.artifacts):
                rows = [row for order in orders for row in _copied(templates, table, order, begun_at)]
                tx.execute(sa.insert(table), rows)
    if store.database.announces:  # PostgreSQL, whose autovacuum does this within a minute
        with closing(store.database.lend_connection()) as connection:
            connection.execute("VACUUM ANALYZE")


Rows = dict[sa.Table, list[dict[str, Any]]]


def _rows_of(connection: sa.Connection, job: sa.Row[Any]) -> Rows:
    children = {
        table: [row._asdict() for row in connection.execute(sa.select(table).where(table.c.job_id == job.id))]
        for table in (tables.attempts, tables.artifacts)
    }
    return {tables.jobs: [job._asdict()], **children}


def _copied(templates: list[Rows], table: sa.Table, order: int, begun_at: float) -> list[dict[str, Any]]:
    at = begun_at - (order + 1) * AGE_S
    # The same digits for the job's id in all tables, whatever the table: they follow from the order.
    job_id = f"job_{ULID.from_int(int(at * 1_000) << 80 | order)}"
    copies = []
    for number, row in enumerate(templates[order % len(templates)][table]):
        if table is tables.jobs:
            owner = f"owner-{random.Random(order).randrange(NUM_OWNERS)}"
            later = {"id": job_id, "owner": owner, "turn_at": at, "created_at": at}
            later |= {} if row["ended_at"] is None else {"ended_at": at + AGE_S / 2}
        else:
            later = {"job_id": job_id}
            later |= {"id": f"art_{ULID.from_int(order * 8 + number)}"} if "id" in row else {}
        copies.append(row | later)
    return copies


def _get(store: JobStore) -> Callable[[random.Random], object]:
    """Look at any job."""
    with store.database.reading() as tx:
        jobs = tables.jobs.c
        rows = tx.execute(sa.select(jobs.id, jobs.owner).where(jobs.owner != tables.LOCAL_OWNER)).all()

    def read(chance: random.Random) -> object:
        row = chance.choice(rows)
        return store.get(row.id, row.owner)

    return read


def _list(store: JobStore) -> Callable[[random.Random], object]:
    """List a page of any owner, with any filter, from the newest job or from anywhere."""
    with store.database.reading() as tx:
        cursors = list(tx.execute(sa.select(tables.jobs.c.id)).scalars())
    filters: list[dict[str, Any]] = [
        {},
        {"status": JobState.QUEUED},
        {"status": JobState.SUCCEEDED},
        {"status": JobState.FAILED},
        {"method": "sds"},
        {"method": "psd"},
        {"batch_id": "batch_01ARZ3NDEKTSV4RRFFQ69G5FAV"},
    ]

    def read(chance: random.Random) -> object:
        cursor = chance.choice([None, chance.choice(cursors)])
        owner = f"owner-{chance.randrange(NUM_OWNERS)}"
        return store.list_jobs(owner=owner, cursor=cursor, **chance.choice(filters))

    return read


def _p99_ms(reads: dict[int, Callable[[random.Random], object]]) -> dict[int, float]:
    """Time reads, in turns: the slowest of a hundred."""
    seconds: dict[int, list[float]] = {size: [] for size in reads}
    chance = random.Random(0)
    for turn in range(NUM_READS):
        for size, read in reads.items():
            began = time.perf_counter()
            read(chance)
            if turn >= NUM_READS // 10:  # the first ones warm up
                seconds[size].append(time.perf_counter() - began)
    return {size: sorted(all_)[int(0.99 * len(all_))] * 1e3 for size, all_ in seconds.items()}


def _claims_per_s(store: JobStore) -> float:
    def claim(number: int) -> None:
        for _ in range(NUM_CLAIMS // NUM_CLAIMERS):
            claimed(store, f"worker-{number}", lease_s=3_600)

    began = time.perf_counter()
    with ThreadPoolExecutor(NUM_CLAIMERS) as claimers:
        list(claimers.map(claim, range(NUM_CLAIMERS)))
    return NUM_CLAIMS / (time.perf_counter() - began)


if __name__ == "__main__":
    for name, value in measure().items():
        print(f"{name}: {value:.2f}")
