"""JobStore: the truth about jobs, on SQLite or PostgreSQL, for the frontend and for the workers."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from service.jobs import batch_expansion, choosing, events, fleet, leasing, reading, tables, tallies, troubles
from service.jobs.database import Clock, Database, Transaction, database_time
from service.jobs.errors import StoreUnavailable
from service.jobs.leasing import Report, held
from service.jobs.states import FailureCode, JobState, StaleLease
from service.jobs.submission import Submission, known_jobs, submit_all
from service.jobs.tallies import Total
from service.jobs.transitions import ask_to_end, end_attempt_in_failure, lock
from service.jobs.wakeup import Wakeup

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from service.jobs.capabilities import Capabilities
    from service.jobs.documents import Document
    from service.jobs.events import Event
    from service.jobs.fleet import Known, Snapshot
    from service.jobs.series import ScorePoint
    from service.jobs.spec import JobSpec
    from service.jobs.states import Checkpoint, Lease, LeaseAnswer, NewArtifact, Stage
    from service.jobs.submission import Answer
    from service.jobs.troubles import Source, Trouble

__all__ = ["JobStore"]

_USES = frozenset({"optimizing", "loading", "exporting", "idle", "redone"})


class JobStore:
    """The truth about jobs.

    Every method is one transaction, may be called from any thread or process, and raises `StoreUnavailable`
    when the database does not answer. Repeating a call whose answer got lost does no harm.
    """

    def __init__(
        self,
        url: str,
        *,
        retention_s: float = 30 * 86_400,
        max_queued: int | None = None,
        clock: Clock = database_time,
    ) -> None:
        """Connect to `url` (SQLAlchemy) and create the tables that are missing."""
        self.database = Database(url, clock)
        self._wakeup = Wakeup(self.database)
        self._retention_s = retention_s
        self._max_queued = max_queued

    def close(self) -> None:
        """Close all connections."""
        self._wakeup.close()
        self.database.close()

    # ---- for the frontend

    def submit(
        self,
        spec: JobSpec,
        *,
        owner: str = tables.LOCAL_OWNER,
        idempotency_key: str | None = None,
        body_hash: str | None = None,
        warnings: Sequence[Mapping[str, str]] = (),
        retry_of: str | None = None,
    ) -> tuple[Document, bool]:
        """Queue a job: its document, and whether it is new (False: this owner's key was seen with this body).

        Raises `IdempotencyKeyReused` (same key, other `body_hash`), `QueueFull` and `QuotaExceeded`.
        """
        assert (idempotency_key is None) == (body_hash is None), "a key comes with the hash of its body"
        answer = self._submit_alone(Submission(spec, owner, idempotency_key, body_hash, warnings, retry_of))
        if isinstance(answer, Exception):
            raise answer
        return answer

    def submit_together(self, wanted: Sequence[Submission]) -> list[Answer | Exception]:
        """Queue jobs in one transaction, in their order; the answer to each, or what `submit` would have raised.

        Raises `StoreUnavailable` when it is not known whether any is queued; they may all be asked again.
        """
        if not wanted:
            return []
        try:
            return list(self._submit(wanted))
        except StoreUnavailable:
            raise
        except Exception:
            # One of them is to blame, and must not spoil the others: now each has a transaction of its own.
            return [self._submit_or_explain(one) for one in wanted]

    def _submit(self, wanted: Sequence[Submission]) -> list[Answer]:
        with self.database.writing() as tx:
            return submit_all(tx, wanted, self._max_queued)

    def _submit_alone(self, one: Submission) -> Answer:
        try:
            (answer,) = self._submit([one])
        except IntegrityError:
            # Another process has used its key since we looked (possible on PostgreSQL only): now it is known.
            (answer,) = self._submit([one])
        return answer

    def _submit_or_explain(self, one: Submission) -> Answer | Exception:
        try:
            return self._submit_alone(one)
        except Exception as error:
            return error

    def submitted_before(
        self, idempotency_key: str, body_hash: str, owner: str = tables.LOCAL_OWNER
    ) -> Document | None:
        """Find the job that this owner's key has made; raises `IdempotencyKeyReused` for another body."""
        with self.database.reading() as tx:
            known = known_jobs(tx, [(owner, idempotency_key)]).get((owner, idempotency_key))
            return None if known is None else reading.get(tx, known.asked_again(body_hash))

    def get(self, job_id: str, owner: str | None = None) -> Document | None:
        """Tell the whole truth about one job; None when it never existed, or is another's than `owner`."""
        with self.database.reading() as tx:
            return reading.get(tx, job_id, owner)

    def list_jobs(
        self,
        *,
        owner: str | None = None,
        status: JobState | None = None,
        batch_id: str | None = None,
        method: str | None = None,
        metadata: Mapping[str, str] | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> tuple[list[Document], str | None]:
        """List jobs, newest first, and the cursor of the next page (None at the end)."""
        with self.database.reading() as tx:
            return reading.list_jobs(tx, owner, status, batch_id, method, metadata or {}, limit, cursor)

    def cancel(self, job_id: str, owner: str | None = None, *, keep_partial: bool = False) -> Document | None:
        """Cancel a job: at once when queued, by asking its worker when running; nothing happens when it ended.

        With `keep_partial` a running job's scene is exported as it is; the newest call decides. Returns the job's
        document, None when it never existed, or is another's than `owner`.
        """
        with self.database.writing() as tx:
            row = lock(tx, job_id, owner)
            if row is not None:
                ask_to_end(tx, row, keep_partial=keep_partial)
            return reading.get(tx, job_id, owner)

    def keep(self, job_id: str, candidates: Sequence[int], owner: str | None = None) -> Document | None:
        """Let a person choose which candidates of a job that has succeeded are kept; see `choosing.keep`.

        Returns the job's document, None when it never existed, or is another's than `owner`.
        """
        with self.database.writing() as tx:
            row = lock(tx, job_id, owner)
            if row is not None:
                choosing.keep(tx, row, candidates)
            return reading.get(tx, job_id, owner)

    def events(
        self, job_id: str, *, owner: str | None = None, after: int = 0, limit: int = 1_000
    ) -> list[Event]:
        """List a job's events with `id` > `after`, in order; none of another's than `owner`."""
        with self.database.reading() as tx:
            return events.read(tx, job_id, after, limit) if reading.exists(tx, job_id, owner) else []

    def artifacts(self, job_id: str, owner: str | None = None) -> list[Document]:
        """List a job's artifacts; none of another's than `owner`."""
        with self.database.reading() as tx:
            return reading.artifacts(tx, job_id, owner)

    def artifact(self, artifact_id: str, owner: str | None = None) -> tuple[Document, str] | None:
        """Describe one artifact and name its object; None when it never existed, or is another's than `owner`."""
        with self.database.reading() as tx:
            return reading.artifact(tx, artifact_id, owner)

    def capabilities(self) -> Capabilities | None:
        """Unite what live workers can run, or else what the last ones could; None when there never was one."""
        known = self.known_capabilities()
        return None if known is None else known.capabilities

    def known_capabilities(self) -> Known | None:
        """Tell `capabilities` and how well they are known."""
        with self.database.reading() as tx:
            return fleet.known_capabilities(tx)

    def troubles(self) -> list[Trouble]:
        """Tell what keeps workers from starting."""
        with self.database.reading() as tx:
            return troubles.known(tx)

    def ping(self) -> None:
        """Raise `StoreUnavailable` unless the database answers (for /readyz)."""
        with self.database.reading() as tx:
            tx.execute(sa.select(tables.jobs.c.id).limit(1))

    def snapshot(self) -> Snapshot:
        """Read everything that a scrape of /metrics tells."""
        with self.database.reading() as tx:
            return fleet.snapshot(tx)

    # ---- for the workers: every write is fenced, and raises `StaleLease` when the job is no longer theirs

    def claim(self, worker: str, lease_s: float = 60.0, can: Capabilities | None = None) -> Lease | None:
        """Take the next job that may run (see `shares.py`), after a `sweep`; None when there is none.

        `can` is what the worker can run: a job that it cannot and another live worker can is left to that one. Where
        no job waits, batches are asked for more of theirs.
        """
        with self.database.writing() as tx:
            lease = leasing.claim(tx, worker, lease_s, can)
            if lease is None and batch_expansion.advance(tx, self._max_queued):
                lease = leasing.claim(tx, worker, lease_s, can)
            return lease

    def wait_for_work(self, timeout_s: float) -> None:
        """Return when a job may have been queued, after `timeout_s` at the latest; for one thread at a time."""
        self._wakeup.wait(timeout_s)

    def report(
        self,
        lease: Lease,
        *,
        stage: Stage,
        step: int,
        steps_total: int,
        steps_per_s: float | None = None,
        worker_s: float | None = None,
        checkpoint: Checkpoint | None = None,
        resumed_from_step: int | None = None,
        preview: Mapping[str, Any] | None = None,
        scores: Sequence[ScorePoint] = (),
        warnings: Sequence[Mapping[str, str]] = (),
    ) -> LeaseAnswer:
        """Renew the lease and record progress.

        `worker_s`: seconds this attempt has held its worker so far. `checkpoint`: a new one, already in the
        object store. `resumed_from_step`: told once, when it is not the newest checkpoint's (a torn one, 0 for
        none). `preview`, `scores` (of checkpoints, each once) and `warnings` (`{"code", "detail"}`) become events.
        """
        told = Report(
            stage,
            step,
            steps_total,
            steps_per_s,
            worker_s,
            checkpoint,
            resumed_from_step,
            preview,
            scores,
            warnings,
        )
        with self._fenced() as tx:
            return leasing.report(tx, lease, told)

    def finish(
        self,
        lease: Lease,
        result: Document,
        artifacts: Sequence[NewArtifact],
        scores: Sequence[ScorePoint] = (),
    ) -> tuple[str, ...]:
        """Publish the result: the job has succeeded.

        `result` has `candidates, mesh, provenance, licenses`; the artifacts must already be in the object
        store, and verified; `scores` are those that no report has told. Returns the keys of checkpoints to delete.
        """
        return self._publish(lease, JobState.SUCCEEDED, result, artifacts, scores)

    def fail(self, lease: Lease, code: FailureCode, detail: str) -> tuple[str, ...]:
        """End the attempt: queued again when `code` is retryable and attempts are left, else failed.

        Returns the keys of checkpoints to delete.
        """
        with self._fenced() as tx:
            return end_attempt_in_failure(tx, held(tx, lease), code, detail)

    def cancel_confirmed(
        self,
        lease: Lease,
        result: Document | None = None,
        artifacts: Sequence[NewArtifact] = (),
        scores: Sequence[ScorePoint] = (),
    ) -> tuple[str, ...]:
        """End a job whose cancel its worker has carried out, with the partial result that was to be kept, if any.

        A job that nobody has canceled is given back instead, as by `release`.
        Returns the keys of checkpoints to delete.
        """
        return self._publish(lease, JobState.CANCELED, result, artifacts, scores)

    def release(self, lease: Lease) -> None:
        """Give an unfinished job back, without counting a failure (drain, preemption)."""
        with self._fenced() as tx:
            end_attempt_in_failure(tx, held(tx, lease), FailureCode.PREEMPTED, "the worker gave the job back")

    def _publish(
        self,
        lease: Lease,
        to: JobState,
        result: Document | None,
        artifacts: Sequence[NewArtifact],
        scores: Sequence[ScorePoint] = (),
    ) -> tuple[str, ...]:
        with self._fenced() as tx:
            row = lock(tx, lease.job_id)
            if row is not None and row.attempt == lease.attempt and row.state == to:
                return ()  # the same call again, after an answer that got lost: only this attempt can have done it
            row = held(tx, lease)
            if to is JobState.CANCELED and not row.cancel_requested:
                return end_attempt_in_failure(tx, row, FailureCode.PREEMPTED, "nobody has canceled this job")
            return leasing.publish(tx, row, to, result, artifacts, scores, self._retention_s)

    @contextmanager
    def _fenced(self) -> Iterator[Transaction]:
        """Open a writing transaction and count it when a stale lease is refused in it."""
        try:
            with self.database.writing() as tx:
                yield tx
        except StaleLease:
            with self.database.writing() as tx:
                tallies.count(tx, Total.FENCED_WRITES)
            raise

    # ---- for the pool

    def note_trouble(self, source: Source, detail: str) -> None:
        """Say to everybody what keeps workers from starting: it is forgotten when one has started."""
        with self.database.writing() as tx:
            troubles.note(tx, source, detail)

    def wanted_slots(self) -> int:
        """Count the jobs that run or could run now."""
        with self.database.reading() as tx:
            return fleet.wanted_slots(tx)

    def worker_lost(self, worker: str) -> list[str]:
        """End the leases of a dead worker at once, and forget it; the ids of its jobs."""
        with self.database.writing() as tx:
            fleet.retire(tx, worker)
            return leasing.worker_lost(tx, worker)

    def sweep(self) -> int:
        """Take back leases that ran out and end queued jobs past their deadline; how many jobs changed."""
        with self.database.writing() as tx:
            return leasing.sweep(tx)

    def heartbeat(
        self, worker: str, *, state: str = "idle", slots: int = 1, busy_slots: int = 0, ttl_s: float = 60.0
    ) -> None:
        """Say that a worker lives; `state` is `starting | idle | busy | draining`."""
        with self.database.writing() as tx:
            fleet.heartbeat(tx, worker, state, slots, busy_slots, ttl_s)

    def retire(self, worker: str) -> None:
        """Forget a worker that has ended in good order, but for what it could run."""
        with self.database.writing() as tx:
            fleet.retire(tx, worker)

    def publish_capabilities(self, worker: str, document: Capabilities, ttl_s: float = 60.0) -> None:
        """Say, for `ttl_s` seconds, what a worker can run."""
        with self.database.writing() as tx:
            fleet.publish(tx, worker, document, ttl_s)

    def add_worker_seconds(self, worker: str, seconds: Mapping[str, float]) -> None:
        """Add to the held time by use: `optimizing | loading | exporting | idle | redone`."""
        assert seconds.keys() <= _USES, f"{worker}: uses are {sorted(_USES)}, found {sorted(seconds)}"
        with self.database.writing() as tx:
            for use, amount in seconds.items():
                tallies.count(tx, Total.WORKER_SECONDS, amount, use=use)
