"""An endpoint over HTTP against a real local server: what is sent, what is repeated, and what is told."""

from __future__ import annotations

import base64
import io
import logging
import socket
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
import torch
from PIL import Image

from reward_models.actor import RewardUnavailable
from reward_models.multimodal_endpoint import Endpoint, EndpointOptions
from reward_models.multimodal_questions import JudgeUnavailable, Question, picture_bytes
from tests.unit.reward_models.judge_server import Reply, judge_server, pictures, said

RED = picture_bytes(torch.tensor([1.0, 0.0, 0.0])[:, None, None].expand(3, 8, 8))
QUESTION = Question("What is it?", (RED,))
KEY = "sk-very-secret-0123456789"


class Naps(list[float]):
    """A sleep that only notes how long it would have been."""

    def __call__(self, seconds: float) -> None:
        self.append(seconds)


def ask(base_url: str, naps: Naps | None = None, **options: float) -> str:
    with Endpoint(
        base_url, "m", options=EndpointOptions(**options), sleep=Naps() if naps is None else naps
    ) as endpoint:  # type: ignore[arg-type]
        return endpoint.answer([QUESTION])[0]


def test_a_question_travels_as_the_protocol_says_and_its_answer_comes_back() -> None:
    with judge_server(lambda number, request: Reply("a red square")) as server:
        assert ask(server.base_url + "/") == "a red square"
    (request,) = server.requests
    assert server.paths == ["/v1/chat/completions"]
    assert (request["model"], request["max_tokens"], request["temperature"]) == ("m", 512, 0.0)
    assert [part["type"] for part in request["messages"][0]["content"]] == ["image_url", "text"]
    head, _, data = pictures(request)[0].partition(",")
    assert head == "data:image/png;base64"
    assert Image.open(io.BytesIO(base64.b64decode(data))).getpixel((3, 3)) == (255, 0, 0)
    assert "Authorization" not in server.headers[0]


def test_answers_come_in_the_order_of_the_questions_although_many_are_in_flight() -> None:
    def later_for_the_first(number: int, request: dict[str, object]) -> Reply:
        return Reply(said(request), delay_s=0.1 if said(request) == "0" else 0.0)

    with (
        judge_server(later_for_the_first) as server,
        Endpoint(server.base_url, "m") as endpoint,
    ):
        assert endpoint.answer([Question(str(n)) for n in range(12)]) == [str(n) for n in range(12)]
        assert endpoint.answer([]) == []


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503])
def test_a_passing_failure_is_asked_again_after_growing_waits(status: int) -> None:
    naps = Naps()
    with judge_server(lambda number, request: Reply("ok") if number == 4 else Reply(status=status)) as server:
        assert ask(server.base_url, naps) == "ok"
    assert len(naps) == 3
    for nap, longest in zip(naps, (0.5, 1.0, 2.0), strict=True):
        assert longest / 2 <= nap <= longest


def test_retry_after_is_obeyed_in_seconds_and_as_a_date() -> None:
    in_20_s = format_datetime(datetime.now(UTC) + timedelta(seconds=20), usegmt=True)
    headers = {1: "7", 2: in_20_s, 3: "soon"}
    naps = Naps()

    def busy(number: int, request: dict[str, object]) -> Reply:
        return Reply("ok") if number == 4 else Reply(status=429, headers=(("Retry-After", headers[number]),))

    with judge_server(busy) as server:
        assert ask(server.base_url, naps) == "ok"
    assert naps[0] == 7
    assert 15 < naps[1] <= 20
    assert naps[2] <= 2


def test_a_wait_beyond_the_patience_ends_at_once_and_says_so() -> None:
    naps = Naps()
    busy = Reply(status=429, headers=(("Retry-After", "3600"),))
    with (
        judge_server(lambda number, request: busy) as server,
        pytest.raises(JudgeUnavailable, match="asks to wait 3600 s more after 1 tries: it answered 429"),
    ):
        ask(server.base_url, naps)
    assert naps == []


def test_a_server_that_stays_broken_ends_as_unavailable_which_a_job_may_retry() -> None:
    with (
        judge_server(lambda number, request: Reply(status=500)) as server,
        pytest.raises(RewardUnavailable, match=r"'m' at http.*was given up after 3 tries: it answered 500"),
    ):
        ask(server.base_url, tries=3)
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    "reply",
    [
        Reply(body=b"<html>gateway</html>"),
        Reply(body=b"\xff\xfe\x00"),
        Reply(body=b'{"choices": []}'),
        Reply(body=b"[]"),
        Reply(body=b"[" * 100_000),
        Reply(body=b'{"choices": [{"message": {"content": null}}]}'),
        Reply(text="x" * 1_100_000),
    ],
)
def test_garbage_is_no_answer(reply: Reply) -> None:
    with (
        judge_server(lambda number, request: reply) as server,
        pytest.raises(JudgeUnavailable, match=r"after 2 tries: (it answered 200, but|an answer of more)"),
    ):
        ask(server.base_url, tries=2)


def test_a_server_that_does_not_answer_in_time_is_asked_again() -> None:
    with judge_server(lambda number, request: Reply("ok", delay_s=0.3 if number == 1 else 0.0)) as server:
        assert ask(server.base_url, timeout_s=0.1) == "ok"
        assert len(server.requests) == 2
    with (
        judge_server(lambda number, request: Reply("late", delay_s=0.3)) as server,
        pytest.raises(JudgeUnavailable, match=r"after 2 tries: no answer within 0\.1 s"),
    ):
        ask(server.base_url, timeout_s=0.1, tries=2)


def test_nobody_there_is_unavailable() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, but not listening
        with pytest.raises(JudgeUnavailable, match=r"after 2 tries: ConnectError.*Is the server up"):
            ask(f"http://127.0.0.1:{taken.getsockname()[1]}/v1", tries=2)


def test_a_refusal_is_final_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    unknown = Reply(status=404, body=b'{"error": "no model m"}')
    with (
        judge_server(lambda number, request: unknown) as server,
        pytest.raises(ValueError, match=r"refuses with status 404: .*no model m"),
    ):
        ask(server.base_url)
    assert len(server.requests) == 1


def test_the_key_comes_from_the_environment_and_is_never_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("JUDGE_KEY", KEY)
    told = []
    for status in (401, 400, 500):
        echo = Reply(status=status, body=f"bad key {KEY}".encode())
        with (
            judge_server(lambda number, request, echo=echo: echo) as server,
            Endpoint(
                server.base_url,
                "m",
                key_variable="JUDGE_KEY",
                options=EndpointOptions(tries=1),
                sleep=Naps(),
            ) as endpoint,
        ):
            with pytest.raises((ValueError, JudgeUnavailable)) as caught:
                endpoint.answer([QUESTION])
            told += [str(caught.value), repr(endpoint)]
        assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert "another key than that of JUDGE_KEY" in told[0]
    assert KEY not in "\n".join(told) + caplog.text


def test_a_missing_key_and_a_strange_address_are_refused_before_anything_is_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    with pytest.raises(ValueError, match="environment variable JUDGE_KEY, but that is empty"):
        Endpoint("http://localhost/v1", "m", key_variable="JUDGE_KEY")
    for url in ("ftp://judge/v1", "judge:8000", "http://me:secret@judge/v1", "http://judge/v1?key=secret"):
        with pytest.raises(ValueError, match="must be an address like") as caught:
            Endpoint(url, "m")
        assert "secret" not in str(caught.value)
