"""Forms in which a multimodal model is asked for a judgement, each with the strict reader of its answers.

A reader gives a number or an `Unparsed` that says why there is none: prose, a number out of range, a missing or a
contradicting line is never a zero. What a model thinks aloud before `</think>` is no part of its answer.

Sources: yes/no lists from DreamDPO (arXiv 2502.04370, `verifiers/Qwen`); boxed 0/1 and JSON 0–5 from 3DGen-R1
(arXiv 2512.10949, its Qwen judge); three lines from UnifiedReward-2.0; left/right/undecided from GPTEval3D. The
wording is ours. Differs from the published readers, which count any line with "Yes" (`reading="released"`), clamp
a missing line to 1, divide a score up to 5 by 4, and fall back on the last number of the text, or on 0.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = [
    "AnswerFormat",
    "Boxed",
    "Checklist",
    "Form",
    "JsonScore",
    "Pairwise",
    "Unified",
    "Unparsed",
    "count_yes_lines",
    "parse_questions",
]

_SHOWN = 200
"""How many characters of an answer an error repeats."""


@dataclass(frozen=True, slots=True)
class Unparsed:
    """An answer out of which no judgement can be read."""

    reason: str
    answer: str

    def __str__(self) -> str:
        shown = self.answer if len(self.answer) <= _SHOWN else self.answer[:_SHOWN] + "…"
        return f"{self.reason}; the answer was {shown!r}"


class Form(NamedTuple):
    """One question's words, and how its answer is read."""

    text: str
    parse: Callable[[str], float | Unparsed]
    pictures_first: bool = True


class AnswerFormat(Protocol):
    """A way to ask for one judgement of an object's picture or pictures."""

    @property
    def value_range(self) -> tuple[float, float] | None: ...

    @property
    def scale(self) -> str:
        """What one unit of the value means, in a sentence for users."""
        ...

    @property
    def together(self) -> bool:
        """Whether all views of an object are shown with one question; else each view is asked about alone."""
        ...

    def form(self, prompt: str) -> Form:
        """Write the question about pictures made for `prompt`."""
        ...


@dataclass(frozen=True, slots=True)
class Checklist:
    """Prepared questions, each answered "A1: Yes" or "A1: No" on a line of its own; the value is the share of Yes."""

    questions: Callable[[str], Sequence[str]]
    """From a prompt to its questions: `multimodal.GivenQuestions` or `multimodal.WrittenQuestions`."""
    reading: Literal["strict", "released"] = "strict"
    """`released` counts lines with "Yes" as the published code does, and finds something in any answer."""
    together: bool = False

    @property
    def value_range(self) -> tuple[float, float] | None:
        return (0.0, 1.0) if self.reading == "strict" else None

    @property
    def scale(self) -> str:
        return (
            "share of questions answered Yes" if self.reading == "strict" else "number of lines that say Yes"
        )

    def form(self, prompt: str) -> Form:
        """Ask the prompt's questions; raises ValueError where there are none for it."""
        questions = self.questions(prompt)
        listed = "\n".join(f"Q{n}: {question}" for n, question in enumerate(questions, 1))
        answers = "\n".join(f"A{n}: [Yes/No]" for n in range(1, len(questions) + 1))
        text = (
            "You are an expert in judging whether pictures show what a text says. Look carefully, then answer each "
            f"question with Yes or No only.\n{listed}\nAnswer in this form, one line for each question:\n{answers}"
        )
        if self.reading == "released":
            return Form(text, lambda answer: float(count_yes_lines(answer)))
        return Form(text, lambda answer: _parse_checklist(answer, len(questions)))


@dataclass(frozen=True, slots=True)
class Boxed:
    r"""One strict decision: `\boxed{1}` if `criterion` holds, else `\boxed{0}`."""

    criterion: str = "the object matches the text perfectly, in everything that the text names"
    together: bool = True
    value_range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    scale: ClassVar[str] = "1: the model says yes"

    def form(self, prompt: str) -> Form:
        text = (
            f"The pictures show one 3D object, made for this text: {prompt}\n"
            "First describe in one paragraph what they show. Then list the key elements of the text. Then compare the "
            f"two. Close with \\boxed{{1}} only if {self.criterion}, else with \\boxed{{0}}."
        )
        return Form(text, _parse_boxed)


@dataclass(frozen=True, slots=True)
class JsonScore:
    """A sum of sub-scores between 0 and 1, one for each of `criteria`, told as a JSON object with `score`."""

    criteria: tuple[str, ...] = (
        "it is of the kind of thing that the text names",
        "it is complete, no part is missing",
        "its geometry is realistic and the same from all sides",
        "it can be seen clearly",
        "it is free of artefacts",
    )
    together: bool = True

    @property
    def value_range(self) -> tuple[float, float]:
        return (0.0, float(len(self.criteria)))

    @property
    def scale(self) -> str:
        return f"one for each of {len(self.criteria)} criteria that are met"

    def form(self, prompt: str) -> Form:
        listed = "\n".join(f"- {criterion}: 0 to 1" for criterion in self.criteria)
        text = (
            "The pictures show one 3D object. First describe it from all views, without regard to any text. Then "
            f"judge it as made for this text: {prompt}\nGive a sub-score for each of these and add them up:\n{listed}\n"
            'Answer with one JSON object only: {"description": "…", "score": a number from 0 to '
            f'{len(self.criteria)}, "explanation": "…"}}'
        )
        return Form(text, lambda answer: _parse_json_score(answer, len(self.criteria)))


@dataclass(frozen=True, slots=True)
class Unified:
    """UnifiedReward's ratings from 1 to 5, on a line each; the value is the sum of those named by `parts`."""

    parts: tuple[Literal["Alignment", "Coherence", "Style"], ...] = ("Alignment", "Coherence", "Style")
    together: ClassVar[bool] = False

    @property
    def value_range(self) -> tuple[float, float]:
        return (1.0 * len(self.parts), 5.0 * len(self.parts))

    @property
    def scale(self) -> str:
        return f"sum of ratings from 1 to 5: {', '.join(self.parts).lower()}"

    def form(self, prompt: str) -> Form:
        meanings = {
            "Alignment": "how well the picture fits the caption",
            "Coherence": "how logically consistent it is, free of artefacts",
            "Style": "how appealing it looks, whatever the caption says",
        }
        asked = "\n".join(f"- {part} Score: {meanings[part]}." for part in self.parts)
        lines = "\n".join(f"{part} Score (1-5): X" for part in self.parts)
        text = (
            f"You are given a picture and the caption it was made from. Rate:\n{asked}\nRatings go from 1 to 5, more "
            f"is better. Answer in this form, nothing else:\n{lines}\n\nYour task is this caption: {prompt}"
        )
        return Form(text, lambda answer: _parse_unified(answer, self.parts))


@dataclass(frozen=True, slots=True)
class Pairwise:
    """Two objects side by side in one picture: 1 for left, −1 for right, 0 for undecided."""

    criterion: str = "which one fits the text better and is the better 3D object"

    def form(self, prompt: str) -> Form:
        """Write the question about a `collage` of two objects made for `prompt`."""
        text = (
            "The left and the right half of the picture show two 3D objects, each from several sides, made for this "
            f"text: {prompt}\nCompare them: {self.criterion}. Say in a few sentences why. Close with a line of its own "
            "in this form:\nVerdict: left\nor\nVerdict: right\nor, if neither is better,\nVerdict: undecided"
        )
        return Form(text, _parse_verdict)


def count_yes_lines(answer: str) -> int:
    """Count lines that contain "Yes", as the published DreamDPO does: "Yesterday" counts, "yes" does not."""
    return sum("Yes" in line for line in answer.split("\n"))


def parse_questions(answer: str, most: int) -> tuple[str, ...] | Unparsed:
    """Read a numbered list of 1 to `most` questions, one on each line, and nothing else."""
    lines = [line.strip() for line in _spoken(answer).splitlines() if line.strip()]
    questions = [match[1] for line in lines if (match := re.fullmatch(r"\d{1,2}[.)]\s+(\S.*\?)", line))]
    if len(questions) != len(lines) or not 1 <= len(questions) <= most:
        return Unparsed(f"expected 1 to {most} numbered lines that end in a question mark", answer)
    return tuple(questions)


def _parse_checklist(answer: str, count: int) -> float | Unparsed:
    spoken = _spoken(answer)
    if count == 1 and (alone := re.fullmatch(r"\[?(yes|no)\]?[.!]?", spoken.strip(), re.IGNORECASE)):
        return float(alone[1].lower() == "yes")
    found: dict[int, bool] = {}
    for line in spoken.splitlines():
        numbered = re.match(r"\W*A(\d+)\W*:", line)
        if numbered is None:
            continue
        said = re.fullmatch(r"[\s*]*\[?(yes|no)\]?[.!]?[\s*]*", line[numbered.end() :], re.IGNORECASE)
        if said is None:
            return Unparsed(f"A{numbered[1]} is neither Yes nor No", answer)
        if int(numbered[1]) in found:
            return Unparsed(f"A{numbered[1]} is there twice", answer)
        found[int(numbered[1])] = said[1].lower() == "yes"
    if set(found) != set(range(1, count + 1)):
        return Unparsed(f"expected the lines A1 to A{count}, found {len(found)} answered lines", answer)
    return sum(found.values()) / count


def _parse_boxed(answer: str) -> float | Unparsed:
    boxed = set(re.findall(r"\\boxed\{\s*([^{}]*?)\s*\}", _spoken(answer)))
    if boxed not in ({"0"}, {"1"}):
        return Unparsed(
            r"expected \boxed{0} or \boxed{1}, " + (f"found {sorted(boxed)}" if boxed else "found none"),
            answer,
        )
    return float(boxed.pop())


def _parse_json_score(answer: str, most: int) -> float | Unparsed:
    spoken = _spoken(answer).strip()
    fenced = re.findall(r"```(?:json)?\s*\n(.*?)```", spoken, re.DOTALL)
    try:
        told: Any = json.loads(fenced[-1] if fenced else spoken, parse_constant=_no_number)
    except (ValueError, RecursionError):
        return Unparsed("expected one JSON object, alone or in a ```json block", answer)
    score = told.get("score") if isinstance(told, dict) else None
    if isinstance(score, bool) or not isinstance(score, (int, float)):
        return Unparsed("expected a JSON object with a number as 'score'", answer)
    return _within(float(score), 0, most, answer)


def _parse_unified(answer: str, parts: Sequence[str]) -> float | Unparsed:
    total = 0.0
    for part in parts:
        line = rf"^[ \t*]*{part} Score[ \t*]*(?:\(1-5\))?[ \t*]*:[ \t*]*(\S+?)[ \t*]*$"
        found = re.findall(line, _spoken(answer), re.MULTILINE | re.IGNORECASE)
        if len(found) != 1 or not re.fullmatch(r"\d+(\.\d+)?", found[0]):
            return Unparsed(
                f"expected one line '{part} Score (1-5): X' with a number, found {found or 'none'}", answer
            )
        rating = _within(float(found[0]), 1, 5, answer)
        if isinstance(rating, Unparsed):
            return rating
        total += rating
    return total


def _parse_verdict(answer: str) -> float | Unparsed:
    spoken = _spoken(answer)
    values = {"left": 1.0, "right": -1.0, "undecided": 0.0}
    found = re.findall(r"^[ \t*]*verdict[ \t*]*:[ \t*]*(\w+)[ \t*.]*$", spoken, re.MULTILINE | re.IGNORECASE)
    said = {word.lower() for word in found} or {spoken.strip().strip("*. ").lower()}
    if len(said) != 1 or not said <= set(values):
        return Unparsed("expected one line 'Verdict: left', 'right' or 'undecided'", answer)
    return values[said.pop()]


def _spoken(answer: str) -> str:
    """What follows the model's thoughts; nothing, if it never stopped thinking."""
    thoughts, end, spoken = answer.rpartition("</think>")
    return spoken if end or "<think>" not in answer else thoughts


def _within(value: float, low: float, high: float, answer: str) -> float | Unparsed:
    if math.isfinite(value) and low <= value <= high:
        return value
    return Unparsed(f"{value:g} is not between {low:g} and {high:g}", answer)


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")
