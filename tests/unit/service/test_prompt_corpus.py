"""A prompt is data: whatever it looks like, it arrives byte-equal at the text encoder."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import httpx

from service.http.api import build_api
from tests.unit.service.conftest import InProcess
from tests.unit.workers.small_workers import Service, small_networks, with_referee
from workers.networks import Networks

if TYPE_CHECKING:
    from pathlib import Path

    from anyio.from_thread import BlockingPortal

CORPUS = (
    # interpolation and templates
    "${oc.env:HOME}",
    "$(id) `id` ${HOME} %HOME% ~",
    "{{ 7 * 7 }} {% raw %} {prompt} {0} {0.__class__} %s %(prompt)s %n",
    # YAML, JSON, TOML
    "a: b",
    "- !!python/object/apply:os.system ['id']",
    "null",
    "~",
    "NaN",
    "1e400",
    "# a cube",
    '{"prompt": "another", "steps": 20000}',
    "&anchor *alias <<: merge",
    "prior.prompt_processor.prompt=x +trainer.max_steps=1",
    # SQL
    "'; DROP TABLE jobs; --",
    '" OR ""="',
    "100% _ \\ escape",
    # HTML and links
    "<script>alert('x')</script>",
    "&lt;b&gt; &amp;",
    "javascript:alert(1)",
    # shells, paths, headers, logs
    "a cube; rm -rf / #",
    "-o out.glb --steps 1",
    "../../etc/passwd",
    "C:\\con\\..\\nul",
    "a cube\r\nSet-Cookie: x=1\r\n\r\n",
    "line\nbreak\ttab\x1b[31mred\x07",
    "2026-01-01 00:00:00 ERROR worker: job_01ARZ3NDEKTSV4RRFFQ69G5FAV failed",
    # quotes, white space, length
    "'single' \"double\" “curly” «guillemets» `back`",
    "  spaces at both ends  ",
    "no-break\u00a0and\u2009thin\u3000wide",
    "x" * 1_000,
    "🧊" * 1_000,
    # scripts and their marks
    "\u202eright to left override\u202c",
    "\u200fمكعب أحمر على أسطوانة\u200f",
    "קובייה אדומה",
    "红色立方体",
    "लाल घन",
    "e\u0301 is not \u00e9",
    "zero\u200bwidth\u200djoiner\ufeffmark",
    "\u2028line\u2029paragraph",
    "👩‍👩‍👧‍👦 🏳️‍🌈 🇪🇺",
    "\U0010ffff \ufffe \x7f \x80",
    # what a method's words may look like to it
    "a cube, front view",
    "<|endoftext|> <|startoftext|> </s> [SEP]",
    "(cube:1.5) [cube|ball]",
)


class Listening:
    """A prior that writes down what its text encoder is given, and goes no further."""

    def __init__(self, prior: Any) -> None:
        self._prior = prior
        self.heard: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._prior, name)

    def encode_text(self, prompts: list[str]) -> Any:
        self.heard += prompts
        raise RuntimeError("this test only wants to know what the encoder is asked")


def test_every_prompt_arrives_byte_equal_at_the_text_encoder(tmp_path: Path, portal: BlockingPortal) -> None:
    service = Service(tmp_path, auth="off")
    plain = with_referee(small_networks())
    loaded = plain.priors["embedded"]
    listening = Listening(loaded.prior)
    networks = Networks({"embedded": dataclasses.replace(loaded, prior=listening)}, plain.rewards)
    api = build_api(service.store, service.objects, service.settings)
    with httpx.Client(base_url="http://dreamserve", transport=InProcess(api, portal)) as http:
        ids = []
        for prompt in CORPUS:
            answer = http.post(
                "/generate", json={"prompt": prompt, "negative_prompt": prompt[::-1], "method": "sds"}
            )
            assert answer.status_code == 202, answer.text
            assert answer.json()["spec"]["prompt"] == prompt
            ids.append(answer.json()["id"])
        worker = service.worker(load=lambda: networks)
        service.finish(*ids, workers=(worker,))
    expected = [text.encode() for prompt in CORPUS for text in (prompt, prompt[::-1])]
    assert [text.encode() for text in listening.heard] == expected
