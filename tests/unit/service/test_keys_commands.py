"""`dreamserve keys …`, and the client with a key: against a real database and a real service."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from service.cli import app as client_app
from service.client import Client, UnauthorizedError
from service.jobs.keys import KeyStore
from service.keys_commands import keys_app
from service.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path

    from service.jobs.store import JobStore


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    for name in ("DATABASE_URL", "API_KEY"):
        monkeypatch.delenv(f"DREAMSERVE_{name}", raising=False)
    return Settings(data_dir=tmp_path / "data", auth="on")


def run(settings: Settings, *arguments: str, code: int = 0) -> tuple[str, str]:
    """Run a command on the service's data folder: what it printed, and what it said."""
    result = CliRunner().invoke(keys_app, [*arguments, "--data-dir", str(settings.data_dir)])
    assert result.exit_code == code, result.stderr
    return result.stdout.strip(), result.stderr


def test_a_key_is_made_listed_and_revoked(settings: Settings, store: JobStore) -> None:
    token, said = run(settings, "create", "--name", "studio", "--max-running", "2")
    assert token.startswith("ds_")
    assert token not in said
    assert KeyStore(store.database).authenticate(token) == ("studio", {"read", "submit"})
    listed = json.loads(run(settings, "list", "--json")[0])
    assert (listed["quotas"]["max_running"], listed["revoked_at"]) == (2, None)
    assert token not in str(listed)
    for _ in range(2):
        assert run(settings, "revoke", listed["id"])[0] == listed["id"]
    assert KeyStore(store.database).authenticate(token) is None
    assert "revoked 20" in run(settings, "list")[0]


def test_the_whole_key_document_is_printed_on_wish(settings: Settings) -> None:
    scopes = ("--scope", "admin", "--scope", "read")
    made = json.loads(run(settings, "create", "--name", "ops", "--owner", "team", *scopes, "--json")[0])
    assert (made["owner"], made["scopes"], made["token"][:3]) == ("team", ["read", "admin"], "ds_")


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (("--name", "a b"), "--name"),
        (("--name", "a", "--scope", "root"), "--scope"),
        (("--name", "a", "--weight", "0"), "--weight"),
        (("--name", "a", "--max-running", "-1"), "--max-running"),
    ],
)
def test_a_wrong_option_is_named(settings: Settings, arguments: tuple[str, ...], option: str) -> None:
    assert f"Error: {option}: " in run(settings, "create", *arguments, code=2)[1]


def test_a_key_that_does_not_exist_cannot_be_revoked(settings: Settings) -> None:
    assert "there is no key 'key_x'" in run(settings, "revoke", "key_x", code=4)[1]


def test_the_client_sends_its_key(
    url: str, settings: Settings, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = run(settings, "create", "--name", "studio")[0]
    with Client(url, api_key=token) as client:
        job_id = client.generate("a cat").id
    with Client(url) as client, pytest.raises(UnauthorizedError) as caught:
        client.job(job_id)
    assert (caught.value.status, caught.value.code) == (401, "unauthenticated")
    monkeypatch.setenv("DREAMSERVE_API_KEY", token)
    with Client(url) as client:
        assert client.job(job_id).id == job_id


def test_the_command_line_ends_with_3_without_a_valid_key(
    url: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = CliRunner().invoke(client_app, ["ls", "--url", url])
    assert result.exit_code == 3
    assert "carries no API key" in result.stderr
    reader = run(settings, "create", "--name", "reader", "--scope", "read")[0]
    monkeypatch.setenv("DREAMSERVE_API_KEY", reader)
    assert CliRunner().invoke(client_app, ["ls", "--url", url]).exit_code == 0
    refused = CliRunner().invoke(client_app, ["submit", "a cat", "--url", url])
    assert refused.exit_code == 3
    assert "the scope 'submit'" in refused.stderr


def test_a_key_that_cannot_be_one_is_refused_before_it_is_sent() -> None:
    with pytest.raises(ValueError, match="copy it again"):
        Client(api_key="ds_ä\n")
