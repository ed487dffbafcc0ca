"""The command line: ids and JSON on stdout, sentences on stderr, exit codes that scripts can rely on."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
import textwrap
import threading
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from typer.testing import CliRunner

import service.cli
from service.cli import app
from service.jobs.states import FailureCode, Stage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from typer.testing import Result

    from service.jobs.states import Lease
    from service.jobs.store import JobStore

PROMPT = "a red cube on top of a blue cylinder"
UNKNOWN = "job_01ARZ3NDEKTSV4RRFFQ69G5FAV"
NOWHERE = "http://127.0.0.1:9"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def submit(url: str, prompt: str = PROMPT, **fields: Any) -> str:
    job_id: str = httpx.post(f"{url}/generate", json={"prompt": prompt, **fields}).json()["id"]
    return job_id


@pytest.fixture
def worker(store: JobStore, finish: Callable[[Lease], None]) -> Iterator[None]:
    """A worker that finishes every job at once, with a warning."""
    stop = threading.Event()

    def work() -> None:
        while not stop.wait(0.02):
            lease = store.claim("worker")
            if lease is not None:
                warning = {"code": "unknown-words", "detail": "the prior does not know: zorb"}
                store.report(
                    lease, stage=Stage.COARSE, step=1, steps_total=lease.spec.steps, warnings=[warning]
                )
                finish(lease)

    thread = threading.Thread(target=work)
    thread.start()
    yield
    stop.set()
    thread.join()


@pytest.mark.usefixtures("worker")
def test_generate_writes_the_mesh_and_prints_only_the_id(url: str, tmp_path: Path, glb: bytes) -> None:
    target = tmp_path / "cube.glb"
    result = run("generate", PROMPT, "-o", str(target), "--url", url, "--steps", "3", "--seed", "7")
    assert result.exit_code == 0, result.output
    assert target.read_bytes() == glb
    job = httpx.get(f"{url}/v1/jobs/{result.stdout.strip()}").json()
    assert (job["spec"]["prompt"], job["spec"]["steps"], job["spec"]["seed"]) == (PROMPT, 3, 7)
    assert "Warning: the prior does not know: zorb" in result.stderr
    assert f"Wrote {target}" in result.stderr


@pytest.mark.usefixtures("worker")
def test_generate_asks_for_the_film_that_it_is_to_write(url: str, tmp_path: Path) -> None:
    mesh, film = str(tmp_path / "cube.glb"), str(tmp_path / "cube.webp")
    result = run("generate", PROMPT, "-o", mesh, "--turntable", film, "--url", url)
    job = httpx.get(f"{url}/v1/jobs/{result.stdout.strip()}").json()
    assert job["spec"]["outputs"] == {"thumbnail": True, "turntable": True, "report": True}
    assert result.exit_code != 0
    assert "has no 'turntable' artifact" in result.stderr, "this worker makes none"
    nowhere = str(tmp_path / "none" / "cube.webp")
    assert "there is no folder" in run("generate", PROMPT, "--turntable", nowhere, "--url", url).stderr


@pytest.mark.usefixtures("worker")
def test_generate_can_print_the_whole_document(url: str, tmp_path: Path) -> None:
    result = run(
        "generate", PROMPT, "-o", str(tmp_path / "cube.glb"), "--url", url, "--json", "--method", "sds"
    )
    document = json.loads(result.stdout)
    assert document["status"] == "succeeded"
    assert document["spec"]["method"]["name"] == "sds"


def test_a_failed_job_exits_1_with_the_reason(url: str, store: JobStore) -> None:
    job_id = submit(url)
    lease = store.claim("worker")
    assert lease is not None
    store.fail(lease, FailureCode.NAN_DIVERGENCE, "the loss is not a number at step 17")
    result = run("watch", job_id, "--url", url)
    assert result.exit_code == 1
    assert "the loss is not a number at step 17 (nan-divergence)" in result.stderr
    assert result.stdout == ""
    document = json.loads(run("watch", job_id, "--url", url, "--json").stdout)
    assert document["error"]["code"] == "nan-divergence"


@pytest.mark.parametrize("name", ["out.fbx", "out", "nowhere/out.glb"])
def test_an_output_that_cannot_be_written_is_refused_before_any_work(
    url: str, tmp_path: Path, name: str
) -> None:
    result = run("generate", PROMPT, "-o", str(tmp_path / name), "--url", url)
    assert result.exit_code == 2
    assert "cannot write" in result.stderr
    assert httpx.get(f"{url}/v1/jobs").json()["items"] == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("",), "/prompt"),
        (("  ",), "the prompt is blank"),
        (("x", "--steps", "-1"), "/steps"),
        (("x", "--method", "gan"), "gan"),
        (("x", "--preset", "dreamdpo"), "dreamdpo-paper"),
        (("\udcff",), "/prompt"),
    ],
)
def test_what_the_service_refuses_exits_2_in_its_words(
    url: str, arguments: tuple[str, ...], words: str
) -> None:
    result = run("submit", *arguments, "--url", url)
    assert result.exit_code == 2
    assert words in result.stderr
    assert "request req_" in result.stderr
    assert result.stdout == ""


def test_submit_then_cancel_then_get(url: str) -> None:
    job_id = run("submit", PROMPT, "--url", url).stdout.strip()
    assert run("cancel", job_id, "--url", url).stdout.strip() == job_id
    document = json.loads(run("get", job_id, "--url", url).stdout)
    assert (document["id"], document["status"]) == (job_id, "canceled")


def test_an_ended_job_is_retried_and_an_active_one_is_not(url: str) -> None:
    job_id = submit(url)
    refused = run("retry", job_id, "--url", url)
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert "only a job that has ended can be retried" in refused.stderr
    assert run("cancel", job_id, "--keep-partial", "--url", url).exit_code == 0
    again = run("retry", job_id, "--url", url).stdout.strip()
    assert json.loads(run("retry", job_id, "--json", "--url", url).stdout)["retry_of"] == job_id
    assert json.loads(run("get", again, "--url", url).stdout)["retry_of"] == job_id


@pytest.mark.usefixtures("worker")
def test_get_downloads_what_was_made(url: str, tmp_path: Path, glb: bytes) -> None:
    job_id = submit(url)
    assert run("watch", job_id, "--url", url).exit_code == 0
    assert run("get", job_id, "-o", str(tmp_path / "a.glb"), "--url", url).exit_code == 0
    assert (tmp_path / "a.glb").read_bytes() == glb


def test_a_wait_that_is_over_exits_5_and_the_job_goes_on(url: str) -> None:
    job_id = submit(url)
    result = run("watch", job_id, "--timeout", "0.2", "--url", url)
    assert result.exit_code == 5
    assert "goes on" in result.stderr


@pytest.mark.parametrize("command", ["get", "watch", "cancel"])
def test_an_unknown_job_exits_4(url: str, command: str) -> None:
    result = run(command, UNKNOWN, "--url", url)
    assert result.exit_code == 4
    assert UNKNOWN in result.stderr


@pytest.mark.parametrize("arguments", [("submit", "x"), ("get", UNKNOWN), ("ls",), ("watch", UNKNOWN)])
def test_no_service_is_said_in_words(arguments: tuple[str, ...]) -> None:
    result = run(*arguments, "--url", NOWHERE)
    assert result.exit_code == 1
    assert "No service answers" in result.stderr
    assert "dreamserve up" in result.stderr
    assert "Traceback" not in result.output


def test_ls_shows_odd_prompts_without_their_effects(url: str) -> None:
    odd = submit(url, "a \x1b[31mred\u202e cube")
    plain = submit(url)
    lines = run("ls", "--url", url).stdout.splitlines()
    assert [line.split()[0] for line in lines] == [plain, odd]
    assert "\x1b" not in lines[1]
    assert [
        json.loads(line)["id"]
        for line in run("ls", "--json", "--limit", "1", "--url", url).stdout.splitlines()
    ] == [plain]


def test_help_is_quick_and_needs_nothing_heavy() -> None:
    program = """
        import sys
        from service.cli import app
        sys.argv = ["dreamserve", "--help"]
        try:
            app()
        finally:
            heavy = {"torch", "ray", "sqlalchemy", "fastapi", "numpy", "boto3"} & set(sys.modules)
            assert not heavy, heavy
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    assert "generate" in done.stdout
    assert after.ru_utime - before.ru_utime < 1.0


SERVICE = """
    import json, pathlib, sys, uvicorn
    from service.http.api import build_api
    from service.jobs.objects import open_object_store
    from service.jobs.store import JobStore
    from service.settings import Settings

    settings = Settings(data_dir=pathlib.Path(sys.argv[1]), auth="off")
    api = build_api(JobStore(settings.database_url), open_object_store(settings.objects_url), settings)

    class Server(uvicorn.Server):
        async def startup(self, sockets=None):
            await super().startup(sockets)
            port = self.servers[0].sockets[0].getsockname()[1]
            print("Some library says hello", flush=True)
            print(json.dumps({"url": f"http://127.0.0.1:{port}"}), flush=True)

    Server(uvicorn.Config(api, port=0, log_level="warning", timeout_graceful_shutdown=1)).run()
"""


@pytest.fixture
def _embedded_is_this(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Let `generate` start the real frontend on this test's stores, without Ray and workers."""
    command = [sys.executable, "-c", textwrap.dedent(SERVICE), str(tmp_path / "data")]
    monkeypatch.setattr(service.cli, "up_command", lambda data_dir: command)


@pytest.mark.usefixtures("_embedded_is_this", "worker")
def test_generate_starts_a_service_when_none_runs_says_so_and_ends_it(tmp_path: Path, glb: bytes) -> None:
    target = tmp_path / "cube.glb"
    result = run("generate", PROMPT, "-o", str(target), "--url", NOWHERE)
    assert result.exit_code == 0, result.output
    assert target.read_bytes() == glb
    assert "starting an embedded one; it ends with this command" in result.stderr
    assert "Ending the embedded service" in result.stderr


def test_a_distant_service_that_is_away_is_not_replaced_by_an_embedded_one(tmp_path: Path) -> None:
    result = run("generate", PROMPT, "-o", str(tmp_path / "a.glb"), "--url", "http://dreamserve.invalid")
    assert result.exit_code == 1
    assert "No Dreamserve answers at http://dreamserve.invalid" in result.stderr


def test_interrupting_a_watch_exits_130_and_leaves_the_job(url: str, store: JobStore) -> None:
    job_id = submit(url)
    # Where the tests run in the background, a shell has told them and their children to ignore interrupts.
    heeding = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    program = f"{heeding}; from service.cli import app; app()"
    command = [sys.executable, "-c", program, "watch", job_id, "--url", url]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as watching:
        assert watching.stderr is not None
        store.claim("worker")
        while "loading" not in (line := watching.stderr.readline()):
            assert line, "the program ended before the job began"
        watching.send_signal(signal.SIGINT)
        said = watching.stderr.read()
    assert watching.returncode == 130
    assert f"Job {job_id} goes on" in said
    document = store.get(job_id)
    assert document is not None
    assert document["status"] == "running"
