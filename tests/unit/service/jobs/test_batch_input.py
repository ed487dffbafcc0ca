"""Lines and sweeps of a batch, before any database."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.jobs.batch_input import MAX_PROBLEMS, Lines, items_of, merged, plan_of
from service.jobs.errors import Refused
from service.jobs.sweeps import read_sweep
from tests.unit.service.jobs.batch_samples import admit_embedded


@given(st.binary(max_size=200), st.lists(st.integers(0, 200)))
def test_lines_are_the_same_wherever_the_bytes_are_cut(text: bytes, cuts: list[int]) -> None:
    text = text.replace(b"x", b"\n")
    places = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    lines = Lines(max_bytes=20)
    blocks = [text[begin:end] for begin, end in itertools.pairwise(places)]
    found = [line for block in blocks for line in lines.feed(block)] + list(lines.end())
    expected = [
        (number, None if len(line) > 20 else line.strip())
        for number, line in enumerate(text.split(b"\n"), 1)
        if len(line) > 20 or line.strip()
    ]
    assert found == expected


@pytest.mark.parametrize(
    ("under", "over", "result"),
    [
        ({"a": 1}, {"b": 2}, {"a": 1, "b": 2}),
        ({"a": 1}, {"a": None}, {"a": None}),
        ({"mesh": {"px": 1, "faces": 2}}, {"mesh": {"px": 3}}, {"mesh": {"px": 3, "faces": 2}}),
        ({"rewards": [1, 2]}, {"rewards": [3]}, {"rewards": [3]}),
        ({"method": {"name": "sds", "push": 1}}, {"method": {"push": 2}}, {"method": {"name": "sds", "push": 2}}),
        ({"method": {"name": "dreamdpo", "push": 1}}, {"method": {"name": "sds"}}, {"method": {"name": "sds"}}),
        ({"method": {"push": 1}}, {"method": {"name": "dreamdpo"}}, {"method": {"name": "dreamdpo", "push": 1}}),
    ],
)  # fmt: skip
def test_what_a_line_says_lies_over_the_defaults(
    under: dict[str, Any], over: dict[str, Any], result: dict[str, Any]
) -> None:
    before = repr((under, over))
    assert merged(under, over) == result
    assert repr((under, over)) == before


def test_a_sweep_reaches_into_objects_and_arrays_and_changes_nothing_else() -> None:
    body = {"method": {"name": "sds"}, "rewards": [{"name": "a"}, {"name": "b"}], "metadata": {}}
    fields = read_sweep({"rewards.1.weight": [2], "/metadata/a.b": ["c"], "limits.deadline_s": [5]})
    swept = body
    for one in fields:
        swept = one.put(swept, one.values[0])
    assert swept == {
        "method": {"name": "sds"},
        "rewards": [{"name": "a"}, {"name": "b", "weight": 2}],
        "metadata": {"a.b": "c"},
        "limits": {"deadline_s": 5},
    }
    assert body["rewards"] == [{"name": "a"}, {"name": "b"}]
    with pytest.raises(Refused, match="no place for '2'"):
        read_sweep({"rewards.2.weight": [1]})[0].put(body, 1)


def test_a_swept_field_is_no_deeper_than_a_job() -> None:
    with pytest.raises(Refused, match="1500 steps deep"):
        read_sweep({".".join(["a"] * 1_500): [1]})


def test_the_items_of_a_line_are_made_one_by_one() -> None:
    plan = plan_of({"sweep": {"seed": list(range(50_000))}})
    items = items_of(1, {"body": {"prompt": "x"}}, plan, admit_embedded)
    first = next(items)
    assert (first.sweep, first.custom_id) == ({"seed": 0}, "1")


def test_a_line_with_thousands_of_mistakes_keeps_the_first() -> None:
    body = {"prompt": "x", **{f"field{n}": 1 for n in range(2_000)}}
    (item,) = items_of(1, {"body": body}, plan_of({}), admit_embedded)
    assert len(item.problems) == MAX_PROBLEMS


def test_a_seed_that_is_left_out_is_drawn_for_each_job() -> None:
    seeds = set()
    for line in range(1, 6):
        (item,) = items_of(line, {"body": {"prompt": "x"}}, plan_of({}), admit_embedded)
        assert item.spec is not None
        seeds.add(item.spec["seed"])
    assert len(seeds) == 5
