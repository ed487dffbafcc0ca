"""The command `dreamserve fsck`: the object store against the database, both as the settings name them."""

from __future__ import annotations

import json
from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from service.settings import Settings
from service.terminal import say

if TYPE_CHECKING:
    from service.jobs.inventory import Finding, Inventory

__all__ = ["fsck"]


def fsck(
    repair: Annotated[
        bool,
        typer.Option("--repair", help="Delete orphans, declare lost artifacts gone, forget checkpoints."),
    ] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Believe what the store says of size and sha256; read no bytes.")
    ] = False,
    data_dir: Annotated[Path | None, typer.Option(help="Folder of the database and objects.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document a line.")] = False,
) -> None:
    """Compare the object store with the database; exit 1 if an object is missing, damaged or nobody's.

    May run beside a working service. With --repair, exit 1 only if something is left that a person must decide.
    """
    from service.jobs.database import Database
    from service.jobs.errors import StoreUnavailable
    from service.jobs.inventory import Inventory, WrongStore
    from service.jobs.objects import open_object_store

    settings = Settings() if data_dir is None else Settings(data_dir=data_dir)
    try:
        database, objects = Database(settings.database_url), open_object_store(settings.objects_url)
        inventory = Inventory(database, objects)
        findings = list(inventory.find(quick=quick))
        num_left = sum(not _settle(inventory, finding, repair, as_json) for finding in findings)
    except (StoreUnavailable, ValueError, WrongStore) as error:
        _refuse(str(error))
    database.close()
    say(f"{inventory.num_sound} objects are as the database says, {len(findings)} are not.")
    if num_left and not repair and any(finding.remedy for finding in findings):
        say("Repair what can be repaired with `dreamserve fsck --repair`.")
    raise typer.Exit(int(num_left > 0))


def _settle(inventory: Inventory, finding: Finding, repair: bool, as_json: bool) -> bool:
    """Tell a finding, after doing what can be done if that was wished; whether it was."""
    is_settled = repair and inventory.repair(finding)
    if as_json:
        document = {"trouble": finding.trouble, "key": finding.key, "detail": finding.detail}
        typer.echo(json.dumps(document | {"repaired": is_settled}))
    else:
        typer.echo(
            f"{'repaired ' if is_settled else ''}{finding.trouble:<10} {finding.key}  ({finding.detail})"
        )
    return is_settled


def _refuse(sentence: str) -> NoReturn:
    say(f"Error: {sentence}")
    raise typer.Exit(1)
