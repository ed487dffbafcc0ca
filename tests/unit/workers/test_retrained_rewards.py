"""A reward of one's own in the place of a shipped one: `dreamserve reward train`, `dreamserve weights import`, jobs."""

from __future__ import annotations

import hashlib
import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import safetensors.torch
from typer.testing import CliRunner

from reward_models.embedded import load_embedded_reward
from reward_models.trainable import Start, open_trainable
from service.jobs.admission import admit
from service.jobs.errors import Refused
from service.settings import Settings
from workers.doctor import check_weights
from workers.evaluation.run import used_weights
from workers.failures import WeightsMissing
from workers.main import app
from workers.networks import load_networks
from workers.opening import make_scene
from workers.weights import EMBEDDED_REWARDS, load_reward

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from click.testing import Result

MULTIVIEW, ALIGNMENT = EMBEDDED_REWARDS


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    """Settings with a weights folder that is not there yet."""
    monkeypatch.setenv("DREAMSERVE_WEIGHTS_FOLDER", str(tmp_path / "weights"))
    used_weights.cache_clear()
    yield Settings()
    used_weights.cache_clear()


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A reward as training writes it, under a name of the trainer's choice."""
    trained = open_trainable(Start(MULTIVIEW, EMBEDDED_REWARDS[MULTIVIEW], renew=("viewer",), seed=5))
    trained.write(tmp_path / "mine.safetensors", 0.0, 1.0, {"steps": 0})
    return tmp_path / "mine.safetensors"


def run(*arguments: object, status: int = 0) -> Result:
    result = CliRunner().invoke(app, ["weights", *map(str, arguments)])
    assert result.exit_code == status, result.output
    return result


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_jobs_use_it_until_it_is_removed(settings: Settings, mine: Path) -> None:
    shipped = load_networks(settings)
    before = used_weights(weak=False)
    done = run("import", mine, "--json")
    assert json.loads(done.stdout)["sha256"] == sha256(mine)
    folder = settings.weights_folder / MULTIVIEW
    assert f"remove {folder} to go back" in done.stderr
    assert MULTIVIEW in run("list").stdout
    assert "is sound" in run("check").stdout
    assert any(MULTIVIEW in one.found and one.status == "ok" for one in check_weights(settings))

    networks = load_networks(settings)
    assert networks.rewards[MULTIVIEW].card.weights_sha256 == sha256(mine)
    assert networks.rewards[ALIGNMENT].card == shipped.rewards[ALIGNMENT].card
    used_weights.cache_clear()
    assert (
        before
        != used_weights(weak=False)
        == before.replace(sha256(EMBEDDED_REWARDS[MULTIVIEW])[:8], sha256(mine)[:8])
    )

    shutil.rmtree(folder)
    assert load_networks(settings).rewards[MULTIVIEW].card == shipped.rewards[MULTIVIEW].card
    assert MULTIVIEW not in run("list").stdout
    assert "is the shipped one" in run("check", MULTIVIEW).stderr


def test_its_license_is_not_stated(settings: Settings, mine: Path) -> None:
    run("import", mine)
    networks = load_networks(settings)
    assert networks.rewards[MULTIVIEW].card.license == "NOASSERTION"
    assert networks.rewards[ALIGNMENT].card.license == "Apache-2.0"
    with pytest.raises(Refused, match="license"):
        admit({"prompt": "a red cube", "license_policy": "commercial_ok"}, networks.capabilities(), settings)


@pytest.mark.parametrize("how", ["deleted", "link without a target"])
def test_one_that_got_lost_is_told_and_not_replaced_by_the_shipped_one(
    settings: Settings, mine: Path, how: str
) -> None:
    run("import", mine, *(["--link"] if how != "deleted" else []))
    file = settings.weights_folder / MULTIVIEW / f"{MULTIVIEW}-reward.safetensors"
    (file if how == "deleted" else mine).unlink()
    with pytest.raises(ValueError, match=f"import the retrained '{MULTIVIEW}' again"):
        load_networks(settings)
    assert f"it needs {file.name}" in run("check", status=1).stdout
    assert any(MULTIVIEW in one.found and one.status == "fail" for one in check_weights(settings))


def test_it_steers_alone_as_nobody_knows_where_its_scores_lie(settings: Settings, mine: Path) -> None:
    both: dict[str, Any] = {
        "prompt": "a red cube",
        "method": "dreamfl",
        "rewards": [{"name": MULTIVIEW}, {"name": ALIGNMENT}],
    }
    accepted = admit(both, load_networks(settings).capabilities(), settings).spec
    run("import", mine)
    can = load_networks(settings).capabilities()
    assert (can.rewards[MULTIVIEW].typical, can.rewards[MULTIVIEW].weights) == (
        None,
        f"sha256:{sha256(mine)}",
    )
    assert can.rewards[ALIGNMENT].typical is not None
    with pytest.raises(Refused, match=f"'{MULTIVIEW}' cannot be mixed with other rewards"):
        admit(both, can, settings)
    with pytest.raises(WeightsMissing, match=f"'{MULTIVIEW}' was retrained after this job was accepted"):
        make_scene(accepted, load_networks(settings))
    admit({**both, "rewards": [{"name": MULTIVIEW}]}, can, settings)


def test_a_file_that_holds_another_reward_changes_nothing(settings: Settings, mine: Path) -> None:
    wrong = run("import", mine, "--as", ALIGNMENT, status=1)
    assert f"holds the reward '{MULTIVIEW}', not '{ALIGNMENT}'" in wrong.stderr
    assert not (settings.weights_folder / ALIGNMENT).exists()


@pytest.mark.parametrize("fault", ["truncated", "misshapen", "foreign", "newer"])
def test_a_damaged_file_changes_nothing(settings: Settings, mine: Path, fault: str) -> None:
    run("import", mine)
    match fault:
        case "truncated":
            mine.write_bytes(mine.read_bytes()[:-100])
            said = "cannot be read as safetensors"
        case "newer":
            metadata = {"embedded_reward": json.dumps({"name": MULTIVIEW, "layers": 3})}
            safetensors.torch.save_file(safetensors.torch.load_file(mine), mine, metadata)
            said = "'embedded_reward' in its metadata is not ours"
        case "misshapen":
            tensors, config = safetensors.torch.load_file(mine), load_embedded_reward(mine).config
            first = sorted(tensors)[0]
            safetensors.torch.save_file(
                tensors | {first: tensors[first][:1].clone()}, mine, {"embedded_reward": config.to_json()}
            )
            said = f"missing, unknown or misshapen tensor '{first}'"
        case _:
            mine.write_text("<html>404</html>")
            said = "cannot be read as safetensors"
    good = load_reward(MULTIVIEW, settings.weights_folder).card
    assert said in run("import", mine, "--as", MULTIVIEW, status=1).stderr
    assert load_reward(MULTIVIEW, settings.weights_folder).card == good


def test_a_worker_does_not_start_with_a_damaged_one(settings: Settings, mine: Path) -> None:
    run("import", mine)
    file = settings.weights_folder / MULTIVIEW / f"{MULTIVIEW}-reward.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=f"{file.name} cannot be read as safetensors"):
        load_networks(settings)
    assert "has changed since its import" in run("check", status=1).stderr
    assert any(MULTIVIEW in one.found and one.status == "fail" for one in check_weights(settings))
