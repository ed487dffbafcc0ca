"""The commands `dreamserve weights …`: which published checkpoints there are, are they sound, bring them in."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.terminal import print_json, say, usage

if TYPE_CHECKING:
    from workers.artifacts import Artifact
    from workers.weights_import import Verified

__all__ = ["weights_app"]

SHOWN = 5
"""Names of unused tensors that are shown."""

weights_app = typer.Typer(
    name="weights",
    help="Published checkpoints: list, check, import. Nothing is ever downloaded.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

Folder = Annotated[
    Path | None,
    typer.Option(help="The weights folder; default: DREAMSERVE_WEIGHTS_FOLDER, else in the data folder."),
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document a line.")]


@weights_app.command("list")
def list_weights(folder: Folder = None, as_json: AsJson = False) -> None:
    """List the priors and rewards that can be imported: files, size, license, present or missing.

    Of the shipped rewards, those that a retrained one has taken the place of.
    """
    from workers.artifacts import ARTIFACTS, retrained_in

    weights = _weights(folder)
    for artifact in (*ARTIFACTS.values(), *retrained_in(weights)):
        missing = artifact.missing(weights)
        if as_json:
            print_json(_described(artifact, missing))
            continue
        use = "commercial use allowed" if artifact.commercial_ok else "no commercial use"
        state = "missing" if missing else "present"
        typer.echo(f"{artifact.name:<22}{state:<9}{artifact.size:<18}{artifact.license} ({use})")
        for one in missing or map(str, artifact.files):
            typer.echo(f"    {'needs ' if missing else ''}{one}")
    say(
        f"The weights folder is {weights}. Bring in what you have fetched with `dreamserve weights import PATH`."
    )


@weights_app.command()
def check(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="Default: all there are.")
    ] = None,
    folder: Folder = None,
    as_json: AsJson = False,
) -> None:
    """Verify imported checkpoints: their hashes, and their layout by loading them; exit 1 if one is not sound."""
    from workers.artifacts import ARTIFACTS, RETRAINED, imported_into, retrained_in
    from workers.weights_import import check_artifact

    weights, known = _weights(folder), ARTIFACTS | RETRAINED
    if unknown := set(names or ()) - known.keys():
        usage(f"there is no artifact '{min(unknown)}'; there are {', '.join(known)}")
    chosen = [known[name] for name in names] if names else imported_into(weights)
    status = 0
    for artifact in chosen:
        if artifact.name in RETRAINED and artifact not in retrained_in(weights):
            say(f"{artifact.name} is the shipped one: `dreamserve doctor` checks that.")
            continue
        try:
            done = check_artifact(artifact, weights)
        except (ValueError, OSError) as error:
            status = 1
            _tell_fault(artifact.name, error, as_json)
            continue
        status = max(status, int(bool(done.missing)))
        _tell(done, "is sound", as_json)
    raise typer.Exit(status)


@weights_app.command("import")
def import_weights(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="The file or folder that was fetched.")],
    name: Annotated[
        str | None, typer.Option("--as", help="What it is, where its name does not tell (model.safetensors).")
    ] = None,
    link: Annotated[bool, typer.Option("--link", help="Link to the files instead of copying them.")] = False,
    folder: Folder = None,
    as_json: AsJson = False,
) -> None:
    """Verify a checkpoint and put it into the weights folder, whole or not at all; exit 2: foreign, 1: damaged."""
    from workers.artifacts import RETRAINED
    from workers.weights_import import import_files, recognize

    weights = _weights(folder)
    try:
        found = recognize(path, name)
    except ValueError as error:
        usage(str(error))
    for one in found:
        try:
            done = import_files(one, weights, link=link)
        except (ValueError, OSError) as error:
            _tell_fault(one.artifact.name, error, as_json)
            raise typer.Exit(1) from None
        _tell(done, "is imported", as_json)
        if done.name in RETRAINED:
            say(
                f"It takes the shipped reward's place; remove {one.artifact.folder(weights)} to go back to that."
            )
    say(
        "Restart the service now: what looks into the weights folder later finds the new, what runs has the old."
    )


def _described(artifact: Artifact, missing: list[str]) -> dict[str, Any]:
    return {
        "name": artifact.name,
        "kind": artifact.kind,
        "present": not missing,
        "missing": missing,
        "files": [
            {"name": file.name, "origin": file.origin, "sha256": file.sha256} for file in artifact.files
        ],
        "size": artifact.size,
        "license": artifact.license,
        "commercial_ok": artifact.commercial_ok,
    }


def _tell(done: Verified, what: str, as_json: bool) -> None:
    if as_json:
        print_json(done._asdict() | {"error": None})
        return
    if done.missing:
        typer.echo(f"{done.name} can be read, but is not whole: it needs {' and '.join(done.missing)}")
        return
    typer.echo(f"{done.name} {what}: sha256 {done.sha256}")
    if done.unused:
        shown = ", ".join(done.unused[:SHOWN]) + (" …" if len(done.unused) > SHOWN else "")
        say(f"  {len(done.unused)} tensors in it have no use here: {shown}")


def _tell_fault(name: str, error: Exception, as_json: bool) -> None:
    if as_json:
        print_json({"name": name, "sha256": None, "missing": [], "unused": [], "error": str(error)})
    say(f"Error: {name}: {error}")


def _weights(folder: Path | None) -> Path:
    from service.settings import Settings

    return Settings().weights_folder if folder is None else folder.expanduser().absolute()
