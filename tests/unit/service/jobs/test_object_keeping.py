"""The object store beside the rows: erasing jobs, sweeping what nobody needs, taking stock, and crashes between."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import pytest

from service.jobs import tables
from service.jobs.erasing import Eraser
from service.jobs.errors import ArtifactsExpired, JobActive
from service.jobs.inventory import Inventory, Trouble, WrongStore
from service.jobs.local_store import LocalStore
from service.jobs.objects import artifact_key, checkpoint_key
from service.jobs.states import Checkpoint, FailureCode, NewArtifact, Stage
from service.jobs.sweeping import GRACE_S, SWEEP_EVERY_S, Sweeper
from tests.unit.service.jobs.job_samples import FakeClock, claimed, result_of, spec_of

if TYPE_CHECKING:
    from pathlib import Path

    from service.jobs.states import Lease
    from service.jobs.store import JobStore

RETENTION_S = 30 * 86_400.0


@pytest.fixture
def objects(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "objects")


@pytest.fixture
def sweeper(store: JobStore, objects: LocalStore) -> Sweeper:
    return Sweeper(store.database, objects, grace_s=-60)


@pytest.fixture
def inventory(store: JobStore, objects: LocalStore) -> Inventory:
    return Inventory(store.database, objects, grace_s=-60)


def running(store: JobStore, **fields: Any) -> Lease:
    store.submit(spec_of(**fields))
    return claimed(store)


def put_artifact(objects: LocalStore, lease: Lease, content: bytes = b"glTF") -> NewArtifact:
    key = artifact_key(lease.job_id, lease.attempt, "object.glb")
    info = objects.put(key, content)
    return NewArtifact("glb", "object.glb", "model/gltf-binary", info.size_bytes, info.sha256, key)


def save_checkpoint(store: JobStore, objects: LocalStore, lease: Lease, step: int) -> str:
    key = checkpoint_key(lease.job_id, lease.attempt, step)
    info = objects.put(key, f"checkpoint {step}".encode())
    checkpoint = Checkpoint(key, info.sha256, step, info.size_bytes)
    store.report(lease, stage=Stage.COARSE, step=step, steps_total=300, worker_s=7.5, checkpoint=checkpoint)
    return key


def finished(store: JobStore, objects: LocalStore) -> Lease:
    """A job that has succeeded, with one artifact."""
    lease = running(store)
    store.finish(lease, result_of(), [put_artifact(objects, lease)])
    return lease


def keys(objects: LocalStore) -> list[str]:
    return [found.key for found in objects.list()]


# ---- erasing


def test_an_erased_job_leaves_neither_rows_nor_objects(store: JobStore, objects: LocalStore) -> None:
    lease = running(store)
    save_checkpoint(store, objects, lease, 50)
    store.finish(lease, result_of(), [put_artifact(objects, lease)])
    other = finished(store, objects)
    eraser = Eraser(store.database, objects)
    assert eraser.forget(lease.job_id)
    eraser.delete_objects(lease.job_id)
    assert store.get(lease.job_id) is None
    assert store.events(lease.job_id) == []
    assert keys(objects) == [artifact_key(other.job_id, 1, "object.glb")]
    with store.database.reading() as tx:
        for table in (tables.attempts, tables.events, tables.artifacts, tables.checkpoints):
            assert lease.job_id not in {row.job_id for row in tx.execute(table.select())}
    assert eraser.forget(lease.job_id), "to erase a job once more does no harm"
    assert eraser.unfinished() == []


def test_a_job_that_never_existed_or_is_anothers_is_not_erased(store: JobStore, objects: LocalStore) -> None:
    lease = finished(store, objects)
    eraser = Eraser(store.database, objects)
    assert not eraser.forget("job_01ARZ3NDEKTSV4RRFFQ69G5FAV")
    assert not eraser.forget(lease.job_id, owner="somebody else")
    assert store.get(lease.job_id) is not None


def test_an_active_job_cannot_be_erased(store: JobStore, objects: LocalStore) -> None:
    queued = str(store.submit(spec_of())[0]["id"])
    with pytest.raises(JobActive, match="is queued"):
        Eraser(store.database, objects).forget(queued)
    claimed(store)
    with pytest.raises(JobActive, match="is running"):
        Eraser(store.database, objects).forget(queued)
    assert store.get(queued) is not None


def test_an_erasure_that_was_interrupted_is_finished_by_the_sweeper(
    store: JobStore, objects: LocalStore, sweeper: Sweeper
) -> None:
    lease = finished(store, objects)
    Eraser(store.database, objects).forget(lease.job_id)  # and then the process died
    assert keys(objects)
    sweeper.sweep()
    assert keys(objects) == []
    assert sweeper.finish_erasures() == 0


# ---- sweeping


def test_expired_artifacts_lose_their_objects_after_the_grace_period(
    store: JobStore, objects: LocalStore, clock: FakeClock
) -> None:
    lease = finished(store, objects)
    sweeper = Sweeper(store.database, objects)
    clock.advance(RETENTION_S + GRACE_S - 1)
    assert sweeper.remove_expired() == 0
    clock.advance(2)
    assert sweeper.remove_expired() == 1
    assert keys(objects) == []
    assert sweeper.remove_expired() == 0
    assert len(store.artifacts(lease.job_id)) == 1, "the row stays, and tells when it expired"


def test_what_a_running_attempt_uploads_is_no_orphan_however_old(
    store: JobStore, objects: LocalStore, sweeper: Sweeper
) -> None:
    lease = running(store)
    artifact = put_artifact(objects, lease)
    objects.put(checkpoint_key(lease.job_id, 1, 50), b"not told yet")
    assert sweeper.remove_orphans() == 0
    store.finish(lease, result_of(), [artifact])
    assert sweeper.remove_orphans() == 1
    assert keys(objects) == [artifact.key]


def test_what_a_lost_attempt_has_uploaded_is_an_orphan(
    store: JobStore, objects: LocalStore, sweeper: Sweeper, clock: FakeClock
) -> None:
    lease = running(store)
    kept = save_checkpoint(store, objects, lease, 50)
    put_artifact(objects, lease)
    store.worker_lost("worker-1")
    assert sweeper.remove_orphans() == 1
    assert keys(objects) == [kept], "the next attempt resumes from it"
    clock.advance(10)
    second = claimed(store)
    objects.put(artifact_key(lease.job_id, 1, "thumbnail.png"), b"a late write of the first attempt")
    mine = put_artifact(objects, second)
    assert sweeper.remove_orphans() == 1
    assert sorted(keys(objects)) == sorted([kept, mine.key])


def test_young_objects_and_those_of_other_services_are_left_alone(
    store: JobStore, objects: LocalStore, sweeper: Sweeper
) -> None:
    lease = running(store)
    put_artifact(objects, lease)
    store.fail(lease, FailureCode.EMPTY_MESH, "nothing there")
    objects.put("photos/cat.jpg", b"not ours")
    objects.put(artifact_key("job_01ARZ3NDEKTSV4RRFFQ69G5FAV", 1, "object.glb"), b"of another database")
    assert Sweeper(store.database, objects).remove_orphans() == 0
    assert sweeper.remove_orphans() == 1
    assert len(keys(objects)) == 2


def test_a_late_upload_for_an_erased_job_is_swept(
    store: JobStore, objects: LocalStore, sweeper: Sweeper
) -> None:
    lease = finished(store, objects)
    eraser = Eraser(store.database, objects)
    eraser.forget(lease.job_id)
    eraser.delete_objects(lease.job_id)
    objects.put(checkpoint_key(lease.job_id, 1, 50), b"from a worker that slept")
    assert sweeper.remove_orphans() == 1
    assert keys(objects) == []


def test_of_several_sweepers_one_has_the_turn(
    store: JobStore, objects: LocalStore, sweeper: Sweeper, clock: FakeClock
) -> None:
    lease = finished(store, objects)
    sweeper.sweep()
    Eraser(store.database, objects).forget(lease.job_id)
    Sweeper(store.database, objects).sweep()
    assert keys(objects), "the first one has just had this minute's turn"
    clock.advance(SWEEP_EVERY_S + 1)
    Sweeper(store.database, objects).sweep()
    assert keys(objects) == []


# ---- taking stock


def test_a_store_that_agrees_with_its_rows_has_no_findings(
    store: JobStore, objects: LocalStore, inventory: Inventory
) -> None:
    finished(store, objects)
    lease = running(store)
    save_checkpoint(store, objects, lease, 50)
    put_artifact(objects, lease)  # an upload under way
    assert list(inventory.find()) == []
    assert inventory.num_sound == 2


@pytest.mark.parametrize("quick", [True, False])
def test_what_is_missing_damaged_or_nobodys_is_found_and_repaired(
    store: JobStore, objects: LocalStore, inventory: Inventory, quick: bool
) -> None:
    sound, lost, torn = (finished(store, objects) for _ in range(3))
    running_one = running(store)
    checkpoint = save_checkpoint(store, objects, running_one, 50)
    objects.delete(artifact_key(lost.job_id, 1, "object.glb"))
    objects.put(artifact_key(torn.job_id, 1, "object.glb"), b"gl", create_once=False)
    objects.put(artifact_key(sound.job_id, 1, "thumbnail.png"), b"nobody's")
    objects.delete(checkpoint)
    findings = list(inventory.find(quick=quick))
    assert sorted((finding.trouble, finding.key) for finding in findings) == sorted(
        [
            (Trouble.MISSING, artifact_key(lost.job_id, 1, "object.glb")),
            (Trouble.DAMAGED, artifact_key(torn.job_id, 1, "object.glb")),
            (Trouble.MISSING, checkpoint),
            (Trouble.ORPHAN, artifact_key(sound.job_id, 1, "thumbnail.png")),
        ]
    )
    assert hashlib.sha256(b"gl").hexdigest() in next(
        one.detail for one in findings if one.trouble is Trouble.DAMAGED
    )
    assert all(inventory.repair(finding) for finding in findings)
    (torn_one,) = inventory.find(quick=quick)
    assert torn_one.trouble is Trouble.ORPHAN, "what was damaged is nobody's now"
    inventory.repair(torn_one)
    assert list(inventory.find(quick=quick)) == []
    assert keys(objects) == [artifact_key(sound.job_id, 1, "object.glb")]


def test_objects_of_another_database_are_told_and_never_touched(
    objects: LocalStore, inventory: Inventory
) -> None:
    objects.put(artifact_key("job_01ARZ3NDEKTSV4RRFFQ69G5FAV", 1, "object.glb"), b"glTF")
    (finding,) = inventory.find()
    assert finding.trouble is Trouble.UNKNOWN
    assert not inventory.repair(finding)
    assert len(keys(objects)) == 1


def test_a_repair_with_the_wrong_store_is_refused(store: JobStore, tmp_path: Path) -> None:
    lease = finished(store, LocalStore(tmp_path / "right"))
    inventory = Inventory(store.database, LocalStore(tmp_path / "wrong"))
    (finding,) = inventory.find()
    with pytest.raises(WrongStore, match="DREAMSERVE_OBJECTS_URL"):
        inventory.repair(finding)
    assert len(store.artifacts(lease.job_id)) == 1


def test_the_files_of_a_candidate_live_as_long_as_the_jobs_whether_it_is_kept_or_not(
    store: JobStore, objects: LocalStore, sweeper: Sweeper, inventory: Inventory, clock: FakeClock
) -> None:
    lease = running(store, candidates={"count": 3})
    files = []
    for index in range(3):
        key = artifact_key(lease.job_id, lease.attempt, f"mesh-{index}.glb")
        info = objects.put(key, f"glTF {index}".encode())
        about = ("glb", f"mesh-{index}.glb", "model/gltf-binary", info.size_bytes, info.sha256)
        files.append(NewArtifact(*about, key, index))
    told: dict[str, Any] = {"scores": {}, "referee": None, "mesh": None, "field_sha256": None}
    candidates = [{"index": index, "kept": index == 1, **told} for index in range(3)]
    choice = {"by": "reward", "candidates": [1], "at": None}
    store.finish(lease, result_of() | {"candidates": candidates, "choice": choice}, files)
    for wanted in (0, 2):
        assert sweeper.remove_orphans() == 0
        assert list(inventory.find()) == []
        assert store.keep(lease.job_id, [wanted]) is not None
    objects.delete(files[0].key)
    (finding,) = inventory.find()
    assert (finding.trouble, finding.key) == (Trouble.MISSING, files[0].key)
    inventory.repair(finding)
    clock.advance(1)
    with pytest.raises(ArtifactsExpired):
        store.keep(lease.job_id, [0])
    assert store.keep(lease.job_id, [1]) is not None
    clock.advance(RETENTION_S)
    assert sweeper.remove_expired() == 2
    assert keys(objects) == []


def test_an_erasure_that_was_interrupted_is_found_and_finished(
    store: JobStore, objects: LocalStore, inventory: Inventory
) -> None:
    lease = finished(store, objects)
    Eraser(store.database, objects).forget(lease.job_id)
    findings = list(inventory.find())
    assert [finding.trouble for finding in findings] == [Trouble.NOT_ERASED, Trouble.ORPHAN]
    assert all(inventory.repair(finding) for finding in findings)
    assert list(inventory.find()) == []
