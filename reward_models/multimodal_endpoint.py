"""A multimodal model behind an OpenAI-compatible endpoint, such as vLLM's: `POST {base}/chat/completions`.

A request that times out, finds nobody, or is answered with 408, 429, 5xx or garbage is repeated after a growing wait
with jitter, or after what `Retry-After` says; any other refusal is final at once. The key, if the server wants one,
comes from the environment variable that the operator names, and appears in no log, error or `repr`.
"""

from __future__ import annotations

import base64
import json
import os
import random
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

import httpx

from reward_models.multimodal_questions import JudgeUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType
    from typing import Self

    from reward_models.multimodal_questions import Question

__all__ = ["Endpoint", "EndpointOptions"]

MOST_BYTES = 1_000_000
"""Of one answer: a text of a few thousand tokens is a hundredth of it."""


@dataclass(frozen=True, slots=True)
class EndpointOptions:
    """How an endpoint is asked. Defaults: 3DGen-R1's judge, but greedy, so that an answer can be had again."""

    timeout_s: float = 60.0
    """Of one request, as a whole. A shared reward's caller waits about as long for all: see `RemoteReward`."""
    tries: int = 4
    give_up_s: float = 180.0
    """No try starts later than this after the first; a `Retry-After` beyond it ends the waiting at once."""
    backoff_s: float = 0.5
    """Before the second try, doubled before each further one, half to all of it at random."""
    parallel: int = 8
    """Requests in flight."""
    max_tokens: int = 512
    temperature: float = 0.0


class _TryAgain(Exception):
    """One try failed in a way that another may not."""

    def __init__(self, reason: str, after_s: float | None = None) -> None:
        super().__init__(reason)
        self.after_s = after_s


class Endpoint:
    """`Transport` over HTTP. Proxies of the environment are not used; close it when done."""

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        key_variable: str | None = None,
        options: EndpointOptions | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Get ready to ask `model` at `base_url` (up to and with /v1).

        `key_variable` names the environment variable that holds the API key. Raises ValueError where it is empty, and
        for an address that is no plain http(s) one.
        """
        url = httpx.URL(base_url)
        if url.scheme not in ("http", "https") or not url.host or url.userinfo or url.query:
            raise ValueError(
                "the judge's endpoint must be an address like http://judge:8000/v1, without user, password or query; "
                "a key goes into an environment variable"
            )
        self.model = model
        self.options = options or EndpointOptions()
        self._url = f"{base_url.rstrip('/')}/chat/completions"
        self._key_variable = key_variable
        self._key = _read_key(key_variable)
        self._sleep = sleep
        self._client = httpx.Client(trust_env=False, timeout=self.options.timeout_s, follow_redirects=False)

    def __repr__(self) -> str:
        return f"Endpoint({self._url!r}, {self.model!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def answer(self, questions: Sequence[Question]) -> list[str]:
        """Answer as `Transport.answer` says, several at a time; raises ValueError when the server refuses."""
        if not questions:
            return []
        with ThreadPoolExecutor(min(self.options.parallel, len(questions))) as threads:
            return list(threads.map(self._answer_one, questions))

    def _answer_one(self, question: Question) -> str:
        body = json.dumps(self._request(question)).encode()
        started, tries = time.monotonic(), self.options.tries
        for number in range(1, tries + 1):
            try:
                return self._try(body)
            except _TryAgain as failed:
                wait_s = failed.after_s
                if wait_s is None:
                    wait_s = self.options.backoff_s * 2 ** (number - 1) * random.uniform(0.5, 1)  # noqa: S311
                late = time.monotonic() - started + wait_s > self.options.give_up_s
                if number == tries or late:
                    asked = f"asks to wait {wait_s:.0f} s more" if late and failed.after_s else "was given up"
                    raise JudgeUnavailable(
                        f"the judge {self.model!r} at {self._url} {asked} after {number} tries: {failed}. Is the "
                        "server up, and does it serve this model?"
                    ) from failed
            self._sleep(wait_s)
        raise AssertionError("unreachable")

    def _request(self, question: Question) -> dict[str, Any]:
        pictures: list[dict[str, Any]] = [
            {
                "type": "image_url",
                "image_url": {"url": "data:image/png;base64," + base64.b64encode(one).decode()},
            }
            for one in question.pictures
        ]
        text = [{"type": "text", "text": question.said}]
        return {
            "model": self.model,
            "messages": [
                {"role": "user", "content": pictures + text if question.pictures_first else text + pictures}
            ],
            "max_tokens": self.options.max_tokens,
            "temperature": self.options.temperature,
        }

    def _try(self, body: bytes) -> str:
        headers = {"Content-Type": "application/json"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        deadline = time.monotonic() + self.options.timeout_s
        try:
            with self._client.stream("POST", self._url, content=body, headers=headers) as response:
                content = b""
                for chunk in response.iter_bytes():
                    content += chunk
                    if time.monotonic() > deadline:
                        raise _TryAgain(f"no whole answer within {self.options.timeout_s:g} s")
                    if len(content) > MOST_BYTES:
                        raise _TryAgain(f"an answer of more than {MOST_BYTES} bytes")
        except httpx.TimeoutException as error:
            raise _TryAgain(f"no answer within {self.options.timeout_s:g} s") from error
        except (httpx.TransportError, httpx.DecodingError) as error:
            raise _TryAgain(f"{type(error).__name__}: {error}") from error
        return self._read(response, content)

    def _read(self, response: httpx.Response, content: bytes) -> str:
        """The text of a completion; raises _TryAgain or ValueError for anything else."""
        status = response.status_code
        if status == 429 or status == 408 or status >= 500:
            raise _TryAgain(f"it answered {status}", _retry_after_s(response.headers.get("Retry-After")))
        if status != 200:
            why = self._without_key(content[:300].decode("utf-8", "replace"))
            if status in (401, 403):
                why = f"it wants another key than that of {self._key_variable or 'no environment variable'}"
            raise ValueError(f"the judge {self.model!r} at {self._url} refuses with status {status}: {why}")
        try:
            text = json.loads(content)["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise _TryAgain("it answered 200, but with no chat completion") from error
        if not isinstance(text, str):
            raise _TryAgain("it answered 200, but with a completion that has no text")
        return text

    def _without_key(self, text: str) -> str:
        return text if self._key is None else text.replace(self._key, "…")


def _read_key(variable: str | None) -> str | None:
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ValueError(
            f"the judge's key is to come from the environment variable {variable}, but that is empty: set it where the "
            "workers run, or name no variable if the server wants no key"
        )
    return key


def _retry_after_s(header: str | None) -> float | None:
    """Seconds of a `Retry-After`, which may also be a date; None where there is none that can be read."""
    if header is None:
        return None
    if header.strip().isdigit():
        return float(header)
    try:
        when = parsedate_to_datetime(header)
    except ValueError:
        return None
    when = when if when.tzinfo else when.replace(tzinfo=UTC)
    return max(0.0, (when - datetime.now(UTC)).total_seconds())
