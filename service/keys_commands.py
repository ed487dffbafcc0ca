"""The commands `dreamserve keys …`: they work on the settings' database, so that a first key can be made."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.terminal import say

if TYPE_CHECKING:
    from collections.abc import Iterator

    from service.jobs.documents import Document
    from service.jobs.keys import KeyStore

__all__ = ["keys_app"]

USAGE, NOT_FOUND = 2, 4

keys_app = typer.Typer(
    name="keys",
    help="API keys: create, list, revoke; directly in the service's database.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

DataDir = Annotated[
    Path | None,
    typer.Option(help="The service's data folder, if DREAMSERVE_DATABASE_URL does not name its database."),
]


@keys_app.command()
def create(
    name: Annotated[str, typer.Option(help="Tells people which key it is.")],
    owner: Annotated[
        str | None, typer.Option(help="Whose jobs it sees and makes; default: the name.")
    ] = None,
    scope: Annotated[
        list[str] | None,
        typer.Option(help="read, submit or admin; may be repeated. Default: read and submit."),
    ] = None,
    weight: Annotated[
        float, typer.Option(help="Its owner's share of the workers, beside those of others.")
    ] = 1.0,
    max_queued: Annotated[int | None, typer.Option(help="Quota: jobs queued at a time.")] = None,
    max_running: Annotated[int | None, typer.Option(help="Quota: jobs running at a time.")] = None,
    max_worker_s_per_day: Annotated[float | None, typer.Option(help="Quota: worker seconds a day.")] = None,
    data_dir: DataDir = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole key document.")] = False,
) -> None:
    """Make a key and print it: the only time that anybody can see it."""
    from pydantic import ValidationError

    from service.jobs.keys import NewKey

    quotas = {
        "max_queued": max_queued,
        "max_running": max_running,
        "max_worker_s_per_day": max_worker_s_per_day,
    }
    fields: dict[str, Any] = {"name": name, "owner": owner, "weight": weight, "quotas": quotas}
    try:
        new = NewKey.model_validate(fields | ({"scopes": scope} if scope else {}))
    except ValidationError as error:
        for wrong in error.errors():
            option = str(wrong["loc"][-1 if wrong["loc"][0] == "quotas" else 0]).removesuffix("s")
            say(f"Error: --{option.replace('_', '-')}: {wrong['msg']}; found {wrong['input']!r}")
        raise typer.Exit(USAGE) from None
    with _keys(data_dir) as keys:
        document, token = keys.create(new)
    typer.echo(json.dumps({**document, "token": token}) if as_json else token)
    say(
        f"Made {document['id']} for {document['owner']} ({', '.join(document['scopes'])}). Keep the key: only its "
        "hash is stored. Clients read it from DREAMSERVE_API_KEY."
    )


@keys_app.command("list")
def list_keys(
    data_dir: DataDir = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document a line.")] = False,
) -> None:
    """List all keys, revoked ones too, the oldest first."""
    with _keys(data_dir) as keys:
        documents = keys.list_keys()
    for document in documents:
        typer.echo(json.dumps(document) if as_json else _line(document))


@keys_app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="KEY_ID", help="A key's id (key_…).")],
    data_dir: DataDir = None,
) -> None:
    """End a key at once; harmless to repeat. Its owner's jobs stay, and go on."""
    with _keys(data_dir) as keys:
        document = keys.revoke(key_id)
    if document is None:
        say(f"Error: there is no key {key_id!r} here; `dreamserve keys list` shows what there is.")
        raise typer.Exit(NOT_FOUND)
    say(f"Revoked {key_id} ({document['name']}).")
    typer.echo(key_id)


@contextlib.contextmanager
def _keys(data_dir: Path | None) -> Iterator[KeyStore]:
    from service.jobs.database import Database
    from service.jobs.errors import StoreUnavailable
    from service.jobs.keys import KeyStore
    from service.settings import Settings

    settings = Settings() if data_dir is None else Settings(data_dir=data_dir)
    try:
        database = Database(settings.database_url)
        try:
            yield KeyStore(database)
        finally:
            database.close()
    except (StoreUnavailable, ValueError) as error:
        say(f"Error: {error}")
        raise typer.Exit(1) from None


def _line(document: Document) -> str:
    if document["revoked_at"] is not None:
        state = f"revoked {document['revoked_at']}"
    else:
        state = f"last used {document['last_used_at'] or 'never'}"
    who = f"{document['name']:<20}  {document['owner']:<20}  {','.join(document['scopes']):<17}"
    return f"{document['id']}  {who}  {state}"
