"""Several candidates of one job: they differ by their seeds, step together, and the best are kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from service.jobs.admission import admit
from service.jobs.errors import Refused
from tests.unit.workers.small_workers import Service, small_networks
from workers.candidates import Team, make_team
from workers.fields.voxel import VoxelField
from workers.mesh import picture
from workers.scene import CheckpointError

if TYPE_CHECKING:
    from pathlib import Path

    from service.jobs.spec import JobSpec

LONG = 20_000
"""Steps of a job that does not end by itself within a test."""


@pytest.fixture
def service(tmp_path: Path) -> Service:
    return Service(tmp_path)


def spec_of(service: Service, **fields: Any) -> JobSpec:
    small = {"prompt": "red", "seed": 7, "method": "sds", "steps": 30}
    return admit(small | fields, small_networks().capabilities(), service.settings).spec


def test_the_best_are_kept_and_all_are_told(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture, "NUM_FRAMES", 2)
    outputs = {"turntable": True}
    (job,) = service.finish(service.submit(candidates={"count": 3, "keep": 2}, outputs=outputs, steps=10))
    assert job["status"] == "succeeded", job["error"]
    told = job["result"]["candidates"]
    assert [(one["index"], one["seed"]) for one in told] == [(0, 7), (1, 8), (2, 9)]
    order = sorted(told, key=lambda one: -one["scores"]["embedded-multiview"])
    assert [one["kept"] for one in order] == [True, True, False]
    assert len({one["scores"]["embedded-multiview"] for one in told}) == 3
    best, second, third = order
    assert best["files"] == ["mesh.glb", "thumbnail.png", "turntable.webp"]
    for one in (second, third):
        number = one["index"]
        assert one["files"] == [
            f"mesh-{number}.glb",
            f"thumbnail-{number}.png",
            f"turntable-{number}.webp",
        ]
    names = [one["name"] for one in job["result"]["artifacts"]]
    assert names == [*best["files"], *second["files"], "report.json"]
    everything = [(one["candidate"], one["name"]) for one in service.store.artifacts(job["id"])]
    kept = [(one["index"], name) for one in (best, second) for name in one["files"]]
    assert everything == [*kept, (None, "report.json"), *((third["index"], name) for name in third["files"])]
    assert job["result"]["choice"] == {
        "by": "reward",
        "candidates": [best["index"], second["index"]],
        "at": None,
    }
    assert job["result"]["mesh"] == best["mesh"]
    assert len({one["field_sha256"] for one in told}) == 3
    # A person likes another one better: its mesh is the job's from now on.
    overruled = service.store.keep(job["id"], [third["index"]])
    assert overruled is not None
    result = overruled["result"]
    assert (result["mesh"], result["choice"]["by"]) == (third["mesh"], "person")
    assert [one["name"] for one in result["artifacts"]] == [*third["files"], "report.json"]
    (glb, key) = service.store.artifact(result["artifacts"][0]["id"]) or ({}, "")
    assert glb["sha256"] == result["artifacts"][0]["sha256"]
    assert f'"seed":{third["seed"]}'.encode() in service.objects.get(key).replace(b" ", b"")
    assert "this one had them" in job["result"]["provenance"]["determinism"]


def test_a_candidate_is_what_a_job_with_its_seed_would_have_made(service: Service) -> None:
    (several,) = service.finish(service.submit(candidates={"count": 2, "keep": 2}, steps=10))
    singles = service.finish(*(service.submit(seed=seed, steps=10) for seed in (7, 8)))
    for candidate, single in zip(several["result"]["candidates"], singles, strict=True):
        (alone,) = single["result"]["candidates"]
        assert candidate["scores"]["embedded-multiview"] == pytest.approx(
            alone["scores"]["embedded-multiview"], rel=1e-3
        )


def test_a_job_with_candidates_resumes_to_the_same_bits(tmp_path: Path) -> None:
    fields: dict[str, Any] = {"candidates": {"count": 2, "keep": 1}, "steps": 60}
    undisturbed = Service(tmp_path / "a")
    (expected,) = undisturbed.finish(undisturbed.submit(**fields))
    service = Service(tmp_path / "b")
    job_id = service.submit(**fields)
    first = service.worker("first")
    service.run_until(
        lambda: bool(service.job(job_id)["progress"] and service.job(job_id)["progress"]["step"] >= 20), first
    )
    assert service.job(job_id)["status"] == "queued"
    (job,) = service.finish(job_id, workers=(service.worker("second"),))
    assert job["attempts"][-1]["resumed_from_step"] > 0
    assert job["result"]["provenance"]["field_sha256"] == expected["result"]["provenance"]["field_sha256"]
    assert job["result"]["candidates"] == expected["result"]["candidates"]


def test_a_candidate_that_diverges_leaves_the_others(service: Service) -> None:
    made: list[VoxelField] = []

    def second_is_broken(device: Any) -> VoxelField:
        made.append(VoxelField(coarse=12, fine=20, device=device))
        if len(made) == 2:
            made[-1].raw_density.data.fill_(float("nan"))
        return made[-1]

    worker = service.worker(load=lambda: small_networks(second_is_broken))
    (job,) = service.finish(service.submit(candidates={"count": 3, "keep": 3}, steps=5), workers=(worker,))
    assert job["status"] == "succeeded", job["error"]
    assert [one["kept"] for one in job["result"]["candidates"]] == [True, False, True]
    lost_one = job["result"]["candidates"][1]
    assert (lost_one["scores"], lost_one["files"], lost_one["mesh"]) == ({}, [], None)
    (lost,) = [one for one in job["warnings"] if one["code"] == "candidate-lost"]
    assert lost["detail"].startswith("candidate 1: ")


def test_a_job_whose_candidates_all_diverge_fails(service: Service) -> None:
    (job,) = service.finish(service.submit("supernova", candidates={"count": 2}))
    assert job["error"]["code"] == "nan-divergence"


def test_a_cancel_may_keep_the_best_so_far(service: Service) -> None:
    job_id = service.submit(steps=LONG, candidates={"count": 2})

    def canceled() -> bool:
        job = service.job(job_id)
        if job["status"] == "running" and job["progress"]["step"] >= 5:
            service.store.cancel(job_id, keep_partial=True)
        return bool(job["status"] == "canceled")

    service.run_until(canceled, service.worker())
    result = service.job(job_id)["result"]
    assert result["partial"]
    assert sum(one["kept"] for one in result["candidates"]) == 1
    assert sum(bool(one["files"]) for one in result["candidates"]) == 1, "a cancel is to be quick"


def test_a_torn_checkpoint_of_a_team_is_refused(service: Service) -> None:
    spec = spec_of(service, candidates={"count": 2})
    networks = small_networks()
    data = make_team(spec, networks).save()

    def load(changed: bytes) -> Team:
        team = make_team(spec, networks)
        team.load(changed)
        return team

    assert load(data).step == 0
    single = make_team(spec_of(service), networks).save()
    for torn in (
        b"",
        data[:-10],
        data[:30],
        single,
        data.replace(b"[[0, ", b"[[7, ").replace(b"[1, ", b"[8, "),
    ):
        with pytest.raises(CheckpointError):
            load(torn)


@pytest.mark.parametrize("fields", [{"effort": "preview", "steps": None}, {"rewards": []}])
def test_candidates_that_nothing_could_choose_from_are_refused(
    service: Service, fields: dict[str, Any]
) -> None:
    with pytest.raises(Refused) as caught:
        spec_of(service, candidates={"count": 2}, **fields)
    assert caught.value.pointer == "/candidates/count"
