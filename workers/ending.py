"""How an attempt ends: published, failed, canceled, given back; each said once, as often as it takes."""

from __future__ import annotations

import logging
import math
import time
from typing import TYPE_CHECKING, Any

from service.jobs.errors import StoreUnavailable
from service.jobs.states import FailureCode, Stage, StaleLease
from workers import publish
from workers.attempt import Verdict
from workers.candidates import documents, export, rank, verify
from workers.failures import failure_of
from workers.patience import pauses
from workers.scoring import score_point

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Sequence

    from service.jobs.objects import ObjectStore
    from service.jobs.states import NewArtifact
    from service.jobs.store import JobStore
    from workers.attempt import Attempt
    from workers.candidates import Team
    from workers.networks import Networks
    from workers.publish import File

__all__ = ["Ending"]

log = logging.getLogger(__name__)


class _Unwanted(Exception):
    """Nobody wants what is being exported any more: the job is canceled or late, or the lease is lost."""


class Ending:
    """Brings attempts to their ends. After each, the attempt is `ended`."""

    def __init__(
        self,
        store: JobStore,
        objects: ObjectStore,
        discard: Callable[[str], None],
        entered: Callable[[Attempt, Stage], None],
        *,
        storage_budget_s: float,
        draining: threading.Event,
    ) -> None:
        """`discard` takes keys of objects that nobody needs; `entered` is told each stage.

        An upload is tried again for `storage_budget_s`, unless the worker is `draining`.
        """
        self._store = store
        self._objects = objects
        self._storage_budget_s = storage_budget_s
        self._draining = draining
        self._discard = discard
        self._entered = entered

    def publish_team(self, attempt: Attempt, team: Team, networks: Networks) -> None:
        """Export a job's scenes and publish them; the objects are durable before the row says so.

        Those that have steps left are the partial result of a job that is being canceled: of them only the best are
        exported, for a cancel is soon to be done.
        """
        spec = attempt.lease.spec

        def go_on() -> None:
            if not attempt.may_publish(time.monotonic()):
                raise _Unwanted

        try:
            self._entered(attempt, Stage.EXPORT)
            ranked = rank(team, networks, spec)
            most = len(ranked) if team.finished else spec.candidates.keep
            made = export(ranked, networks, spec, most, go_on)
            self._entered(attempt, Stage.VERIFY)
            verified = verify(made, networks, spec, go_on)
            best = made[0].scored
            attempt.untold_scores.append(score_point(team.step, best.said, spec))
            origin = publish.provenance(spec, networks, alone=attempt.alone)
            result = documents(spec, ranked, verified) | {
                "provenance": origin | {"field_sha256": publish.field_sha256(best.candidate.scene)},
                "licenses": publish.licenses(spec, networks),
            }
            files = [file for one in verified for file in one.exported.files]
            self._publish(attempt, result, files, partial=not team.finished)
        except _Unwanted:
            self.stop(attempt)
        except Exception as error:
            self.fail(attempt, error)

    def draw_preview(self, attempt: Attempt, networks: Networks) -> tuple[dict[str, Any], list[File]]:
        """Draw what the prior sees in the prompt, without optimizing anything: for `publish`."""
        spec = attempt.lease.spec
        self._entered(attempt, Stage.PREVIEW)
        result = {
            "candidates": [],
            "choice": None,
            "mesh": None,
            "provenance": publish.provenance(spec, networks, alone=True),
            "licenses": publish.licenses(spec, networks),
        }
        return result, [publish.preview_file(spec, networks)]

    def publish(self, attempt: Attempt, result: dict[str, Any], files: list[File]) -> None:
        """Publish what was made already."""
        try:
            self._publish(attempt, result, files)
        except Exception as error:
            self.fail(attempt, error)

    def stop(self, attempt: Attempt) -> None:
        """End an attempt that must not go on, saying why."""
        lease = attempt.lease
        match attempt.verdict(time.monotonic()):
            case Verdict.CANCEL:
                self._say(attempt, lambda: self._store.cancel_confirmed(lease))
            case Verdict.DEADLINE:
                detail = f"the job was not done {lease.spec.limits.deadline_s:g} s after its submission"
                self._say(attempt, lambda: self._store.fail(lease, FailureCode.DEADLINE_EXCEEDED, detail))
            case Verdict.OVERDRAWN:
                spent = attempt.overdrawn or ""
                self._say(attempt, lambda: self._store.fail(lease, FailureCode.GPU_BUDGET_EXCEEDED, spent))
            case Verdict.LOST:
                log.warning("dropped attempt %d of %s: its lease is lost", lease.attempt, lease.job_id)
                attempt.ended = True
            case Verdict.GO_ON:  # a lease that seemed lost was renewed meanwhile, but its scene is dropped
                self.give_back(attempt)

    def fail(self, attempt: Attempt, error: Exception) -> None:
        """End an attempt that met an exception."""
        lease = attempt.lease
        if isinstance(error, StaleLease):
            attempt.ended = True
            return
        code, detail = failure_of(error)
        log.warning("attempt %d of %s failed: %s", lease.attempt, lease.job_id, code)
        self._say(attempt, lambda: self._store.fail(lease, code, detail))

    def give_back(self, attempt: Attempt) -> None:
        """Return an unfinished job to the queue, without counting a failure."""

        def release() -> tuple[str, ...]:
            self._store.release(attempt.lease)
            return ()

        self._say(attempt, release)

    def _publish(
        self, attempt: Attempt, result: dict[str, Any], files: list[File], *, partial: bool = False
    ) -> None:
        lease, write = attempt.lease, self._store.cancel_confirmed if partial else self._store.finish
        if lease.spec.outputs.report:
            files = [*files, publish.report_file(lease, result)]
        self._entered(attempt, Stage.UPLOAD)
        artifacts = self._upload(attempt, files)
        if artifacts is None:
            self.give_back(attempt)
        elif attempt.may_publish(time.monotonic()):
            self._say(attempt, lambda: write(lease, result, artifacts, tuple(attempt.untold_scores)))
            log.info("published attempt %d of %s", lease.attempt, lease.job_id)
        else:
            self.stop(attempt)

    def _upload(self, attempt: Attempt, files: Sequence[File]) -> list[NewArtifact] | None:
        """Upload, patiently: the reporter keeps the lease meanwhile. None when the worker is to end before it can."""
        waits = pauses(self._storage_budget_s)
        while True:
            try:
                return publish.upload(files, attempt.lease, self._objects)
            except StoreUnavailable as error:
                pause_s = next(waits, None)
                if pause_s is None or not attempt.may_publish(time.monotonic()):
                    raise
                attempt.store_failures += 1
                log.warning("cannot upload the result of %s yet: %s", attempt.lease.job_id, error)
            if self._draining.wait(pause_s):
                return None

    def _say(self, attempt: Attempt, write: Callable[[], Sequence[str]]) -> None:
        """Write the last word about an attempt, until the store takes it or the lease is lost."""
        waits = pauses(math.inf)  # the lease or the deadline bounds them
        while True:
            try:
                for key in write():
                    self._discard(key)
                break
            except StaleLease as stale:
                log.warning("%s", stale)
                break
            except StoreUnavailable as error:
                if attempt.verdict(time.monotonic()) is Verdict.LOST:
                    break
                log.warning(
                    "cannot end attempt %d of %s yet: %s", attempt.lease.attempt, attempt.lease.job_id, error
                )
            time.sleep(next(waits))
        # A checkpoint that no report has told may be named by a row all the same, as an answer can get lost: so the
        # sweeper, which looks, removes what no row names.
        attempt.ended = True
