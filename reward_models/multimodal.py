"""Judges on a multimodal model: pictures and prompts in, strictly read judgements out.

`MultimodalJudge` scores each object by itself, `PairwiseJudge` compares two. Both are rewards (`RewardModel`) that
rank and have no gradient, so each serves as a reward, as a judge, and as DreamDPO's `override`. An answer that cannot
be read is asked for again, with a word on what was wrong; after that it raises `UnparsedAnswers`, or, with
`unparsed="nan"`, its score is NaN, which is neither above nor below any other: for `override` that means undecided.
An endpoint that is down raises `JudgeUnavailable`, also in that case.
"""

from __future__ import annotations

import collections
import json
import math
import threading
from typing import TYPE_CHECKING, Literal, TypeVar

import torch

from reward_models.contracts import RewardCard
from reward_models.multimodal_formats import Pairwise, Unparsed, parse_questions
from reward_models.multimodal_questions import Question, UnparsedAnswers, collage, picture_bytes
from reward_models.picture_reward import check_images

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from reward_models.multimodal_formats import AnswerFormat
    from reward_models.multimodal_questions import Transport

__all__ = ["Answers", "GivenQuestions", "MultimodalJudge", "PairwiseJudge", "WrittenQuestions"]

Value = TypeVar("Value")


class Answers:
    """Ask a transport, read strictly, ask again what could not be read, and remember what could.

    Answers are remembered by (hashes of the pictures, question, model), the latest `remembered` of them; the same
    question is put once also within a call. Safe to use from several threads.
    """

    def __init__(self, transport: Transport, *, tries: int = 2, remembered: int = 10_000) -> None:
        self.transport = transport
        self._tries = tries
        self._remembered = remembered
        self._texts: collections.OrderedDict[str, str] = collections.OrderedDict()
        self._lock = threading.Lock()
        self.counts: collections.Counter[Literal["asked", "remembered", "unparsed"]] = collections.Counter()
        """Questions put, questions answered from memory, and answers that could not be read."""

    def read(
        self, asked: Sequence[tuple[Question, Callable[[str], Value | Unparsed]]]
    ) -> list[Value | Unparsed]:
        """Answer questions, each read by its own reader; raises what the transport raises."""
        keys = [question.key(self.transport.model) for question, _ in asked]
        readings: dict[str, Value | Unparsed] = {}
        for key, (_, parse) in zip(keys, asked, strict=True):
            if (text := self._recall(key)) is not None:
                readings[key] = parse(text)
        pending = {key: one for key, one in zip(keys, asked, strict=True) if key not in readings}
        self.counts["remembered"] += len(asked) - len(pending)
        for _ in range(self._tries):
            if not pending:
                break
            texts = self.transport.answer([question for question, _ in pending.values()])
            self.counts["asked"] += len(pending)
            again = {}
            for (key, (question, parse)), text in zip(pending.items(), texts, strict=True):
                readings[key] = reading = parse(text)
                if isinstance(reading, Unparsed):
                    self.counts["unparsed"] += 1
                    again[key] = (question.again(reading.reason), parse)
                else:
                    self._remember(key, text)
            pending = again
        return [readings[key] for key in keys]

    def _recall(self, key: str) -> str | None:
        with self._lock:
            if key in self._texts:
                self._texts.move_to_end(key)
            return self._texts.get(key)

    def _remember(self, key: str, text: str) -> None:
        with self._lock:
            self._texts[key] = text
            while len(self._texts) > self._remembered:
                self._texts.popitem(last=False)


class MultimodalJudge:
    """Score objects by what a multimodal model says of their pictures: see this module's docstring.

    A format that asks about each view alone gives (G, V) scores, one that shows all views together (G, 1).
    """

    def __init__(
        self,
        name: str,
        format: AnswerFormat,
        answers: Answers,
        *,
        license: str,
        weights_sha256: str | None = None,
        unparsed: Literal["raise", "nan"] = "raise",
    ) -> None:
        self._format = format
        self._answers = answers
        self._unparsed = unparsed
        self.card = _card(name, format.value_range, format.scale, license, answers, weights_sha256)

    def score_batch(
        self, images: Tensor, prompts: list[str], wants_gradient: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Answer as `RewardModel.score_batch` says; the gradient is zero.

        Raises ValueError where a gradient is wanted, UnparsedAnswers, JudgeUnavailable.
        """
        _refuse_gradient(self.card, wants_gradient)
        values = _numbers(self.card.name, self.judge(images, prompts), self._unparsed)
        return values.to(images.device), torch.zeros_like(images)

    def judge(self, images: Tensor, prompts: Sequence[str]) -> list[list[float | Unparsed]]:
        """Judge images (G, V, 3, H, W) in [0, 1] for prompts (G): G lists of V judgements, or of one."""
        check_images(self.card, images)
        asked = []
        for views, prompt in zip(images, prompts, strict=True):
            form = self._format.form(str(prompt))
            pictures = [picture_bytes(view) for view in views]
            shown = [tuple(pictures)] if self._format.together else [(picture,) for picture in pictures]
            asked += [(Question(form.text, some, form.pictures_first), form.parse) for some in shown]
        readings = self._answers.read(asked)
        width = len(readings) // len(images)
        return [readings[start : start + width] for start in range(0, len(readings), width)]


class PairwiseJudge:
    """Compare two objects in one picture, all views of each: see this module's docstring.

    Models prefer a side, so each pair is shown in both orders (`both_orders`), and the gap is the mean of the two.
    """

    def __init__(
        self,
        name: str,
        answers: Answers,
        *,
        license: str,
        format: Pairwise | None = None,
        both_orders: bool = True,
        unparsed: Literal["raise", "nan"] = "raise",
    ) -> None:
        self._format = format or Pairwise()
        self._answers = answers
        self._both_orders = both_orders
        self._unparsed = unparsed
        scale = "1 for the better one of a pair, 0 for the other, 0.5 for both when undecided"
        self.card = _card(name, (0.0, 1.0), scale, license, answers)

    def compare(self, a: Tensor, b: Tensor, prompts: Sequence[str]) -> Tensor:
        """Compare images a and b (G, V, 3, H, W) in [0, 1] for prompts (G): gaps (G, 1) between −1 and 1.

        1: a is better, −1: b is, 0: undecided; ±0.5: so in one order, undecided in the other.
        """
        check_images(self.card, a)
        check_images(self.card, b)
        asked = []
        for one, other, prompt in zip(a, b, prompts, strict=True):
            form = self._format.form(str(prompt))
            orders = [(one, other), (other, one)] if self._both_orders else [(one, other)]
            pictures = [picture_bytes(collage(*pair)) for pair in orders]
            asked += [(Question(form.text, (picture,)), form.parse) for picture in pictures]
        readings = self._answers.read(asked)
        values = _numbers(self.card.name, [[reading] for reading in readings], self._unparsed)
        if self._both_orders:
            values = (values[::2] - values[1::2]) / 2
        return values.to(a.device)

    def score_batch(
        self, images: Tensor, prompts: list[str], wants_gradient: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Score pairs, rows 2k and 2k + 1 of images (G, V, 3, H, W), as DreamDPO and PSD send them: (G, 1).

        Unlike other rewards' rows, those of a pair know of each other. Raises ValueError for rows that are no pairs of
        one prompt, and where a gradient is wanted; UnparsedAnswers; JudgeUnavailable.
        """
        _refuse_gradient(self.card, wants_gradient)
        if len(prompts) % 2 or prompts[::2] != prompts[1::2]:
            raise ValueError(
                f"judge {self.card.name!r} compares pairs of one prompt, but got {len(prompts)} rows that are none. "
                "Use it as the judge or the override of dreamdpo, and a reward that scores single objects elsewhere"
            )
        gap = self.compare(images[::2], images[1::2], prompts[::2])
        return torch.stack([0.5 + gap / 2, 0.5 - gap / 2], 1).flatten(0, 1), torch.zeros_like(images)


class GivenQuestions:
    """A checklist's questions as somebody prepared them, by exact prompt; `otherwise` is asked for other prompts."""

    def __init__(
        self,
        questions: Mapping[str, Sequence[str]],
        otherwise: Callable[[str], Sequence[str]] | None = None,
    ) -> None:
        for prompt, listed in questions.items():
            if isinstance(listed, str) or not listed or not all(isinstance(one, str) for one in listed):
                raise ValueError(
                    f"the questions for {prompt!r} are {listed!r}; expected a list of one text or more"
                )
        self._questions = {prompt: tuple(listed) for prompt, listed in questions.items()}
        self._otherwise = otherwise

    @classmethod
    def read(cls, path: Path, otherwise: Callable[[str], Sequence[str]] | None = None) -> GivenQuestions:
        """Read a JSON object of lists of questions by prompt; raises ValueError for anything else."""
        try:
            told = json.loads(path.read_text("utf-8"))
        except ValueError as error:
            raise ValueError(f"{path.name} is no JSON file: {error}") from error
        if not isinstance(told, dict):
            raise ValueError(
                f"{path.name} holds {type(told).__name__}; expected an object: prompt → list of questions"
            )
        return cls(told, otherwise)

    def __call__(self, prompt: str) -> Sequence[str]:
        if prompt in self._questions:
            return self._questions[prompt]
        if self._otherwise is None:
            raise ValueError(
                f"there are no yes/no questions for {prompt!r}, only for {len(self._questions)} other prompts: add "
                "them, or let the model write them"
            )
        return self._otherwise(prompt)


class WrittenQuestions:
    """A checklist's questions as the model itself writes them for a prompt, once per prompt."""

    def __init__(self, answers: Answers, most: int = 4) -> None:
        self._answers = answers
        self._most = most

    def __call__(self, prompt: str) -> Sequence[str]:
        text = (
            f"Write up to {self._most} short questions by which one can check whether a picture shows what a text "
            "says: what things there are, how many, their colors, parts and places. Each must be answered by Yes when "
            "the picture fits. Answer with a numbered list only, one question on each line, such as\n"
            f"1. Is there a dog?\nThe text: {prompt}"
        )
        (questions,) = self._answers.read(
            [(Question(text), lambda answer: parse_questions(answer, self._most))]
        )
        if isinstance(questions, Unparsed):
            raise UnparsedAnswers(
                f"{self._answers.transport.model} wrote no questions for {prompt!r}: {questions}"
            )
        return questions


def _card(
    name: str,
    value_range: tuple[float, float] | None,
    scale: str,
    license: str,
    answers: Answers,
    weights_sha256: str | None = None,
) -> RewardCard:
    return RewardCard(
        name=name,
        value_range=value_range,
        scale=f"{scale}, says {answers.transport.model}",
        views=None,
        uses_prompt=True,
        differentiable=False,
        license=license,
        weights_sha256=weights_sha256,
        preprocessing="8-bit PNG; the model's own resizing",
    )


def _refuse_gradient(card: RewardCard, wants_gradient: Tensor) -> None:
    if bool(wants_gradient.any()):
        raise ValueError(
            f"reward {card.name!r} has no gradient, it only ranks images. Choose a differentiable reward (reward3d, "
            "imagereward), or a method that asks for none (dreamdpo, psd)"
        )


def _numbers(name: str, rows: list[list[float | Unparsed]], unparsed: Literal["raise", "nan"]) -> Tensor:
    """Make a tensor of judgements; what could not be read is NaN or raises UnparsedAnswers."""
    failed = [one for row in rows for one in row if isinstance(one, Unparsed)]
    if failed and unparsed == "raise":
        total = sum(len(row) for row in rows)
        raise UnparsedAnswers(
            f"{len(failed)} of {total} answers of judge {name!r} cannot be read, also when asked again. The first: "
            f"{failed[0]}. Use a model that keeps to the form, or another format"
        )
    return torch.tensor([[math.nan if isinstance(one, Unparsed) else one for one in row] for row in rows])
