from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from pydantic import ValidationError

from service.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"DREAMSERVE_{name.upper()}", raising=False)


def test_everything_lies_in_the_data_folder_by_default(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    assert settings.database_url == f"sqlite:///{tmp_path}/jobs.sqlite3"
    assert settings.objects_url == f"file://{tmp_path}/objects"


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DREAMSERVE_DATABASE_URL", "postgresql://db/jobs")
    monkeypatch.setenv("DREAMSERVE_OBJECTS_URL", "s3://meshes/p")
    monkeypatch.setenv("DREAMSERVE_REWARD_PLACEMENT", "local")
    monkeypatch.setenv("DREAMSERVE_LEASE_S", "30")
    settings = Settings()
    assert settings.database_url == "postgresql://db/jobs"
    assert settings.objects_url == "s3://meshes/p"
    assert (settings.reward_placement, settings.lease_s) == ("local", 30)


def test_what_kubernetes_injects_for_a_service_does_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DREAMSERVE_PORT", "tcp://10.0.0.1:8000")
    monkeypatch.setenv("DREAMSERVE_SERVICE_HOST", "10.0.0.1")
    Settings()
    assert not any(name == "port" or name.startswith("service_") for name in Settings.model_fields)


def test_a_wrong_setting_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DREAMSERVE_LEASE_S", "-1")
    with pytest.raises(ValidationError, match="lease_s"):
        Settings()


def test_there_is_one_judge_an_endpoint_or_a_folder(tmp_path: Path) -> None:
    for one in ({"judge_url": "http://judge/v1"}, {"judge_folder": tmp_path}):
        Settings(**one)
    with pytest.raises(ValidationError, match="JUDGE_URL and DREAMSERVE_JUDGE_FOLDER are both set"):
        Settings(judge_url="http://judge/v1", judge_folder=tmp_path)
