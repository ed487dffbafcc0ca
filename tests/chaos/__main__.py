"""`make chaos N=… SEED=…`: do random failures, from outside, ever lose, double or mix up a job?

The real frontend and real workers, on PostgreSQL and SeaweedFS, reached through proxies that fail; only the prior is
the analytic one. Each kind of fault happens ten times or more. The last line is the verdict; exit 1 if it is bad.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import sqlalchemy as sa

from service.jobs.keys import KeyStore, NewKey
from service.jobs.states import JobState
from service.jobs.store import JobStore
from service.jobs.tallies import Total
from tests.chaos.crew import Crew
from tests.chaos.faults import Faults
from tests.chaos.proxy import FaultProxy
from tests.chaos.verdict import Verdict, all_ended
from tests.chaos.workload import Workload
from tests.cluster.seaweed import BUCKET, running_seaweed
from tests.unit.service.jobs.postgres import find_programs, running_server

if TYPE_CHECKING:
    from collections.abc import Callable

LEASE_S = 3.0
NUM_WORKERS = 3
OWNERS = ("ada", "grace")
JOBS_PER_S = 1.0
HEAL_S = 600.0
"""How long the end of all jobs may take once nothing fails any more."""


def main() -> int:
    """Run, judge, and tell."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("jobs", nargs="?", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="chaos-")))
        return run(stack, folder, arguments.jobs, arguments.seed)


def run(stack: ExitStack, folder: Path, num_jobs: int, seed: int) -> int:
    """Start everything, do harm, wait for the end, judge."""
    programs = find_programs()
    if programs is None:
        sys.exit("PostgreSQL's programs are not installed: install your system's package `postgresql`")
    url = stack.enter_context(running_server(programs)).format(name="postgres")
    (folder / "weed").mkdir()
    s3 = stack.enter_context(running_seaweed(folder / "weed"))
    database, objects = _proxies(stack, url, s3)
    store = JobStore(url)
    stack.callback(store.close)
    keys = {owner: KeyStore(store.database).create(NewKey(name=owner))[1] for owner in OWNERS}
    crew = Crew(folder, _environment(folder, database, objects, s3), NUM_WORKERS)
    stack.callback(crew.stop)
    http = stack.enter_context(httpx.Client(base_url=crew.url, timeout=30))
    _wait_until(lambda: _is_up(http), 60)

    workload = Workload(
        crew.url, keys, num_jobs, JOBS_PER_S, lambda: store.snapshot().jobs[JobState.QUEUED], seed
    )
    faults = Faults(crew, database, objects, LEASE_S, seed)
    started = time.monotonic()
    workload.start()
    faults.start()
    workload.join()
    faults.may_stop.set()
    faults.join()
    _wait_until(lambda: _is_up(http), 60)
    healed = _wait_until(lambda: all_ended(store), HEAL_S)
    took_s = time.monotonic() - started

    verdict = Verdict(http, keys, store)
    verdict.wrongs += workload.errors
    if not healed:
        verdict.wrongs.append(f"jobs are still under way {HEAL_S:g} s after the last fault")
    verdict.judge(workload.intentions)
    for kind, count in faults.counts.items():
        print(f"{count:5d} × {kind}")
    print(f"{workload.troubles:5d} requests were repeated; {_seen(store)}; {took_s:.0f} s")
    for wrong in verdict.wrongs[:50]:
        print(f"WRONG: {wrong}")
    if verdict.wrongs:
        print((folder / "crew.log").read_text()[-4000:], file=sys.stderr)
    outcomes = ", ".join(f"{count} {status}" for status, count in sorted(verdict.statuses.items()))
    word = f"{len(verdict.wrongs)} promises broken" if verdict.wrongs else "no job lost, doubled or mixed up"
    print(f"chaos: {word}; {num_jobs} jobs ({outcomes}), {sum(faults.counts.values())} faults, seed {seed}")
    return int(bool(verdict.wrongs))


def _proxies(stack: ExitStack, url: str, s3: dict[str, str]) -> tuple[FaultProxy, FaultProxy]:
    socket_folder = sa.make_url(url).query["host"]
    s3_port = int(s3["AWS_ENDPOINT_URL_S3"].rpartition(":")[2])
    proxies = (
        FaultProxy(lambda: asyncio.open_unix_connection(f"{socket_folder}/.s.PGSQL.5432")),
        FaultProxy(lambda: asyncio.open_connection("127.0.0.1", s3_port)),
    )
    for proxy in proxies:
        stack.callback(proxy.close)
    return proxies


def _environment(
    folder: Path, database: FaultProxy, objects: FaultProxy, s3: dict[str, str]
) -> dict[str, str]:
    return s3 | {
        "DREAMSERVE_DATABASE_URL": f"postgresql+psycopg://tester@127.0.0.1:{database.port}/postgres",
        "DREAMSERVE_OBJECTS_URL": f"s3://{BUCKET}/chaos",
        "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{objects.port}",
        "DREAMSERVE_DATA_DIR": str(folder / "data"),
        "DREAMSERVE_AUTH": "on",
        # The history checker asks as fast as it gets answers.
        "DREAMSERVE_RATE_LIMIT_PER_S": "0",
        "DREAMSERVE_LEASE_S": str(LEASE_S),
        "DREAMSERVE_REPORT_INTERVAL_S": "0.2",
        "DREAMSERVE_CHECKPOINT_INTERVAL_S": "0.3",
        "DREAMSERVE_TORCH_THREADS": "1",
        "OMP_NUM_THREADS": "1",
    }


def _seen(store: JobStore) -> str:
    """What the service itself has noticed."""
    totals = {tally.name: tally.value for tally in store.snapshot().tallies}
    expired, fenced = totals.get(Total.LEASES_EXPIRED, 0), totals.get(Total.FENCED_WRITES, 0)
    return f"{expired:g} leases ran out, {fenced:g} late writes were refused"


def _is_up(http: httpx.Client) -> bool:
    try:
        return http.get("/readyz").status_code == 200
    except httpx.HTTPError:
        return False


def _wait_until(done: Callable[[], bool], timeout_s: float) -> bool:
    until = time.monotonic() + timeout_s
    while not done():
        if time.monotonic() > until:
            return False
        time.sleep(0.5)
    return True


if __name__ == "__main__":
    sys.exit(main())
