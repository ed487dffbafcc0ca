"""How fast jobs are claimed and read while many are queued, on SQLite: `python -m tests.bench.queue`."""

from __future__ import annotations

import itertools
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from service.jobs import tables
from service.jobs.store import JobStore
from tests.unit.service.jobs.job_samples import spec_of

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["measure"]

NUM_CLAIMS = 200
NUM_READS = 200
_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def measure(depths: tuple[int, ...] = (1_000, 10_000), num_owners: int = 10) -> dict[str, float]:
    """Measure claims a second, and the slowest of 100 readings, at each number of queued jobs."""
    results = {}
    for depth in depths:
        with tempfile.TemporaryDirectory() as folder:
            store = JobStore(f"sqlite:///{Path(folder) / 'jobs.sqlite3'}")
            ids = fill(store, depth, num_owners)
            results[f"get_p99_ms_{depth}"] = _p99_ms(store.get, ids)
            results[f"list_p99_ms_{depth}"] = _p99_ms(partial(_list, store), ids)
            began = time.perf_counter()
            for number in range(NUM_CLAIMS):
                assert store.claim(f"worker-{number % 8}", lease_s=3_600) is not None
            results[f"claims_per_s_{depth}"] = NUM_CLAIMS / (time.perf_counter() - began)
            store.close()
    return results


def _list(store: JobStore, _: str) -> object:
    return store.list_jobs(limit=50)


def fill(store: JobStore, number: int, num_owners: int) -> list[str]:
    """Queue many jobs at once, by copying the row of one; their ids."""
    document, _ = store.submit(spec_of(limits={"deadline_s": 86_400}))
    with store.database.writing() as tx:
        row = tx.execute(sa.select(tables.jobs)).one()._asdict()
        copies = [_copy(row, order, order % num_owners) for order in range(1, number)]
        tx.execute(sa.insert(tables.jobs), copies)
    return [document["id"], *(copy["id"] for copy in copies)]


def _copy(row: dict[str, Any], order: int, owner: int) -> dict[str, Any]:
    digits = "".join(_ALPHABET[order >> shift & 31] for shift in (15, 10, 5, 0))
    later = {"turn_at": row["turn_at"] + order * 1e-3} if "turn_at" in row else {}
    return row | later | {"id": row["id"][:-4] + digits, "owner": f"owner-{owner}"}


def _p99_ms(read: Callable[[str], object], ids: list[str]) -> float:
    seconds = []
    for one in itertools.islice(itertools.cycle(ids[:: max(1, len(ids) // 37)]), NUM_READS):
        began = time.perf_counter()
        read(one)
        seconds.append(time.perf_counter() - began)
    return sorted(seconds)[int(0.99 * len(seconds))] * 1e3


if __name__ == "__main__":
    for name, value in measure().items():
        print(f"{name}: {value:.2f}")
