"""Judges over a real endpoint on a local server: scores, comparisons, memory, and answers that cannot be read."""

from __future__ import annotations

import base64
import io
import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image

from reward_models.ensemble import Ensemble, EnsembleSpec, Member
from reward_models.multimodal import Answers, GivenQuestions, MultimodalJudge, PairwiseJudge, WrittenQuestions
from reward_models.multimodal_endpoint import Endpoint, EndpointOptions
from reward_models.multimodal_formats import Boxed, Checklist, JsonScore, Unified, Unparsed
from reward_models.multimodal_questions import JudgeUnavailable, UnparsedAnswers
from tests.unit.reward_models.judge_server import Reply, judge_server, pictures, said
from workers.methods.dreamdpo import Preference, override_preference, override_released

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from reward_models.contracts import RewardModel
    from tests.unit.reward_models.judge_server import JudgeServer

Ask = tuple[Answers, "JudgeServer"]
NOBODY = torch.zeros(2, dtype=torch.bool)


def solid(*colors: tuple[float, float, float]) -> torch.Tensor:
    """One view of one color for each: (V, 3, 16, 16)."""
    return torch.tensor(colors)[:, :, None, None].expand(-1, -1, 16, 16).clone()


RED, BLUE = (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)
PAIR = torch.stack([solid(RED, RED, BLUE, BLUE), solid(BLUE, BLUE, BLUE, BLUE)])
"""Two candidates of four views, the first one half red."""


def redness(url: str) -> np.ndarray[Any, Any]:
    """Where a sent picture is red."""
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))), int)
    return picture[..., 0] - picture[..., 2] > 128


def sees_red(number: int, request: dict[str, Any]) -> Reply:
    """Answer every form truly as to the question: is it red?"""
    red = [bool(redness(url).any()) for url in pictures(request)]
    text = said(request)
    if "numbered list" in text:
        return Reply("1. Is it red?\n2. Is it a thing?")
    if "Verdict" in text:
        where = np.flatnonzero(redness(pictures(request)[0]).any(0))
        if not len(where):
            return Reply("Verdict: undecided")
        return Reply(f"Verdict: {'left' if where[0] < 16 else 'right'}")
    if "boxed" in text:
        return Reply(f"\\boxed{{{int(any(red))}}}")
    if "JSON" in text:
        return Reply(json.dumps({"score": 5 * sum(red) / len(red)}))
    if "Alignment" in text:
        rating = 5 if red[0] else 1
        return Reply(
            "\n".join(f"{part} Score (1-5): {rating}" for part in ("Alignment", "Coherence", "Style"))
        )
    return Reply(
        "\n".join(f"A{n}: {'Yes' if red[0] or n > 1 else 'No'}" for n in range(1, 1 + text.count("[Yes/No]")))
    )


@pytest.fixture
def asking() -> Iterator[Callable[..., Ask]]:
    """Start a server that answers as told, and give what asks it."""
    import contextlib

    with contextlib.ExitStack() as stack:

        def start(answer: Callable[[int, dict[str, Any]], Reply] = sees_red, **options: Any) -> Ask:
            server = stack.enter_context(judge_server(answer))
            endpoint = Endpoint(
                server.base_url, "seer-7b", options=EndpointOptions(tries=2), sleep=lambda seconds: None
            )
            return Answers(stack.enter_context(endpoint), **options), server

        yield start


RED_QUESTIONS = GivenQuestions({"a red thing": ["Is it red?", "Is it a thing?"]})


@pytest.mark.parametrize(
    ("format", "expected"),
    [
        (Checklist(RED_QUESTIONS), [[1, 1, 0.5, 0.5], [0.5] * 4]),
        (Checklist(RED_QUESTIONS, reading="released"), [[2, 2, 1, 1], [1] * 4]),
        (Boxed(), [[1], [0]]),
        (Boxed(together=False), [[1, 1, 0, 0], [0] * 4]),
        (JsonScore(), [[2.5], [0]]),
        (Unified(), [[15, 15, 3, 3], [3] * 4]),
    ],
)
def test_each_form_scores_pictures_end_to_end(
    asking: Callable[..., Ask], format: Any, expected: list[list[float]]
) -> None:
    answers, server = asking()
    judge: RewardModel = MultimodalJudge("lmm", format, answers, license="Apache-2.0")
    values, gradient = judge.score_batch(PAIR, ["a red thing"] * 2, NOBODY)
    torch.testing.assert_close(values, torch.tensor(expected, dtype=torch.float32))
    assert not gradient.any()
    assert judge.card.value_range == format.value_range
    assert not judge.card.differentiable
    assert "seer-7b" in judge.card.scale
    assert {len(pictures(request)) for request in server.requests} == ({4} if format.together else {1})


def test_questions_are_written_once_per_prompt(asking: Callable[..., Ask]) -> None:
    answers, server = asking()
    judge = MultimodalJudge("lmm", Checklist(WrittenQuestions(answers)), answers, license="Apache-2.0")
    values, _ = judge.score_batch(PAIR, ["a red thing"] * 2, NOBODY)
    torch.testing.assert_close(values, torch.tensor([[1, 1, 0.5, 0.5], [0.5] * 4]))
    judge.score_batch(PAIR, ["a red thing"] * 2, NOBODY)
    assert sum("numbered list" in said(request) for request in server.requests) == 1


def test_given_questions_are_read_from_a_file_and_checked(tmp_path: Path) -> None:
    file = tmp_path / "questions.json"
    file.write_text('{"a dog": ["Is it a dog?"]}')
    questions = GivenQuestions.read(file)
    assert questions("a dog") == ("Is it a dog?",)
    with pytest.raises(ValueError, match="no yes/no questions for 'a cat', only for 1 other"):
        questions("a cat")
    assert GivenQuestions.read(file, otherwise=lambda prompt: [f"Is it {prompt}?"])("a cat") == [
        "Is it a cat?"
    ]
    for bad, told in (
        ("[]", "holds list"),
        ("{", "no JSON"),
        ('{"a": "b"}', "expected a list"),
        ('{"a": []}', "list"),
    ):
        file.write_text(bad)
        with pytest.raises(ValueError, match=told):
            GivenQuestions.read(file)


def test_the_same_picture_and_question_are_asked_about_once(asking: Callable[..., Ask]) -> None:
    answers, server = asking()
    judge = MultimodalJudge("lmm", Unified(), answers, license="Apache-2.0")
    judge.score_batch(PAIR, ["a red thing"] * 2, NOBODY)
    assert len(server.requests) == 2  # a red and a blue view
    judge.score_batch(PAIR, ["a red thing"] * 2, NOBODY)
    assert len(server.requests) == 2
    judge.score_batch(PAIR, ["a red box"] * 2, NOBODY)
    assert len(server.requests) == 4
    assert answers.counts == {"asked": 4, "remembered": 20}


def test_memory_is_bounded(asking: Callable[..., Ask]) -> None:
    answers, server = asking(remembered=1)
    judge = MultimodalJudge("lmm", Boxed(), answers, license="Apache-2.0")
    for _ in range(2):
        for row in range(2):
            judge.judge(PAIR[row : row + 1], ["x"])
    assert len(server.requests) == 4


def test_an_unreadable_answer_is_asked_for_again_with_a_reason(asking: Callable[..., Ask]) -> None:
    answers, server = asking(
        lambda number, request: Reply("It is red, I think" if number == 1 else "\\boxed{1}")
    )
    judge = MultimodalJudge("lmm", Boxed(), answers, license="Apache-2.0")
    assert judge.judge(PAIR[:1], ["x"]) == [[1.0]]
    assert "could not be read: expected \\boxed{0} or \\boxed{1}" in said(server.requests[1])
    assert judge.judge(PAIR[:1], ["x"]) == [[1.0]]
    assert answers.counts == {"asked": 2, "unparsed": 1, "remembered": 1}


def half_prose(number: int, request: dict[str, Any]) -> Reply:
    return Reply("A lovely thing.") if redness(pictures(request)[0]).any() else Reply("\\boxed{0}")


def test_what_stays_unreadable_is_an_error_with_counts_or_not_a_number_but_never_zero(
    asking: Callable[..., Ask],
) -> None:
    answers, _ = asking(half_prose)
    format = Boxed(together=False)
    strict = MultimodalJudge("lmm", format, answers, license="Apache-2.0")
    with pytest.raises(
        UnparsedAnswers, match=r"2 of 8 answers of judge 'lmm' cannot be read.*'A lovely thing\.'"
    ):
        strict.score_batch(PAIR, ["x"] * 2, NOBODY)
    lenient = MultimodalJudge("lmm", format, answers, license="Apache-2.0", unparsed="nan")
    values, _ = lenient.score_batch(PAIR, ["x"] * 2, NOBODY)
    assert values.isnan().tolist() == [[True, True, False, False], [False] * 4]
    assert isinstance(lenient.judge(PAIR[:1], ["x"])[0][0], Unparsed)


def test_an_endpoint_that_is_down_is_never_a_score(asking: Callable[..., Ask]) -> None:
    answers, _ = asking(lambda number, request: Reply(status=503))
    judge = MultimodalJudge("lmm", Boxed(), answers, license="Apache-2.0", unparsed="nan")
    with pytest.raises(JudgeUnavailable, match="it answered 503"):
        judge.score_batch(PAIR, ["x"] * 2, NOBODY)


def test_as_override_a_judge_decides_where_it_prefers_and_nowhere_else(asking: Callable[..., Ask]) -> None:
    answers, _ = asking()
    judge = MultimodalJudge("lmm", Boxed(together=False), answers, license="Apache-2.0")
    (a, b), _ = judge.score_batch(PAIR, ["x"] * 2, NOBODY)
    first = Preference(torch.tensor([False, True, False, True]), torch.tensor([0.1, 0.2, 0.3, 0.4]))
    overridden = override_preference(first, a, b, tau=0.25)
    assert overridden.a_wins.tolist() == [True, True, False, True]
    torch.testing.assert_close(overridden.gap, torch.tensor([0.25, 0.25, 0.3, 0.4]))


def test_an_unreadable_answer_leaves_the_first_judges_ranking(asking: Callable[..., Ask]) -> None:
    answers, _ = asking(half_prose)
    judge = MultimodalJudge("lmm", Boxed(together=False), answers, license="Apache-2.0", unparsed="nan")
    (a, b), _ = judge.score_batch(PAIR, ["x"] * 2, NOBODY)
    first = Preference(torch.tensor([False, True, False, True]), torch.tensor([0.1, 0.2, 0.3, 0.4]))
    for overridden in (override_preference(first, a, b, tau=0.25), override_released(first, a, b)):
        assert torch.equal(overridden.a_wins, first.a_wins)
        assert torch.equal(overridden.gap, first.gap)


def test_a_pair_is_compared_in_both_orders(asking: Callable[..., Ask]) -> None:
    answers, server = asking()
    judge = PairwiseJudge("duel", answers, license="Apache-2.0")
    a, b = PAIR[:1], PAIR[1:]
    assert judge.compare(a, b, ["x"]).tolist() == [[1.0]]
    assert judge.compare(b, a, ["x"]).tolist() == [[-1.0]]
    assert judge.compare(b, b, ["x"]).tolist() == [[0.0]]
    assert len(server.requests) == 3
    values, _ = judge.score_batch(
        torch.cat([b, a, a, b, b, b]), ["x", "x", "y", "y", "x", "x"], torch.zeros(6)
    )
    assert values.tolist() == [[0], [1], [1], [0], [0.5], [0.5]]


def test_a_model_that_always_says_left_is_undecided(asking: Callable[..., Ask]) -> None:
    answers, _ = asking(lambda number, request: Reply("Verdict: left"))
    assert PairwiseJudge("duel", answers, license="MIT").compare(PAIR[:1], PAIR[1:], ["x"]).tolist() == [
        [0.0]
    ]
    once = PairwiseJudge("duel", answers, license="MIT", both_orders=False)
    assert once.compare(PAIR[:1], PAIR[1:], ["x"]).tolist() == [[1.0]]


def test_a_comparison_in_prose_is_undecided_only_where_that_was_asked_for(asking: Callable[..., Ask]) -> None:
    answers, _ = asking(lambda number, request: Reply("Both are nice."))
    with pytest.raises(UnparsedAnswers, match="2 of 2 answers of judge 'duel'"):
        PairwiseJudge("duel", answers, license="MIT").compare(PAIR[:1], PAIR[1:], ["x"])
    lenient = PairwiseJudge("duel", answers, license="MIT", unparsed="nan")
    assert all(math.isnan(value) for (value,) in lenient.score_batch(PAIR, ["x"] * 2, NOBODY)[0].tolist())


def test_wrong_use_is_refused_in_words(asking: Callable[..., Ask]) -> None:
    answers, server = asking()
    judge = MultimodalJudge("lmm", Boxed(), answers, license="MIT")
    duel = PairwiseJudge("duel", answers, license="MIT")
    for ranking in (judge, duel):
        with pytest.raises(ValueError, match="has no gradient, it only ranks"):
            ranking.score_batch(PAIR, ["x"] * 2, torch.tensor([False, True]))
    with pytest.raises(ValueError, match="pairs of one prompt, but got 2 rows"):
        duel.score_batch(PAIR, ["x", "y"], NOBODY)
    with pytest.raises(ValueError, match="pairs of one prompt, but got 1 rows"):
        duel.score_batch(PAIR[:1], ["x"], NOBODY[:1])
    with pytest.raises(ValueError, match="wants finite images in"):
        judge.score_batch(PAIR * torch.nan, ["x"] * 2, NOBODY)
    assert server.requests == []


def test_a_judge_is_a_member_of_an_ensemble(asking: Callable[..., Ask]) -> None:
    answers, _ = asking()
    unified = MultimodalJudge("unified", Unified(), answers, license="MIT")
    category = MultimodalJudge("category", Boxed(), answers, license="Apache-2.0")
    members = (
        Member("unified", scale=3, reduce="max", source="test"),
        Member("category", source="test"),
    )
    ensemble = Ensemble(
        EnsembleSpec("both", members, source="test"), {"unified": unified, "category": category}
    )
    values, _ = ensemble.score_batch(PAIR, ["x"] * 2, NOBODY)
    torch.testing.assert_close(values, torch.tensor([[6.0], [1.0]]))
