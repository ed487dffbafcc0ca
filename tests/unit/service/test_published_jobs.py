"""Jobs on published networks, tiny and random, from HTTP to the checked GLB: each preset, previews, what is refused."""

from __future__ import annotations

import hashlib
import json
import struct
import threading
from typing import TYPE_CHECKING, Any

import pytest

from reward_models import clip
from service.jobs.presets import PRESETS
from service.settings import Settings
from tests.unit.workers.published_weights import FIELD, MVDREAM, SMALL_CLIP, write_fetched
from workers.mesh import validate_glb
from workers.networks import load_networks
from workers.weights_import import import_files, recognize
from workers.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import httpx

    from service.jobs.objects import ObjectStore
    from service.jobs.store import JobStore

pytestmark = pytest.mark.slow

FILES = (
    MVDREAM,
    "stable-diffusion-2-1-base",
    "Reward3D_Scorer.safetensors",
    "vocab.txt",
    "HPS_v2.1_compressed.pt",
)
SMALL = {
    "steps": 20,
    "seed": 7,
    "mesh": {"target_faces": 500, "texture_px": 64},
    "outputs": {"thumbnail": False},
}


@pytest.fixture(scope="module", autouse=True)
def _small_hps() -> Iterator[None]:
    """The published file of HPS does not say its sizes, so a small one needs them said."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clip, "VIT_H_14", SMALL_CLIP)
        yield


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weights folder into which an operator has imported what was fetched."""
    fetched, weights = write_fetched(tmp_path_factory.mktemp("fetched")), tmp_path_factory.mktemp("weights")
    for name in FILES:
        for found in recognize(fetched / name):
            import_files(found, weights)
    return weights


@pytest.fixture
def settings(tmp_path: Path, weights: Path) -> Settings:
    return Settings(
        data_dir=tmp_path / "data",
        weights_folder=weights,
        device="cpu",
        report_interval_s=0.05,
        checkpoint_interval_s=3_600,
        reward_placement="local",
        torch_threads=1,
        auth="off",
    )


@pytest.fixture
def running(settings: Settings, store: JobStore, objects: ObjectStore) -> Iterator[None]:
    """A worker that lives as long as the test, and has said what it can do."""
    worker = Worker("w", store, objects, lambda: load_networks(settings, field_sizes=FIELD), settings)
    faults: list[BaseException] = []

    def live() -> None:
        try:
            worker.run()
        except BaseException as fault:
            faults.append(fault)

    thread = threading.Thread(target=live, daemon=True)
    thread.start()
    pause = threading.Event()
    while store.capabilities() is None and not faults:
        pause.wait(0.05)
    yield
    worker.drain()
    thread.join()
    assert not faults, faults


@pytest.fixture
def made(running: None, http: httpx.Client) -> Callable[..., dict[str, Any]]:
    """Submit a job and wait for its end."""

    def make(**fields: Any) -> dict[str, Any]:
        answer = http.post("/generate", json={"prompt": "a red cat", **SMALL, **fields})
        assert answer.status_code == 202, answer.json()
        pause, job = threading.Event(), answer.json()
        while job["status"] not in ("succeeded", "failed", "canceled"):
            pause.wait(0.1)
            job = http.get(f"/v1/jobs/{job['id']}").json()
        return dict(job)

    return make


def glb_of(http: httpx.Client, job: dict[str, Any]) -> bytes:
    (glb,) = [one for one in job["result"]["artifacts"] if one["kind"] == "glb"]
    content = http.get(f"/v1/artifacts/{glb['id']}/content").content
    assert hashlib.sha256(content).hexdigest() == glb["sha256"]
    return content


def extras_of(glb: bytes) -> dict[str, Any]:
    (length,) = struct.unpack("<I", glb[12:16])
    return dict(json.loads(glb[20 : 20 + length])["asset"]["extras"]["dreamserve"])


def sha256_of(path: Path) -> str:
    return f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


@pytest.mark.parametrize("name", PRESETS)
def test_each_preset_ends_in_a_valid_mesh_that_names_preset_and_weights(
    made: Callable[..., dict[str, Any]], http: httpx.Client, weights: Path, name: str
) -> None:
    job = made(preset=name)
    assert job["status"] == "succeeded", job["error"]
    origin, extras = job["result"]["provenance"], extras_of(glb := glb_of(http, job))
    assert validate_glb(glb).watertight
    expected = {"prior": sha256_of(weights / "mvdream" / MVDREAM)}
    rewards = [use.name for use in PRESETS[name].rewards]
    file = {"reward3d": "Reward3D_Scorer.safetensors", "hpsv2.1": "HPS_v2.1_compressed.pt"}
    expected |= {f"reward:{reward}": sha256_of(weights / reward / file[reward]) for reward in rewards}
    assert origin["weights"] == extras["weights"] == expected
    assert origin["preset"] == extras["preset"] == name
    assert origin["preset_changes"] == ["steps"]
    assert (extras["prior"], extras["method"], extras["seed"]) == ("mvdream", PRESETS[name].method.name, 7)
    assert [one["name"] for one in job["result"]["licenses"]] == ["mvdream", *rewards]
    assert job["result"]["candidates"][0]["scores"].keys() == {*rewards, "consistency3d"}


def test_stable_diffusion_runs_a_preset_view_by_view(
    made: Callable[..., dict[str, Any]], http: httpx.Client
) -> None:
    job = made(preset="dreamdpo-paper", prior="stable-diffusion-2.1")
    assert job["status"] == "succeeded", job["error"]
    assert validate_glb(glb_of(http, job)).faces > 0
    assert job["result"]["provenance"]["preset_changes"] == ["prior", "steps"]


@pytest.mark.parametrize("prior", ["mvdream", "stable-diffusion-2.1"])
def test_a_preview_shows_four_views_and_a_long_prompt_is_warned_of(
    made: Callable[..., dict[str, Any]], prior: str
) -> None:
    job = made(prompt="a red cat " * 20, prior=prior, effort="preview", steps=None)
    assert job["status"] == "succeeded", job["error"]
    assert [one["kind"] for one in job["result"]["artifacts"]] == ["preview", "report"]
    (warning,) = [one for one in job["warnings"] if one["code"] == "prompt-truncated"]
    assert "77" in warning["detail"]


def test_the_api_tells_what_is_there_and_what_is_missing(running: None, http: httpx.Client) -> None:
    rewards = {one["name"]: one for one in http.get("/v1/rewards").json()["items"]}
    assert rewards["reward3d"]["available"]
    assert rewards["reward3d"]["weights"].startswith("sha256:")
    pickscore = rewards["pickscore"]
    assert not pickscore["available"]
    assert pickscore["missing"] == ["model.safetensors (from yuvalkirstain/PickScore_v1)"]
    assert (pickscore["license"], pickscore["weights"]) == ("MIT", None)
    assert "dreamserve weights import" in pickscore["how"]
    methods = {one["name"]: one for one in http.get("/v1/methods").json()["items"]}
    assert [one["name"] for one in methods["dreamfl"]["presets"]] == [
        "dreamreward-guidance1",
        "dreamreward-guidance2",
    ]
    assert {one["name"]: one["available"] for one in methods["sds"]["priors"]} == {
        "embedded": True,
        "mvdream": True,
        "stable-diffusion-2.1": True,
    }
    refused = http.post(
        "/generate", json={"prompt": "x", "preset": "psd-paper", "rewards": [{"name": "pickscore"}]}
    )
    assert refused.status_code == 422
    assert refused.json()["code"] == "method-unavailable"
    assert "model.safetensors (from yuvalkirstain/PickScore_v1)" in refused.json()["detail"]


def test_weights_that_changed_after_the_worker_looked_fail_the_job_by_name(
    made: Callable[..., dict[str, Any]], weights: Path
) -> None:
    path = weights / "mvdream" / MVDREAM
    sound = path.read_bytes()
    path.write_bytes(sound[:-1000])
    try:
        job = made(preset="mvdream-paper")
    finally:
        path.write_bytes(sound)
    assert job["error"]["code"] == "weights-missing"
    assert MVDREAM in job["error"]["detail"]
