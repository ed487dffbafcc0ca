"""Every answer form is read strictly: a clean answer gives its number, anything else says why it gives none."""

from __future__ import annotations

import pytest

from reward_models.ensemble_presets import higrpo_step1, higrpo_step2
from reward_models.multimodal_formats import (
    AnswerFormat,
    Boxed,
    Checklist,
    JsonScore,
    Pairwise,
    Unified,
    Unparsed,
    count_yes_lines,
    parse_questions,
)
from reward_models.multimodal_presets import FORMATS

QUESTIONS = ("Is there a cube?", "Is it red?", "Are there two cups?")
PROMPT = "a red cube {0} \\boxed{1} %s beside two cups"
CHECKLIST = Checklist(lambda prompt: QUESTIONS)
ONE_QUESTION = Checklist(lambda prompt: QUESTIONS[:1])

PROSE = "What a lovely picture. I would say it is rather good, perhaps a 4 of 5."
GARBAGE = "\x00\ufffd}{][ <|im_start|> ÿÿ 0 1 Yes"


def read(format: AnswerFormat | Pairwise, answer: str) -> float | Unparsed:
    return format.form(PROMPT).parse(answer)


@pytest.mark.parametrize(
    ("format", "answer", "value"),
    [
        (CHECKLIST, "A1: Yes\nA2: No\nA3: Yes", 2 / 3),
        (CHECKLIST, "A1: No\nA2: No\nA3: No", 0.0),
        (CHECKLIST, "Here I go:\n\n**A1:** [yes]\nA3: NO.\nA2: Yes", 2 / 3),
        (CHECKLIST, "<think>A1: No?\nA1: Yes</think>\nA1: Yes\nA2: Yes\nA3: Yes", 1.0),
        (ONE_QUESTION, "A1: Yes", 1.0),
        (ONE_QUESTION, "No.", 0.0),
        (Boxed(), "A cube.\nCube, red.\nBoth fit: \\boxed{1}", 1.0),
        (Boxed(), "\\boxed{ 0 }", 0.0),
        (JsonScore(), '{"description": "a cube", "score": 3.5, "explanation": "…"}', 3.5),
        (JsonScore(), 'Well.\n```json\n{"score": 0}\n```', 0.0),
        (JsonScore(), "<think>5</think>```\n{\"score\": 5}\n```", 5.0),
        (
            Unified(),
            "Alignment Score (1-5): 2.69\nCoherence Score (1-5): 4\nStyle Score (1-5): 5",
            11.69,
        ),
        (Unified(("Alignment",)), "**Alignment Score (1-5):** 1", 1.0),
        (Pairwise(), "The left one has a handle.\nVerdict: left", 1.0),
        (Pairwise(), "**Verdict:** Right.", -1.0),
        (Pairwise(), "undecided", 0.0),
    ],
)  # fmt: skip
def test_a_clean_answer_is_read(format: AnswerFormat | Pairwise, answer: str, value: float) -> None:
    assert read(format, answer) == pytest.approx(value)


@pytest.mark.parametrize(
    "answer", ["", PROSE, GARBAGE, "<think>A1: Yes \\boxed{1}", '"score"', "null", "[1]"]
)
@pytest.mark.parametrize("format", [CHECKLIST, ONE_QUESTION, Boxed(), JsonScore(), Unified(), Pairwise()])
def test_prose_and_garbage_are_unparsed_and_never_zero(format: AnswerFormat | Pairwise, answer: str) -> None:
    reading = read(format, answer)
    assert isinstance(reading, Unparsed)
    assert reading.answer == answer


@pytest.mark.parametrize(
    ("format", "answer", "reason"),
    [
        (CHECKLIST, "A1: Yes\nA2: No", "the lines A1 to A3, found 2"),
        (CHECKLIST, "A1: Yes\nA2: No\nA3: Yes\nA4: No", "A1 to A3, found 4"),
        (CHECKLIST, "A1: Yes\nA2: perhaps\nA3: Yes", "A2 is neither Yes nor No"),
        (CHECKLIST, "A1: [Yes/No]\nA2: No\nA3: Yes", "A1 is neither"),
        (CHECKLIST, "A1: Yes\nA1: No\nA3: Yes", "A1 is there twice"),
        (CHECKLIST, "Yes", "found 0"),
        (Boxed(), "\\boxed{1} or \\boxed{0}", r"found \['0', '1'\]"),
        (Boxed(), "\\boxed{2}", r"found \['2'\]"),
        (JsonScore(), '{"score": 6}', "6 is not between 0 and 5"),
        (JsonScore(), '{"score": -0.1}', "not between"),
        (JsonScore(), '{"score": true}', "a number as 'score'"),
        (JsonScore(), '{"score": "4"}', "a number as 'score'"),
        (JsonScore(), '{"score": NaN}', "one JSON object"),
        (JsonScore(), '{"score": 1e999}', "inf is not between"),
        (JsonScore(), '{"score": 4', "one JSON object"),
        (JsonScore(), "[" * 100_000, "one JSON object"),
        (Unified(), "Alignment Score (1-5): 3\nStyle Score (1-5): 3", "'Coherence Score"),
        (Unified(("Style",)), "Style Score (1-5): 0.5", "0.5 is not between 1 and 5"),
        (Unified(("Style",)), "Style Score (1-5): X", "with a number"),
        (Unified(("Style",)), "Style Score (1-5): 3\nStyle Score (1-5): 4", "one line"),
        (Pairwise(), "Verdict: left\nVerdict: right", "one line"),
        (Pairwise(), "Verdict: both", "one line"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_an_answer_is_said(
    format: AnswerFormat | Pairwise, answer: str, reason: str
) -> None:
    reading = read(format, answer)
    assert isinstance(reading, Unparsed)
    with pytest.raises(ValueError, match=reason):
        raise ValueError(reading)
    assert len(str(reading)) < 500


def test_questions_carry_the_prompt_as_it_is() -> None:
    for format in (Boxed(), JsonScore(), Unified(), Pairwise()):
        assert PROMPT in format.form(PROMPT).text
    form = CHECKLIST.form(PROMPT)
    assert "Q2: Is it red?" in form.text
    assert form.text.endswith("A1: [Yes/No]\nA2: [Yes/No]\nA3: [Yes/No]")


def test_the_released_reading_counts_lines_and_has_no_upper_end() -> None:
    released = Checklist(lambda prompt: QUESTIONS, reading="released")
    assert released.value_range is None
    assert read(released, "Yes Yes\nYesterday\nyes") == count_yes_lines("Yes Yes\nYesterday\nyes") == 2
    assert read(released, PROSE) == 0


def test_declared_ranges_hold_what_is_read() -> None:
    assert JsonScore().value_range == (0, 5)
    assert JsonScore(criteria=("a", "b", "c")).value_range == (0, 3)
    assert Unified().value_range == (3, 15)
    assert Boxed.value_range == CHECKLIST.value_range == (0, 1)


def test_a_written_list_of_questions_is_read_whole_or_not_at_all() -> None:
    assert parse_questions("1. Is it red?\n2) Is it a cube?\n", 4) == ("Is it red?", "Is it a cube?")
    for bad in ("", PROSE, "1. Is it red?\nHope this helps!", "1. It is red.", "1. a?\n2. b?\n3. c?"):
        assert isinstance(parse_questions(bad, 2), Unparsed), bad


def test_the_judges_that_published_ensembles_name_have_the_ranges_that_these_expect() -> None:
    named = [member for spec in (higrpo_step1(), higrpo_step2()) for member in spec.members]
    ranges = {one.reward: FORMATS[one.reward].value_range for one in named if one.reward in FORMATS}
    assert ranges == {
        "unified-alignment": (1, 5),
        "category": (0, 1),
        "unified": (3, 15),
        "appearance": (0, 3),
    }
    assert {one.reward for one in named} - set(FORMATS) == {"hpsv2.1", "parts"}
