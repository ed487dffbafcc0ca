"""`dreamserve weights`: bring checkpoints in whole or not at all, find what is wrong with them, list what there is."""

from __future__ import annotations

import hashlib
import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import torch
from typer.testing import CliRunner

from reward_models import clip
from tests.unit.workers.priors.tiny_priors import write_mvdream_folder
from tests.unit.workers.published_weights import MVDREAM, SMALL_CLIP, write_fetched
from workers.artifacts import ARTIFACTS, FOLDER_WEIGHTS, commercial_use, file_hashes, fingerprint
from workers.main import app
from workers.priors import diffusers_folder
from workers.published_priors import load_prior
from workers.survey import survey
from workers.weights import load_reward

if TYPE_CHECKING:
    from pathlib import Path

    from click.testing import Result


@pytest.fixture(scope="module")
def fetched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files as they are fetched: to be read, not to be changed."""
    return write_fetched(tmp_path_factory.mktemp("fetched"))


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty weights folder, which the settings name; HPS is small."""
    monkeypatch.setenv("DREAMSERVE_WEIGHTS_FOLDER", str(tmp_path / "weights"))
    monkeypatch.setattr(clip, "VIT_H_14", SMALL_CLIP)
    return tmp_path / "weights"


def run(*arguments: object, status: int = 0) -> Result:
    result = CliRunner().invoke(app, ["weights", *map(str, arguments)])
    assert result.exit_code == status, result.output
    return result


def documents(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_list_names_files_sizes_licenses_and_what_is_missing(weights: Path) -> None:
    listed = {one["name"]: one for one in documents(run("list", "--json"))}
    assert listed.keys() == ARTIFACTS.keys()
    mvdream = listed["mvdream"]
    assert mvdream["missing"] == ["sd-v2.1-base-4view.pt (from MVDream/MVDream)"]
    assert (mvdream["present"], mvdream["size"], mvdream["commercial_ok"]) == (False, "5.22 GB", True)
    assert listed["reward3d"]["commercial_ok"] is False
    text = run("list")
    assert "needs vocab.txt (from google-bert/bert-base-uncased)" in text.stdout
    assert str(weights) in text.stderr
    assert not weights.exists()


def test_a_checkpoint_is_imported_whole_and_named_by_its_hash(fetched: Path, weights: Path) -> None:
    (done,) = documents(run("import", fetched / MVDREAM, "--json"))
    sha256 = hashlib.sha256((fetched / MVDREAM).read_bytes()).hexdigest()
    assert (done["name"], done["sha256"], done["missing"]) == ("mvdream", sha256, [])
    assert (weights / "mvdream" / MVDREAM).read_bytes() == (fetched / MVDREAM).read_bytes()
    facts = survey(weights).priors["mvdream"]
    assert (facts.weights, facts.views) == (f"sha256:{sha256}", 4)
    assert load_prior("mvdream", weights).latent_shape == (4, 8, 8)
    assert f"sha256 {sha256}" in run("check").stdout
    assert [path.name for path in weights.iterdir()] == ["mvdream"]


@pytest.mark.parametrize("name", ["mvdream", "stable-diffusion-2.1"])
def test_a_diffusers_folder_is_imported_by_what_it_holds(
    fetched: Path, weights: Path, tmp_path: Path, name: str
) -> None:
    source = fetched / "stable-diffusion-2-1-base"
    if name == "mvdream":
        source = tmp_path / "fetched"
        write_mvdream_folder(source)
    (source / "README.md").write_text("not wanted")
    run("import", source)
    assert not (weights / name / "README.md").exists()
    prior = load_prior(name, weights)
    assert survey(weights).priors[name].weights == f"sha256:{prior.sha256}"


def test_a_reward_is_whole_when_its_vocabulary_has_come_too(fetched: Path, weights: Path) -> None:
    first = run("import", fetched / "Reward3D_Scorer.safetensors")
    assert "it needs vocab.txt (from google-bert/bert-base-uncased)" in first.stdout
    absent = survey(weights).absent_rewards["reward3d"]
    assert absent.missing == ("vocab.txt (from google-bert/bert-base-uncased)",)
    assert "dreamserve weights import" in absent.how
    second = documents(run("import", fetched / "vocab.txt", "--json"))
    assert {one["name"] for one in second} == {"imagereward", "reward3d", "reward3d-crossview"}
    facts, card = survey(weights).rewards["reward3d"], load_reward("reward3d", weights).card
    assert facts.weights == f"sha256:{card.weights_sha256}"
    assert (facts.views, facts.license, facts.differentiable) == (card.views, card.license, True)
    assert facts.details["uses_prompt"] == card.uses_prompt
    assert run("check", "reward3d").exit_code == 0


def test_what_was_imported_before_stays_beside_what_is_linked_to(fetched: Path, weights: Path) -> None:
    run("import", fetched / "vocab.txt")
    run("import", fetched / "Reward3D_Scorer.safetensors", "--link")
    run("import", fetched / "vocab.txt", "--link")
    assert load_reward("reward3d", weights).card.name == "reward3d"


def test_a_link_costs_no_room(fetched: Path, weights: Path) -> None:
    run("import", fetched / "HPS_v2.1_compressed.pt", "--link")
    assert (weights / "hpsv2.1" / "HPS_v2.1_compressed.pt").is_symlink()
    assert load_reward("hpsv2.1", weights).card.name == "hpsv2.1"
    run("check")


@pytest.mark.parametrize("kind", ["truncated", "foreign tensor", "not finite", "no file of weights"])
def test_a_damaged_checkpoint_changes_nothing(
    fetched: Path, weights: Path, tmp_path: Path, kind: str
) -> None:
    run("import", fetched / MVDREAM)
    before = tree(weights)
    bad = tmp_path / MVDREAM
    shutil.copy(fetched / MVDREAM, bad)
    shutil.copy((fetched / MVDREAM).with_suffix(".json"), bad.with_suffix(".json"))
    tensors = torch.load(bad, weights_only=True)
    match kind:
        case "truncated":
            bad.write_bytes(bad.read_bytes()[:-1000])
            said = "cannot be read as weights"
        case "foreign tensor":
            del tensors["model.diffusion_model.out.2.bias"]
            torch.save(tensors | {"model.diffusion_model.label": torch.zeros(1)}, bad)
            said = "misses 1 tensors: 'out.2.bias'"
        case "not finite":
            tensors["model.diffusion_model.out.2.bias"].fill_(torch.nan)
            torch.save(tensors, bad)
            said = "tensor 'out.2.bias' is not finite"
        case _:
            bad.write_text("<html>404</html>")
            said = "cannot be read as weights"
    result = run("import", bad, status=1)
    assert MVDREAM in result.stderr
    assert said in result.stderr
    assert tree(weights) == before


def test_what_is_no_published_network_is_refused(weights: Path, tmp_path: Path) -> None:
    (tmp_path / "model.ckpt").write_bytes(b"x")
    assert (
        "is no file or folder of a published network"
        in run("import", tmp_path / "model.ckpt", status=2).stderr
    )
    assert "there is nothing at" in run("import", tmp_path / "absent.pt", status=2).stderr
    (tmp_path / "model.safetensors").write_bytes(b"x")
    ambiguous = run("import", tmp_path / "model.safetensors", status=2).stderr
    assert "may belong to pickscore, clip, aesthetic; say to which with --as NAME" in ambiguous
    wrong = run("import", tmp_path / "model.ckpt", "--as", "clip", status=2).stderr
    assert "'clip' needs model.safetensors" in wrong
    assert "there is no artifact 'sdxl'" in run("import", tmp_path, "--as", "sdxl", status=2).stderr
    assert "there is no artifact 'sdxl'" in run("check", "sdxl", status=2).stderr
    assert not weights.exists()


def test_a_file_that_was_changed_after_its_import_is_found(fetched: Path, weights: Path) -> None:
    run("import", fetched / MVDREAM)
    path = weights / "mvdream" / MVDREAM
    path.write_bytes(path.read_bytes() + b"x")
    assert f"{MVDREAM} has changed since its import" in run("check", status=1).stderr


def test_a_sum_of_files_is_read_once_and_again_when_a_file_changes(fetched: Path, weights: Path) -> None:
    run("import", fetched / "HPS_v2.1_compressed.pt")
    artifact = ARTIFACTS["hpsv2.1"]
    noted = file_hashes(artifact, weights)
    receipt = weights / "hpsv2.1" / "receipt.json"
    receipt.write_text(receipt.read_text().replace(fingerprint(artifact, noted), "0" * 64))
    assert fingerprint(artifact, file_hashes(artifact, weights)) == "0" * 64
    (weights / "hpsv2.1" / "HPS_v2.1_compressed.pt").touch()
    assert file_hashes(artifact, weights) == noted
    receipt.write_text("{")
    assert file_hashes(artifact, weights) == noted


def test_licenses_that_are_not_known_to_allow_commercial_use_do_not() -> None:
    assert commercial_use("Apache-2.0 AND MIT")
    assert not commercial_use("MIT AND CC-BY-NC-4.0")
    assert not commercial_use("NOASSERTION")


def test_the_names_of_a_folders_files_are_those_that_its_reader_takes() -> None:
    assert FOLDER_WEIGHTS == diffusers_folder._WEIGHTS
