"""A person overrules the reward: what is kept changes, and nothing else does."""

from __future__ import annotations

import threading
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

from service.jobs.batches import BatchStore
from service.jobs.errors import ArtifactsExpired, NothingToChoose, Refused
from service.jobs.states import FailureCode, Lease, NewArtifact, Stage
from tests.unit.service.jobs.batch_samples import batch_of, drive
from tests.unit.service.jobs.job_samples import FakeClock, claimed, result_of, spec_of, types_of

if TYPE_CHECKING:
    from service.jobs.documents import Document
    from service.jobs.store import JobStore

RETENTION_S = 30 * 86_400.0
CANDIDATES = {"count": 4, "keep": 2}
"""The reward likes 1 best, then 0, then 2; 3 has become no object."""


def candidate(index: int, score: float, *, kept: bool) -> Document:
    return {
        "index": index,
        "scores": {"embedded-multiview": score},
        "referee": None,
        "seed": 7 + index,
        "kept": kept,
        "files": [f"mesh-{index}.glb"],
        "mesh": {"faces": 100 + index},
        "field_sha256": f"{index}" * 64,
    }


def result() -> Document:
    lost = candidate(3, 0.0, kept=False) | {"scores": {}, "files": [], "mesh": None, "field_sha256": None}
    candidates = [
        candidate(0, 0.7, kept=True),
        candidate(1, 0.8, kept=True),
        candidate(2, 0.3, kept=False),
        lost,
    ]
    return result_of() | {
        "candidates": candidates,
        "choice": {"by": "reward", "candidates": [1, 0], "at": None},
        "mesh": candidates[1]["mesh"],
        "provenance": {"code": "test", "seed": 7, "field_sha256": "1" * 64},
    }


def artifact(name: str, index: int | None, lease: Lease) -> NewArtifact:
    kind = name.rpartition(".")[2].replace("json", "report").replace("png", "thumbnail")
    key = f"jobs/{lease.job_id}/0001/{name}"
    return NewArtifact(kind, name, "application/octet-stream", 8, "a" * 64, key, index)


def finish(store: JobStore, lease: Lease) -> str:
    names = (
        ("mesh-1.glb", 1),
        ("picture-1.png", 1),
        ("mesh-0.glb", 0),
        ("mesh-2.glb", 2),
        ("picture-2.png", 2),
    )
    files = [artifact(name, index, lease) for name, index in (*names, ("report.json", None))]
    store.finish(lease, result(), files)
    return lease.job_id


def succeeded(store: JobStore) -> str:
    store.submit(spec_of(candidates=CANDIDATES))
    return finish(store, claimed(store))


def names(files: list[Document]) -> list[str]:
    return [one["name"] for one in files]


def document(store: JobStore, job_id: str) -> Document:
    found = store.get(job_id)
    assert found is not None
    return found


def test_what_the_reward_has_chosen_comes_first_and_the_rest_is_there(store: JobStore) -> None:
    job_id = succeeded(store)
    told = document(store, job_id)["result"]
    assert told["choice"] == {"by": "reward", "candidates": [1, 0], "at": None}
    kept = ["mesh-1.glb", "picture-1.png", "mesh-0.glb", "report.json"]
    assert names(told["artifacts"]) == kept
    assert names(store.artifacts(job_id)) == [*kept, "mesh-2.glb", "picture-2.png"]
    assert [one["candidate"] for one in store.artifacts(job_id)] == [1, 1, 0, None, 2, 2]


def test_a_person_overrules_the_reward_and_nothing_else_changes(store: JobStore, clock: FakeClock) -> None:
    job_id = succeeded(store)
    before, log = document(store, job_id), types_of(store, job_id)
    clock.advance(60)
    for _ in range(3):  # to repeat it does no harm
        after = store.keep(job_id, [2, 1])
        assert after is not None
        clock.advance(60)
    assert after == document(store, job_id)
    told = after["result"]
    assert told["choice"] == {"by": "person", "candidates": [2, 1], "at": "2025-06-15T15:07:40.000Z"}
    assert [one["kept"] for one in told["candidates"]] == [False, True, True, False]
    assert (told["mesh"], told["provenance"]["field_sha256"]) == ({"faces": 102}, "2" * 64)
    kept = ["mesh-2.glb", "picture-2.png", "mesh-1.glb", "picture-1.png", "report.json"]
    assert names(told["artifacts"]) == kept
    assert names(store.artifacts(job_id)) == [*kept, "mesh-0.glb"]
    assert types_of(store, job_id) == [*log, "chosen"]
    assert store.events(job_id)[-1]["data"] == told["choice"]
    changed = {"artifacts", "candidates", "choice", "mesh", "provenance"}
    assert {name: value for name, value in told.items() if name not in changed} == {
        name: value for name, value in before["result"].items() if name not in changed
    }
    assert after | {"result": None} == before | {"result": None}
    assert (after["status"], before["status"]) == ("succeeded", "succeeded")


def test_who_agrees_with_the_reward_has_chosen_too_and_the_newest_choice_counts(store: JobStore) -> None:
    job_id = succeeded(store)
    choices: list[tuple[str, Any]] = []
    for wanted in ([1, 0], [0, 1], [2]):
        told = store.keep(job_id, wanted)
        assert told is not None
        choices.append((told["result"]["choice"]["by"], told["result"]["choice"]["candidates"]))
    assert choices == [("person", [1, 0]), ("person", [0, 1]), ("person", [2])]
    assert types_of(store, job_id).count("chosen") == 3


def test_choices_at_the_same_time_are_made_one_after_the_other(store: JobStore) -> None:
    job_id = succeeded(store)
    threads = [threading.Thread(target=store.keep, args=(job_id, [index])) for index in (0, 1, 2) * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log = store.events(job_id)
    assert [event["id"] for event in log] == list(range(1, len(log) + 1))
    chosen = [event["data"]["candidates"] for event in log if event["type"] == "job.chosen"]
    assert all(one != other for one, other in pairwise(chosen)), "each event tells a change"
    assert document(store, job_id)["result"]["choice"] == log[-1]["data"]


def test_another_owners_job_is_not_there_to_choose_from(store: JobStore) -> None:
    job_id = succeeded(store)
    before = document(store, job_id)
    assert store.keep(job_id, [2], owner="somebody else") is None
    assert store.keep("job_01ARZ3NDEKTSV4RRFFQ69G5FAV", [2]) is None
    assert document(store, job_id) == before


def test_only_a_success_with_candidates_can_be_chosen_from(store: JobStore) -> None:
    job_id = str(store.submit(spec_of(candidates=CANDIDATES))[0]["id"])

    def refused() -> str:
        before = document(store, job_id)
        with pytest.raises(NothingToChoose) as caught:
            store.keep(job_id, [0])
        assert document(store, job_id) == before
        return f"{before['status']} {caught.value.code}"

    assert refused() == "queued job-not-succeeded"
    lease = claimed(store)
    assert refused() == "running job-not-succeeded"
    store.report(lease, stage=Stage.COARSE, step=3, steps_total=300)
    store.cancel(job_id, keep_partial=True)
    store.cancel_confirmed(lease, result(), [artifact("mesh-0.glb", 0, lease)])
    assert refused() == "canceled job-not-succeeded"
    job_id = str(store.submit(spec_of())[0]["id"])
    store.fail(claimed(store), FailureCode.EMPTY_MESH, "nothing there")
    assert refused() == "failed job-not-succeeded"
    job_id = str(store.submit(spec_of())[0]["id"])
    store.finish(claimed(store), result_of() | {"candidates": [], "mesh": None}, [])
    assert refused() == "succeeded no-candidates"


@pytest.mark.parametrize(
    ("wanted", "pointer", "detail"),
    [
        ([4], "/candidates/0", "the job has the candidates 0 to 3, found 4"),
        ([0, 3], "/candidates/1", "candidate 3 has become no object"),
    ],
)
def test_what_has_become_no_object_cannot_be_kept(
    store: JobStore, wanted: list[int], pointer: str, detail: str
) -> None:
    job_id = succeeded(store)
    before = document(store, job_id)
    with pytest.raises(Refused) as caught:
        store.keep(job_id, wanted)
    assert (caught.value.pointer, caught.value.detail) == (pointer, detail)
    assert document(store, job_id) == before


def test_there_is_nothing_to_choose_when_the_files_have_expired(store: JobStore, clock: FakeClock) -> None:
    job_id = succeeded(store)
    clock.advance(RETENTION_S - 1)
    assert store.keep(job_id, [0]) is not None
    clock.advance(2)
    with pytest.raises(ArtifactsExpired, match="were kept until 2025-07-15T15:06:40"):
        store.keep(job_id, [2])
    assert document(store, job_id)["result"]["choice"]["candidates"] == [0]


def test_the_results_of_a_batch_follow_the_choice(store: JobStore, clock: FakeClock) -> None:
    batches = BatchStore(store.database)
    batch = batch_of(batches, [{"body": {"prompt": "a red cube", "candidates": CANDIDATES}}])
    drive(batches)
    job_id = finish(store, claimed(store))

    def told() -> tuple[Any, list[str]]:
        page = batches.results(batch["id"])
        assert page is not None
        (item,), _ = page
        return item["scores"], names(item["artifacts"])

    kept = ["mesh-1.glb", "picture-1.png", "mesh-0.glb", "report.json"]
    assert told() == ({"embedded-multiview": 0.8}, kept)
    store.keep(job_id, [2])
    assert told() == ({"embedded-multiview": 0.3}, ["mesh-2.glb", "picture-2.png", "report.json"])
