"""The commands `dreamserve batch …`: many prompts as one thing, from a file to a folder of meshes."""

from __future__ import annotations

import hashlib
import json
import re
from functools import partial
from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from service.batch_files import BadFile, batch_lines
from service.client import DEFAULT_URL, Client
from service.client_batches import BatchHandle, batch_of, submit_batch
from service.client_errors import WaitTimeoutError
from service.progress import printable
from service.terminal import explained_errors, print_json, say, stderr, usage

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["batch_app"]

FILE_NAME: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,99}")
"""A custom_id that may name a file as it is: no separators, nothing hidden, on any system."""
NUM_SHOWN: Final = 10
LINE_EVERY: Final = 0.1
"""Fraction of the jobs between two lines where there is no terminal to draw a bar on."""

batch_app = typer.Typer(
    name="batch",
    help="Many prompts as one batch: submit a file, watch, steer, fetch the results.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

BatchId = Annotated[
    str, typer.Argument(metavar="BATCH_ID", help="A batch's id (batch_…).", show_default=False)
]
Url = Annotated[str, typer.Option(help="Where the service answers.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the whole batch document on stdout.")]


@batch_app.command()
def submit(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help=".jsonl ({custom_id, body} a line), .csv (columns), .txt (prompts)."
        ),
    ],
    defaults: Annotated[str | None, typer.Option(help="Fields of every job, a JSON object.")] = None,
    sweep: Annotated[
        str | None, typer.Option(help='A grid over fields, such as {"method.push": [0, 2], "seed": [1, 2]}.')
    ] = None,
    max_parallel: Annotated[int | None, typer.Option(min=1, help="Jobs queued or running at a time.")] = None,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Submit the lines of a file as one batch and print its id, without waiting."""
    if not file.is_file():
        usage(f"there is no file {file}.")
    fields, grid = _json(defaults, "--defaults"), _json(sweep, "--sweep")
    with explained_errors(), Client(url) as client:
        try:
            lines = partial(batch_lines, file)
            batch = submit_batch(client, lines, defaults=fields, sweep=grid, max_parallel=max_parallel)
        except BadFile as error:
            usage(str(error))
        invalid = batch.counts["invalid"]
        say(f"{batch.counts['total'] - invalid} jobs; follow them: dreamserve batch watch {batch.id}")
        if invalid:
            say(f"{invalid} more are not valid and are left out, the first for these reasons:")
            for problem in batch.document["problems"][:NUM_SHOWN]:
                say(f"  line {problem['line']}: {problem['pointer']}: {printable(problem['detail'])}")
        _print(batch, as_json)


@batch_app.command()
def watch(
    batch_id: BatchId,
    timeout: Annotated[
        float | None, typer.Option(help="Seconds to wait; then exit 5, and the batch goes on.")
    ] = None,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Follow a batch to its end: exit 0 if every line has succeeded; interrupting this does not interrupt it."""
    with explained_errors(), Client(url) as client:
        batch = batch_of(client, batch_id)
        try:
            _follow(batch, timeout)
        except (KeyboardInterrupt, WaitTimeoutError):
            say(f"Batch {batch.id} goes on. End it: dreamserve batch cancel {batch.id}")
            raise
        say(f"{batch.id} is {batch.status}: {_summary(batch.counts)}")
        if as_json:
            print_json(batch.document)
        if batch.counts["succeeded"] < batch.counts["total"]:
            raise typer.Exit(1)


@batch_app.command()
def results(
    batch_id: BatchId,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Also write the meshes into this folder.")
    ] = None,
    status: Annotated[
        str | None, typer.Option(help="Only lines that are succeeded, failed, invalid, …")
    ] = None,
    url: Url = DEFAULT_URL,
) -> None:
    """Print what became of each line, as JSON, also while the batch runs; run it again to fetch what has come since."""
    with explained_errors(), Client(url) as client:
        batch, num_written = batch_of(client, batch_id), 0
        if output is not None:
            output.mkdir(parents=True, exist_ok=True)
        for result in batch.results(status):
            print_json(result)
            if output is not None and result["status"] == "succeeded":
                num_written += _fetch(client, result, output)
        if output is not None:
            say(f"Wrote {num_written} meshes to {output}; those that were there already stay.")


@batch_app.command("retry-failed")
def retry_failed(batch_id: BatchId, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Make a new job for each line whose job has failed."""
    _steer(batch_id, BatchHandle.retry_failed, url, as_json)


@batch_app.command()
def cancel(batch_id: BatchId, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """End all jobs of a batch; harmless when it has ended already."""
    _steer(batch_id, BatchHandle.cancel, url, as_json)


@batch_app.command()
def pause(batch_id: BatchId, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Start no more jobs of a batch; what runs runs on."""
    _steer(batch_id, BatchHandle.pause, url, as_json)


@batch_app.command()
def resume(batch_id: BatchId, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Go on with a paused batch."""
    _steer(batch_id, BatchHandle.resume, url, as_json)


def _steer(batch_id: str, action: Callable[[BatchHandle], BatchHandle], url: str, as_json: bool) -> None:
    with explained_errors(), Client(url) as client:
        batch = action(batch_of(client, batch_id))
        say(f"{batch.id} is {batch.status}: {_summary(batch.counts)}")
        _print(batch, as_json)


def _print(batch: BatchHandle, as_json: bool) -> None:
    if as_json:
        print_json(batch.document)
    else:
        typer.echo(batch.id)


def _json(text: str | None, option: str) -> dict[str, Any] | None:
    if text is None:
        return None
    try:
        value = json.loads(text)
    except ValueError as error:
        usage(f"{option} is not JSON: {error}. Quote it for the shell: {option} '{{\"steps\": 100}}'")
    if not isinstance(value, dict):
        usage(f"{option} must be a JSON object, such as '{{\"steps\": 100}}'.")
    return value


def _summary(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count)


def _follow(batch: BatchHandle, timeout_s: float | None) -> None:
    """Show how many jobs have ended, until all have."""
    console = stderr()
    bar = Progress(
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[detail]}", markup=False),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    task, next_line_at = bar.add_task("", total=batch.counts["total"], detail=""), LINE_EVERY
    with bar:
        for counts in batch.progress(timeout_s):
            ended = sum(counts[name] for name in ("invalid", "succeeded", "failed", "canceled"))
            bar.update(task, completed=ended, detail=_summary(counts))
            if not console.is_terminal and ended >= next_line_at * counts["total"]:
                next_line_at = ended / counts["total"] + LINE_EVERY
                console.print(_summary(counts))


def _fetch(client: Client, result: dict[str, Any], folder: Path) -> int:
    """Write the mesh of one result unless it is there; how many were written."""
    mesh = next((one for one in result["artifacts"] if one["kind"] == "glb"), None)
    if mesh is None:
        say(f"  {result['job_id']} has no mesh any more")
        return 0
    name = result["custom_id"] or ""
    # A swept line has several meshes, and a custom_id is text of any kind: then the job's id names the file.
    stem = name if FILE_NAME.fullmatch(name) and not result["sweep"] else result["job_id"]
    target = folder / f"{stem}.glb"
    if target.is_file() and _sha256(target) == mesh["sha256"]:
        return 0
    client.job(result["job_id"]).download(target)
    return 1


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
