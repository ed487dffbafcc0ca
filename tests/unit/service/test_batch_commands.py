"""`dreamserve batch …`: files in, meshes out, and exit codes that scripts can rely on."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from typer.testing import CliRunner

from service.batch_files import BadFile, batch_lines
from service.cli import app
from service.jobs.batches import BatchStore
from service.jobs.states import FailureCode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from typer.testing import Result

    from service.jobs.states import Lease
    from service.jobs.store import JobStore

UNKNOWN = "batch_01ARZ3NDEKTSV4RRFFQ69G5FAV"
NOWHERE = "http://127.0.0.1:9"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["batch", *arguments])


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in b"".join(batch_lines(path)).splitlines()]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    file = tmp_path / "prompts.txt"
    file.write_text("a red cube\n\n  a chair, blue \nnull\n")
    return file


@pytest.fixture
def worker(store: JobStore, finish: Callable[[Lease], None]) -> Iterator[None]:
    """A worker that finishes every job at once, except those whose prompt is `null`, the first time."""
    stop = threading.Event()

    def work() -> None:
        while not stop.wait(0.02):
            lease = store.claim("worker")
            if lease is None:
                continue
            job = store.get(lease.job_id)
            assert job is not None
            if lease.spec.prompt == "null" and job["retry_of"] is None:
                store.fail(lease, FailureCode.NAN_DIVERGENCE, "nan")
            else:
                finish(lease)

    thread = threading.Thread(target=work)
    thread.start()
    yield
    stop.set()
    thread.join()


# ---- files


def test_text_has_a_prompt_a_line_which_is_never_read_as_anything_else(prompts: Path) -> None:
    assert lines_of(prompts) == [
        {"custom_id": "1", "body": {"prompt": "a red cube"}},
        {"custom_id": "3", "body": {"prompt": "  a chair, blue "}},
        {"custom_id": "4", "body": {"prompt": "null"}},
    ]


def test_a_table_has_fields_by_their_columns(tmp_path: Path) -> None:
    file = tmp_path / "prompts.csv"
    file.write_text(
        "\ufeffcustom_id,prompt,seed,method.name,metadata.size,negative_prompt\r\n"
        'a,"a ""red"" cube,\nlarge",7,sds,12,\r\n'
        ",12,,,,null\r\n"
    )
    assert lines_of(file) == [
        {
            "custom_id": "a",
            "body": {
                "prompt": 'a "red" cube,\nlarge',
                "seed": 7,
                "method": {"name": "sds"},
                "metadata": {"size": "12"},
            },
        },
        {"custom_id": "4", "body": {"prompt": "12", "negative_prompt": "null"}},
    ]


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("a.csv", b"seed\n1\n", "one of them prompt"),
        ("a.csv", b"", "one of them prompt"),
        ("a.csv", b"prompt,prompt\na,b\n", "each once"),
        ("a.csv", b"prompt\na,b\n", "line 2: found 2 cells"),
        ("a.csv", b"prompt,seed,seed.x\na,1,2\n", "has a value"),
        ("a.csv", b'prompt\n"a\n', "not CSV"),
        ("a.csv", b"prompt\n\xff\n", "UTF-8"),
        ("a.txt", b"\xff\n", "UTF-8"),
        ("a.xlsx", b"", ".jsonl, .csv or .txt"),
    ],
)
def test_a_file_that_cannot_be_read_is_a_usage_error(
    url: str, tmp_path: Path, name: str, content: bytes, word: str
) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(BadFile, match=word):
        list(batch_lines(file))
    result = run("submit", str(file), "--url", url)
    assert result.exit_code == 2, result.output
    assert word in result.stderr
    assert httpx.get(f"{url}/v1/batches").json()["items"] == []


# ---- commands


@pytest.mark.usefixtures("worker")
def test_a_file_becomes_a_folder_of_meshes(url: str, prompts: Path, tmp_path: Path, glb: bytes) -> None:
    submitted = run("submit", str(prompts), "--defaults", '{"steps": 5}', "--url", url)
    assert submitted.exit_code == 0, submitted.output
    batch_id = submitted.stdout.strip()
    watched = run("watch", batch_id, "--url", url)
    assert watched.exit_code == 1, "one job has failed"
    assert f"{batch_id} is completed: 3 total, 2 succeeded, 1 failed" in watched.stderr
    folder = tmp_path / "meshes"
    first = run("results", batch_id, "-o", str(folder), "--url", url)
    assert [json.loads(line)["status"] for line in first.stdout.splitlines()] == ["succeeded"] * 2 + [
        "failed"
    ]
    assert sorted(one.name for one in folder.iterdir()) == ["1.glb", "3.glb"]
    assert run("retry-failed", batch_id, "--url", url).stdout.strip() == batch_id
    assert run("watch", batch_id, "--url", url).exit_code == 0
    again = run("results", batch_id, "-o", str(folder), "--url", url)
    assert "Wrote 1 meshes" in again.stderr
    assert (folder / "4.glb").read_bytes() == glb
    job = httpx.get(f"{url}/v1/jobs/{json.loads(again.stdout.splitlines()[0])['job_id']}").json()
    assert job["spec"]["steps"] == 5


@pytest.mark.usefixtures("worker")
def test_names_of_files_never_leave_the_folder(url: str, tmp_path: Path) -> None:
    file = tmp_path / "odd.jsonl"
    names = ["../up", "/etc/x", ".hidden", "a\\b", "fine-1.v2"]
    file.write_text("".join(json.dumps({"custom_id": n, "body": {"prompt": "x"}}) + "\n" for n in names))
    batch_id = run("submit", str(file), "--url", url).stdout.strip()
    assert run("watch", batch_id, "--url", url).exit_code == 0
    run("results", batch_id, "-o", str(tmp_path / "in" / "here"), "--url", url)
    written = sorted(one.name for one in (tmp_path / "in" / "here").iterdir())
    assert len(written) == 5
    assert [one for one in written if not one.startswith("job_")] == ["fine-1.v2.glb"]
    assert [one.name for one in (tmp_path / "in").iterdir()] == ["here"]


def test_invalid_lines_are_told_and_the_document_can_be_had(url: str, tmp_path: Path) -> None:
    file = tmp_path / "some.jsonl"
    file.write_text('{"body": {"prompt": "x"}}\n{"body": {"prompt": "x", "stepz": 1}}\n')
    result = run(
        "submit", str(file), "--max-parallel", "2", "--sweep", '{"seed": [1, 2]}', "--json", "--url", url
    )
    document = json.loads(result.stdout)
    assert (document["counts"]["total"], document["max_parallel"]) == (4, 2)
    assert "2 jobs; follow them" in result.stderr
    assert "line 2: /items/1/body/stepz: there is no such field" in result.stderr


def test_steering_says_what_came_of_it(url: str, prompts: Path, store: JobStore) -> None:
    batch_id = run("submit", str(prompts), "--url", url).stdout.strip()
    paused = run("pause", batch_id, "--url", url)
    assert f"{batch_id} is paused" in paused.stderr
    waited = run("watch", batch_id, "--timeout", "0.1", "--url", url)
    assert waited.exit_code == 5
    assert "goes on" in waited.stderr
    assert run("resume", batch_id, "--url", url).exit_code == 0
    canceled = run("cancel", batch_id, "--json", "--url", url)
    assert json.loads(canceled.stdout)["status"] == "canceled"
    assert run("pause", batch_id, "--url", url).exit_code == 1
    assert BatchStore(store.database).advance() == 0


@pytest.mark.parametrize("command", ["watch", "results", "cancel", "pause", "resume", "retry-failed"])
def test_an_unknown_batch_exits_4(url: str, command: str) -> None:
    result = run(command, UNKNOWN, "--url", url)
    assert result.exit_code == 4
    assert UNKNOWN in result.stderr


@pytest.mark.parametrize(
    ("option", "text"),
    [("--defaults", "{"), ("--sweep", "[1]"), ("--defaults", "7"), ("--sweep", '{"seed": []}')],
)
def test_a_bad_option_exits_2(url: str, prompts: Path, option: str, text: str) -> None:
    result = run("submit", str(prompts), option, text, "--url", url)
    assert result.exit_code == 2, result.output


def test_no_service_and_no_file_are_said_in_words(prompts: Path, tmp_path: Path) -> None:
    assert "No service answers" in run("submit", str(prompts), "--url", NOWHERE).stderr
    missing = run("submit", str(tmp_path / "none.txt"), "--url", NOWHERE)
    assert missing.exit_code == 2
    assert "there is no file" in missing.stderr
