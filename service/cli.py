"""The command line of a client: everything that needs only HTTP. `workers.main` adds `up` and its like.

Ids and JSON go to stdout, sentences to stderr. Exit codes: 0 done, 1 failed, 2 usage, 3 auth,
4 not found, 5 wait timed out (the job goes on), 130 interrupted.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final
from urllib.parse import urlsplit

import typer

from service.batch_commands import batch_app
from service.client import DEFAULT_URL, Client, JobHandle
from service.client_errors import JobFailedError, ServiceUnavailableError, WaitTimeoutError
from service.progress import ProgressBar, printable
from service.spawn import EmbeddedService, up_command
from service.terminal import explained_errors, print_json, say, stderr, usage

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["app"]

MESH_KINDS: Final = ("glb", "obj", "ply", "stl")
app = typer.Typer(
    name="dreamserve",
    help="Text to 3D objects that people prefer: submit a prompt, watch it, fetch the mesh.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.add_typer(batch_app)

Prompt = Annotated[str, typer.Argument(metavar="PROMPT", help="What to make, in words.", show_default=False)]
JobId = Annotated[str, typer.Argument(metavar="JOB_ID", help="A job's id (job_…).", show_default=False)]
Url = Annotated[str, typer.Option(help="Where the service answers.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the whole job document on stdout.")]
Method = Annotated[str | None, typer.Option(help="sds, dreamfl, dreamdpo, psd; GET /v1/methods lists them.")]
Preset = Annotated[
    str | None, typer.Option(help="A published experiment: mvdream-paper, dreamdpo-paper and others.")
]
Steps = Annotated[int | None, typer.Option(help="Optimization steps; overrides --effort.")]
Effort = Annotated[str | None, typer.Option(help="preview, draft or full.")]
Seed = Annotated[int | None, typer.Option(help="Same seed, same object (one worker to itself).")]
NegativePrompt = Annotated[str | None, typer.Option(help="What it should not look like.")]
Timeout = Annotated[float | None, typer.Option(help="Seconds to wait; then exit 5, and the job goes on.")]


@app.command()
def generate(
    prompt: Prompt,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="The mesh: .glb, .obj, .ply or .stl.")
    ] = Path("out.glb"),
    picture: Annotated[Path | None, typer.Option(help="Also write a picture of it (.png).")] = None,
    turntable: Annotated[
        Path | None, typer.Option(help="Also write a film of it turning around (.webp).")
    ] = None,
    preset: Preset = None,
    method: Method = None,
    steps: Steps = None,
    effort: Effort = None,
    seed: Seed = None,
    negative_prompt: NegativePrompt = None,
    timeout: Timeout = None,
    url: Url = DEFAULT_URL,
    data_dir: Annotated[
        Path | None, typer.Option(help="Data folder of the service that is started when none runs.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make one object and write its mesh; starts a service for the while when none runs."""
    kind = _mesh_kind(output)
    _check_writable(output, picture, turntable)
    fields = _request_fields(
        kind,
        preset=preset,
        method=method,
        steps=steps,
        effort=effort,
        seed=seed,
        negative_prompt=negative_prompt,
        outputs=None if turntable is None else {"turntable": True},
    )
    with explained_errors(), _service_at(url, data_dir) as client:
        job = client.generate(prompt, **fields)
        if not as_json:
            typer.echo(job.id)
        _follow(job, timeout, as_json, embedded=client.url != url.rstrip("/"))
        job.download(output, kind)
        say(f"Wrote {output}")
        for target, what in ((picture, "thumbnail"), (turntable, "turntable")):
            if target is not None:
                job.download(target, what)
                say(f"Wrote {target}")


@app.command()
def submit(
    prompt: Prompt,
    preset: Preset = None,
    method: Method = None,
    steps: Steps = None,
    effort: Effort = None,
    seed: Seed = None,
    negative_prompt: NegativePrompt = None,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Submit one job to a running service and print its id, without waiting."""
    fields = _request_fields(
        "glb",
        preset=preset,
        method=method,
        steps=steps,
        effort=effort,
        seed=seed,
        negative_prompt=negative_prompt,
    )
    with explained_errors(), Client(url) as client:
        job = client.generate(prompt, **fields)
        for warning in job.document["warnings"]:
            say(f"Warning: {printable(warning['detail'])}")
        if as_json:
            print_json(job.document)
        else:
            typer.echo(job.id)


@app.command()
def watch(job_id: JobId, timeout: Timeout = None, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Follow a job to its end; interrupting this does not interrupt the job."""
    with explained_errors(), Client(url) as client:
        job = client.job(job_id)
        _follow(job, timeout, as_json, embedded=False)


@app.command()
def get(
    job_id: JobId,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Write its mesh here.")] = None,
    candidate: Annotated[
        int | None, typer.Option(help="That of this candidate; by default the one that is kept foremost.")
    ] = None,
    url: Url = DEFAULT_URL,
) -> None:
    """Print a job's document, and write its mesh when -o is given."""
    kind = "glb" if output is None else _mesh_kind(output)
    with explained_errors(), Client(url) as client:
        job = client.job(job_id)
        if output is not None:
            _check_writable(output)
            job.download(output, kind, candidate=candidate)
            say(f"Wrote {output}")
        print_json(job.document)


@app.command()
def ls(
    status: Annotated[
        str | None, typer.Option(help="queued, running, canceling, succeeded, failed or canceled.")
    ] = None,
    method: Method = None,
    limit: Annotated[int, typer.Option(min=1, help="How many jobs at most.")] = 20,
    url: Url = DEFAULT_URL,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document a line.")] = False,
) -> None:
    """List jobs, newest first."""
    with explained_errors(), Client(url) as client:
        jobs = client.jobs(status=status, method=method, page_size=min(limit, 100))
        for job, _ in zip(jobs, range(limit), strict=False):
            if as_json:
                print_json(job.document)
            else:
                prompt = printable(job.document["spec"]["prompt"])
                typer.echo(f"{job.id}  {job.status:<9}  {job.document['created_at']}  {prompt}")


@app.command()
def cancel(
    job_id: JobId,
    keep_partial: Annotated[
        bool, typer.Option("--keep-partial", help="Export a running job's object as it is.")
    ] = False,
    url: Url = DEFAULT_URL,
) -> None:
    """End a job; harmless when it has ended already."""
    with explained_errors(), Client(url) as client:
        job = client.job(job_id).cancel(keep_partial=keep_partial)
        say(f"{job.id} is {job.status}.")
        typer.echo(job.id)


@app.command()
def keep(
    job_id: JobId,
    candidates: Annotated[
        list[int], typer.Argument(metavar="CANDIDATE…", min=0, help="Indices, the foremost first.")
    ],
    url: Url = DEFAULT_URL,
) -> None:
    """Keep these candidates of a job in place of those that the reward has chosen."""
    with explained_errors(), Client(url) as client:
        job = client.job(job_id).keep(candidates)
        said = " and ".join(f"candidate {index}" for index in candidates)
        say(f"{job.id} keeps {said}.")
        typer.echo(job.id)


@app.command()
def retry(job_id: JobId, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Make a new job of an ended one's specification and print its id."""
    with explained_errors(), Client(url) as client:
        job = client.job(job_id).retry()
        if as_json:
            print_json(job.document)
        else:
            typer.echo(job.id)


@contextlib.contextmanager
def _service_at(url: str, data_dir: Path | None) -> Iterator[Client]:
    """Connect to the service at `url`, or to one that is started here and ended afterwards."""
    with Client(url) as client:
        if client.is_there():
            if data_dir is not None:
                say(f"Using the service that runs at {url}; --data-dir is for one started here.")
            yield client
            return
    if urlsplit(url).hostname not in ("127.0.0.1", "localhost", "::1"):
        raise ServiceUnavailableError(
            f"No Dreamserve answers at {url}. Check the address, or leave --url out."
        )
    say(f"No service answers at {url}: starting an embedded one; it ends with this command.")
    with EmbeddedService(up_command(data_dir)) as embedded, Client(embedded.url) as client:
        try:
            yield client
        finally:
            say("Ending the embedded service …")


def _follow(job: JobHandle, timeout_s: float | None, as_json: bool, *, embedded: bool) -> None:
    """Show the job's progress until it has ended, then its document if wished, failed or not.

    Raises `JobFailedError`, `WaitTimeoutError`.
    """
    try:
        with ProgressBar(stderr()) as bar:
            for event in job.events(timeout_s=timeout_s):
                bar.show(event)
    except (KeyboardInterrupt, WaitTimeoutError):
        if embedded:
            say(f"Job {job.id} stays in the data folder and goes on when a service starts there again.")
        else:
            say(
                f"Job {job.id} goes on. Follow it: dreamserve watch {job.id}; end it: dreamserve cancel {job.id}"
            )
        raise
    job.refresh()
    if as_json:
        print_json(job.document)
    if job.status != "succeeded":
        raise JobFailedError(job)


def _request_fields(kind: str, *, method: str | None, **others: Any) -> dict[str, Any]:
    """Collect the fields that the user set: what is left out is for the service to default."""
    fields = {
        "method": None if method is None else {"name": method},
        "mesh": None if kind == "glb" else {"formats": ["glb", kind]},
        **others,
    }
    return {name: value for name, value in fields.items() if value is not None}


def _mesh_kind(output: Path) -> str:
    kind = output.suffix.lower().removeprefix(".")
    if kind not in MESH_KINDS:
        usage(f"cannot write a mesh to {output}: its name must end in .glb, .obj, .ply or .stl.")
    return kind


def _check_writable(*targets: Path | None) -> None:
    """Refuse before any work is done what would fail after it."""
    for target in targets:
        if target is not None and not target.absolute().parent.is_dir():
            usage(f"cannot write {target}: there is no folder {target.absolute().parent}. Make it first.")
        if target is not None and target.is_dir():
            usage(f"cannot write {target}: it is a folder. Name a file in it.")
