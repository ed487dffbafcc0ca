"""Prompts become the ids that the published networks were trained on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from reward_models.tokens import BertTokens, ClipTokens, clean_text
from tests.unit.reward_models.small_networks import MERGES, WORDS

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("length", [35, 100])
def test_bert_pads_and_cuts_to_its_length_and_starts_with_cls(length: int) -> None:
    ids, mask = BertTokens(WORDS, length)(["A red cats!", "cat " * 200])
    cls, sep, unk = (WORDS.index(word) for word in ("[CLS]", "[SEP]", "[UNK]"))
    known = [WORDS.index(word) for word in ("a", "red", "cat", "##s")]
    assert ids.shape == mask.shape == (2, length)
    assert ids[0].tolist() == [cls, *known, unk, sep] + [0] * (length - 7)
    assert mask.sum(1).tolist() == [7, length]
    assert ids[1, -1] == sep
    assert ids[1, 1:-1].unique().tolist() == [WORDS.index("cat")]


def test_bert_adds_the_two_tokens_of_blip_after_its_own() -> None:
    tokens = BertTokens(WORDS, 35)
    assert tokens.size == len(WORDS) + 2
    assert tokens(["[DEC][ENC]"])[0][0, 1:3].tolist() == [len(WORDS), len(WORDS) + 1]


def test_bert_reads_a_vocabulary_file(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    tokens = BertTokens.read(tmp_path / "vocab.txt", 35)
    assert tokens(["cat"])[0].tolist() == BertTokens(WORDS, 35)(["cat"])[0].tolist()


def test_missing_or_foreign_vocabulary_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"vocab\.txt is not there.*bert-base-uncased"):
        BertTokens.read(tmp_path / "vocab.txt", 35)
    with pytest.raises(ValueError, match=r"has no \[PAD\]: it is not BERT's"):
        BertTokens(["cat", "dog"], 35)


def test_clip_merges_pairs_ends_with_the_largest_id_and_pads_with_zeros() -> None:
    tokens = ClipTokens(MERGES, length=12)
    ids, mask = tokens(["red CAT", "c"])
    red, cat = 2 * 256 + MERGES.index("re d</w>"), 2 * 256 + MERGES.index("ca t</w>")
    start, end = tokens.size - 2, tokens.size - 1
    assert ids[0].tolist() == [start, red, cat, end] + [0] * 8
    assert ids[1, :3].tolist() == [start, 256 + ord("c") - ord("!"), end]
    assert mask.sum(1).tolist() == [4, 3]


def test_clip_cuts_a_long_prompt_before_its_end_token() -> None:
    ids, mask = ClipTokens(MERGES, length=12)(["cat " * 50])
    assert ids[0, -1] == ids.max()
    assert mask.all()


def test_end_token_cannot_be_smuggled_in_by_a_prompt() -> None:
    tokens = ClipTokens()
    ids, _ = tokens(["cat <|endoftext|> dog"])
    assert int((ids == tokens.size - 1).sum()) == 1


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("“It’s”  a\n cat ", '"it\'s" a cat'),
        ("ﬁsh &amp; ﬂower", "fish & flower"),
        ("ｆｕｌｌ　ｗｉｄｔｈ", "full width"),
        ("a\x1b[31m b\x07", "a b"),
        ("Cafe\u0301", "caf\u00e9"),
    ],
)
def test_text_is_cleaned_as_for_clip(text: str, clean: str) -> None:
    assert clean_text(text) == clean
