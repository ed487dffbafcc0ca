"""`dreamserve doctor`: each check finds a real fault, says what was expected and what to do, and fails the command."""

from __future__ import annotations

import json
import os
import shutil
import socket
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

from service.doctor import check_database, check_metrics, check_objects, check_workers
from service.jobs import troubles
from service.jobs.database import Database, database_time
from service.settings import Settings
from tests.unit.reward_models.small_qwen import write_folder
from tests.unit.service.conftest import api, objects, store, url  # noqa: F401 - fixtures
from workers import weights
from workers.artifacts import ARTIFACTS, write_receipt
from workers.doctor import check_gpu, check_judge, check_ray, check_weights
from workers.judges import judge_facts
from workers.main import app

if TYPE_CHECKING:
    from pathlib import Path

    from service.doctor import Checked


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data")


def doctor(*arguments: str, **environment: str) -> tuple[int, dict[str, Any]]:
    """Exit code, and checks by name."""
    answer = CliRunner().invoke(app, ["doctor", "--json", *arguments], env=environment)
    document = json.loads(answer.stdout)
    assert document["ok"] == (answer.exit_code == 0)
    return answer.exit_code, {one["name"]: one for one in document["checks"]}


def is_fault(one: Checked, found: str, expected: str, action: str) -> None:
    assert one.status == "fail"
    assert found in one.found
    assert expected in one.expected
    assert action in one.action


def nowhere() -> int:
    """A port at which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_sound_installation_passes(settings: Settings, url: str) -> None:  # noqa: F811
    database = Database(settings.database_url)
    with database.reading():
        pass
    database.close()
    code, checks = doctor("--data-dir", str(settings.data_dir), "--url", url)
    assert code == 0, checks
    assert checks.keys() == {"gpu", "weights", "database", "clock", "workers", "objects", "ray", "metrics"}
    assert {one["status"] for one in checks.values()} == {"ok"}
    assert not list((settings.data_dir / "objects").glob("**/self-test/*"))


def test_what_is_not_there_yet_is_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    code, checks = doctor("--data-dir", str(folder))
    assert code == 0
    assert checks["metrics"]["status"] == "skipped"
    assert not (folder / "jobs.sqlite3").exists()


def test_people_read_what_to_do(tmp_path: Path) -> None:
    answer = CliRunner().invoke(
        app, ["doctor", "--data-dir", str(tmp_path), "--url", f"http://127.0.0.1:{nowhere()}"]
    )
    assert answer.exit_code == 1
    told = answer.stdout.splitlines()
    failed = next(number for number, line in enumerate(told) if line.startswith("fail    metrics"))
    assert "expected: the service's metrics" in told[failed + 1]
    assert "to do: Start the service" in told[failed + 2]


def test_a_database_that_is_down(tmp_path: Path) -> None:
    secret = "hidden"
    settings = Settings(
        data_dir=tmp_path, database_url=f"postgresql://me:{secret}@127.0.0.1:{nowhere()}/jobs"
    )
    (found,) = check_database(settings)
    is_fault(found, "Connection refused", "an answer", "DREAMSERVE_DATABASE_URL")
    assert secret not in found.found


def test_a_database_of_a_newer_release(settings: Settings) -> None:
    database = Database(settings.database_url)
    with database.writing() as tx:
        tx.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    database.close()
    (found,) = check_database(settings)
    is_fault(found, "9999 of a newer release", "or older", "")


@pytest.mark.parametrize("ahead_s", [60, -60])
def test_a_clock_that_is_wrong(settings: Settings, ahead_s: float) -> None:
    Database(settings.database_url).look()
    _, clock = check_database(settings, lambda connection: database_time(connection) + ahead_s)
    is_fault(clock, "differ by 60", "at most 5 s", "NTP")
    _, clock = check_database(settings)
    assert clock.status == "ok"


def test_an_object_store_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    is_fault(
        check_objects(Settings(objects_url=(tmp_path / "file").as_uri())),
        "did not answer",
        "put",
        "OBJECTS_URL",
    )
    is_fault(
        check_objects(Settings(objects_url="ftp://x")), "expected file:///FOLDER", "store", "OBJECTS_URL"
    )


def test_credentials_that_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in {
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_SHARED_CREDENTIALS_FILE": "/nowhere",
        "AWS_CONFIG_FILE": "/nowhere",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    is_fault(
        check_objects(Settings(objects_url="s3://meshes")),
        "set AWS_ACCESS_KEY_ID and AWS_SECRET",
        "put",
        "AWS_*",
    )


def test_shipped_weights_that_are_damaged(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / weights.EMBEDDED_PRIOR.name
    shutil.copy(weights.EMBEDDED_PRIOR.with_suffix(".sha256"), tmp_path)
    content = bytearray(weights.EMBEDDED_PRIOR.read_bytes())
    content[-1] ^= 1
    copy.write_bytes(content)
    monkeypatch.setattr(weights, "EMBEDDED_PRIOR", copy)
    (found,) = check_weights(settings)
    is_fault(found, f"{copy} is damaged", "the shipped files", "train-embedded")
    copy.unlink()
    (found,) = check_weights(settings)
    is_fault(found, f"{copy} is missing", "the shipped files", "train-embedded")


def test_imported_weights_that_have_changed_though_size_and_time_are_the_same(settings: Settings) -> None:
    artifact = ARTIFACTS["reward3d"]
    folder = artifact.folder(settings.weights_folder)
    folder.mkdir(parents=True)
    names = [file.name for file in artifact.files]
    (folder / names[0]).write_bytes(b"weights")
    _, found = check_weights(settings)
    is_fault(found, f"reward3d in {folder} needs {names[1]}", "all files", "weights import")
    for name in names[1:]:
        (folder / name).write_bytes(b"words")
    write_receipt(artifact, settings.weights_folder, dict.fromkeys(names, "0" * 64))
    _, found = check_weights(settings)
    is_fault(found, f"{names[0]} and {names[1]} in {folder} changed", "imported", "weights import")


@pytest.mark.parametrize(
    ("wish", "name"),
    [({"device": "cuda"}, "DREAMSERVE_DEVICE"), ({"worker_gpus": 1}, "DREAMSERVE_WORKER_GPUS")],
)
def test_a_gpu_that_is_wanted_and_is_not_there(
    wish: dict[str, Any], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    is_fault(check_gpu(Settings(**wish)), "finds no GPU", "a GPU, as DREAMSERVE_", f"unset {name}")


def test_a_ray_of_another_release(settings: Settings) -> None:
    is_fault(
        check_ray(settings, None, installed="2.9.0"), "Ray 2.9.0 is installed", ">=2.60", "pip install 'ray["
    )


def test_a_cluster_that_is_not_there(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.doctor.CONNECT_S", 0.0)
    is_fault(check_ray(settings, f"127.0.0.1:{nowhere()}"), "no Ray cluster answered", "answers", "--address")


def test_workers_that_did_not_start(settings: Settings) -> None:
    database = Database(settings.database_url)
    with database.writing() as tx:
        troubles.note(tx, "worker", "torch finds no GPU. Give it one")
    database.close()
    (found,) = check_workers(settings)
    is_fault(found, "torch finds no GPU. Give it one", "workers that start", "forgotten")


def test_a_judges_folder_that_is_not_whole_or_not_what_was_read(settings: Settings, tmp_path: Path) -> None:
    folder = tmp_path / "qwen"
    settings = settings.model_copy(update={"judge_folder": folder})
    (found,) = check_judge(settings)
    is_fault(found, "the folder qwen is not there", "a whole folder", "unset DREAMSERVE_JUDGE_FOLDER")
    write_folder(folder)
    (found,) = check_judge(settings)
    assert (found.status, found.found) == ("ok", "qwen, 5 file(s) of weights, whole")
    judge_facts(settings)  # as a worker reads them
    assert [one.status for one in check_judge(settings)] == ["ok"]
    weights_file = max(folder.glob("*.safetensors"))
    content, stat = bytearray(weights_file.read_bytes()), weights_file.stat()
    content[-1] ^= 1
    weights_file.write_bytes(content)
    os.utime(weights_file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    (found,) = check_judge(settings)
    is_fault(found, f"{weights_file.name} in {folder} changed", "the bytes that were read", "anew")
    (folder / "tokenizer.json").unlink()
    (found,) = check_judge(settings)
    is_fault(found, "tokenizer.json is missing", "a whole folder", "Fetch")


def test_another_service_where_metrics_should_be(url: str) -> None:  # noqa: F811
    is_fault(check_metrics(f"{url}/docs", required=True), "HTTP 404", "metrics", "readyz")
