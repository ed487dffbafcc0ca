"""Was every promise kept? What the clients were told, against the rows, the events, the objects and the counters."""

from __future__ import annotations

import collections
import hashlib
import json
import struct
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from prometheus_client.parser import text_string_to_metric_families

from service.jobs import tables
from service.jobs.states import FINAL
from tests.chaos.workload import seed_of

if TYPE_CHECKING:
    import httpx

    from service.jobs.store import JobStore
    from tests.chaos.workload import Intention

__all__ = ["Verdict"]

ENDS = {"job.succeeded", "job.failed", "job.canceled"}


class Verdict:
    """Collects what is wrong, one sentence each."""

    def __init__(self, http: httpx.Client, keys: dict[str, str], store: JobStore) -> None:
        """`store` goes to the database directly, `http` to the frontend."""
        self._http, self._keys, self._store = http, keys, store
        self.wrongs: list[str] = []
        self.statuses: collections.Counter[str] = collections.Counter()
        self._outcomes: collections.Counter[str] = collections.Counter()
        """As the metrics name them: a failure by its code."""

    def judge(self, intentions: list[Intention]) -> None:
        """Look at every job, then at what they add up to."""
        for one in intentions:
            self._check(one)
        self._check_rows(intentions)
        self._check_counters()

    def _wrong(self, what: str) -> None:
        self.wrongs.append(what)

    def _check(self, one: Intention) -> None:
        if len(one.answers) != 1:
            self._wrong(f"intention {one.number} has {len(one.answers)} jobs: {sorted(one.answers)}")
            return
        (job_id,) = one.answers
        answer = self._get(one.owner, f"/v1/jobs/{job_id}")
        if answer.status_code != 200:
            self._wrong(f"{job_id} was accepted, and is lost: {answer.status_code}")
            return
        job = answer.json()
        self.statuses[job["status"]] += 1
        self._outcomes[job["error"]["code"] if job["error"] else job["status"]] += 1
        if job["status"] not in ({"succeeded", "canceled"} if one.canceled else {"succeeded"}):
            self._wrong(f"{job_id} ended as {job['status']}: {job['error']}")
        if job["spec"]["prompt"] != one.prompt:
            self._wrong(f"{job_id} has another prompt: {job['spec']['prompt']!r}")
        self._check_events(job)
        if job["status"] == "succeeded":
            self._check_glb(one, job)
        others = [owner for owner in self._keys if owner != one.owner]
        if any(self._get(owner, f"/v1/jobs/{job_id}").status_code != 404 for owner in others):
            self._wrong(f"{job_id} of {one.owner} can be seen by others")

    def _check_events(self, job: dict[str, Any]) -> None:
        events = self._store.events(job["id"], limit=10_000)
        numbers = [event["id"] for event in events]
        if numbers != list(range(1, len(numbers) + 1)):
            self._wrong(f"{job['id']}: the events are not gapless: {numbers}")
        ends = [event["type"] for event in events if event["type"] in ENDS]
        if ends != [f"job.{job['status']}"] or events[-1]["type"] not in ENDS:
            self._wrong(f"{job['id']}: {job['status']}, but its events end with {ends}")
        attempts = [attempt["number"] for attempt in job["attempts"]]
        if attempts != list(range(1, len(attempts) + 1)):
            self._wrong(f"{job['id']}: attempts {attempts}")
        if [attempt["number"] for attempt in job["attempts"] if attempt["ended_at"] is None]:
            self._wrong(f"{job['id']}: an attempt never ended")

    def _check_glb(self, one: Intention, job: dict[str, Any]) -> None:
        glbs = [artifact for artifact in job["result"]["artifacts"] if artifact["kind"] == "glb"]
        if len(glbs) != 1:
            self._wrong(f"{job['id']} has {len(glbs)} GLBs")
            return
        answer = self._get(one.owner, f"/v1/artifacts/{glbs[0]['id']}/content")
        if hashlib.sha256(answer.content).hexdigest() != glbs[0]["sha256"]:
            self._wrong(f"{job['id']}: the GLB is not what its row says ({answer.status_code})")
        elif (seed := _origin(answer.content)["seed"]) != seed_of(one.prompt):
            self._wrong(f"{job['id']}: the GLB was made for another prompt (seed {seed})")

    def _check_rows(self, intentions: list[Intention]) -> None:
        """There are exactly the jobs that clients know, each with its owner."""
        known = {job_id: one.owner for one in intentions for job_id in one.answers}
        with self._store.database.reading() as tx:
            rows = dict(tx.execute(sa.select(tables.jobs.c.id, tables.jobs.c.owner)).tuples().all())
        if rows != known:
            self._wrong(
                f"jobs that nobody knows, or of wrong owners: {sorted(set(rows.items()) ^ set(known.items()))}"
            )

    def _check_counters(self) -> None:
        """What /metrics counts is what the rows say."""
        text = self._http.get("/metrics").raise_for_status().text
        counted: collections.Counter[str] = collections.Counter()
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name in ("dreamserve_jobs_submitted_total", "dreamserve_jobs_finished_total"):
                    counted[sample.labels.get("outcome", "submitted")] += int(sample.value)
        expected = {"submitted": sum(self._outcomes.values()), **self._outcomes}
        if {name: count for name, count in counted.items() if count} != expected:
            self._wrong(f"/metrics counts {dict(counted)}, the jobs are {expected}")

    def _get(self, owner: str, path: str) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self._keys[owner]}"}
        return self._http.get(path, headers=headers, follow_redirects=True)


def all_ended(store: JobStore) -> bool:
    """Whether no job is under way any more."""
    with store.database.reading() as tx:
        states = tx.execute(sa.select(tables.jobs.c.state).distinct()).scalars().all()
    return set(states) <= {state.value for state in FINAL}


def _origin(glb: bytes) -> dict[str, Any]:
    """Read what a GLB says of its making."""
    (length,) = struct.unpack_from("<I", glb, 12)
    origin: dict[str, Any] = json.loads(glb[20 : 20 + length])["asset"]["extras"]["dreamserve"]
    return origin
