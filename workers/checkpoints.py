"""Checkpoints in the object store: written in the background, read back with doubt."""

from __future__ import annotations

import hashlib
import logging
import queue
import threading
from typing import TYPE_CHECKING

from service.jobs.errors import StoreUnavailable
from service.jobs.objects import ObjectExists, ObjectMissing, checkpoint_key
from service.jobs.states import Checkpoint
from workers.scene import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Callable

    from service.jobs.objects import ObjectStore
    from workers.attempt import Attempt
    from workers.candidates import Team

__all__ = ["CheckpointWriter", "open_team"]

log = logging.getLogger(__name__)


def open_team(
    make: Callable[[], Team], checkpoints: tuple[Checkpoint, ...], objects: ObjectStore
) -> tuple[Team, int | None]:
    """Make a job's scenes and bring them to their newest whole checkpoint: and that step (None: a fresh start).

    A checkpoint that is missing, torn or foreign is passed over for the one before. Raises `StoreUnavailable`.
    """
    for checkpoint in checkpoints:
        team = make()  # anew for each: a checkpoint that fails half-way leaves a half-changed scene
        try:
            data = objects.get(checkpoint.key)
            found = hashlib.sha256(data).hexdigest()
            if found != checkpoint.sha256:
                raise CheckpointError(f"its sha256 is {found}, expected {checkpoint.sha256}")
            team.load(data)
        except (ObjectMissing, CheckpointError) as error:
            log.warning("checkpoint %s is not usable, trying the one before: %s", checkpoint.key, error)
        else:
            return team, team.step
    return make(), None


class CheckpointWriter:
    """Upload checkpoints in one thread, while the scenes go on.

    A finished upload becomes the attempt's `untold_checkpoint`, which the reporter then names in the row: the
    object is whole in the store before anything points to it.
    """

    def __init__(self, objects: ObjectStore, saved: Callable[[], None]) -> None:
        """`saved` is called after each upload (to report it soon)."""
        self._objects = objects
        self._saved = saved
        self._tasks: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._uploading: set[str] = set()
        self._thread = threading.Thread(target=self._run, name="checkpoints", daemon=True)
        self._thread.start()

    def save(self, attempt: Attempt, team: Team) -> bool:
        """Begin to save a job's scenes as they are now; False while its previous checkpoint is not in the row yet."""
        job_id = attempt.lease.job_id
        if job_id in self._uploading or attempt.untold_checkpoint is not None:
            return False
        data, step = team.save(), team.step
        self._uploading.add(job_id)
        self._tasks.put(lambda: self._upload(attempt, data, step))
        return True

    def discard(self, key: str) -> None:
        """Delete an object that no row names any more, some time."""
        self._tasks.put(lambda: self._objects.delete(key))

    def flush(self, timeout_s: float) -> bool:
        """Wait until all that was begun is done; False if that takes longer than `timeout_s`."""
        done = threading.Event()
        self._tasks.put(done.set)
        return done.wait(timeout_s)

    def stop(self) -> None:
        """End the thread after what was begun."""
        self._tasks.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (task := self._tasks.get()) is not None:
            try:
                task()
            except StoreUnavailable as error:
                log.warning("%s", error)  # the next checkpoint is another try
            except Exception:
                log.exception("the checkpoint writer failed at one task")

    def _upload(self, attempt: Attempt, data: bytes, step: int) -> None:
        lease = attempt.lease
        try:
            key = checkpoint_key(lease.job_id, lease.attempt, step)
            info = self._objects.put(key, data)
            if attempt.ended:  # nobody will ever name it
                self._objects.delete(key)
                return
            attempt.untold_checkpoint = Checkpoint(key, info.sha256, step, info.size_bytes)
            self._saved()
        except ObjectExists:
            log.warning("another checkpoint of %s at step %d is already stored", lease.job_id, step)
        finally:
            self._uploading.discard(lease.job_id)
