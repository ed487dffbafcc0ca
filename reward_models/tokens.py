"""Prompts as the published rewards read them: BERT's word pieces for BLIP, CLIP's byte pairs for CLIP.

Both tokenizers are built on the `tokenizers` library from plain lists. CLIP's 48,894 merges, the same for all CLIP
models of this package, are read from the package `clip-anytorch` (a copy of openai/CLIP, MIT), of which only that file
is used; BERT's words are a file `vocab.txt` beside the checkpoint.
"""

from __future__ import annotations

import gzip
import html
import importlib.util
import re
import unicodedata
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenizers import Tokenizer
    from torch import Tensor

__all__ = ["BertTokens", "ClipTokens", "PromptTokens", "clean_text", "clip_merges"]

CLIP_CONTEXT = 77
CLIP_MERGES = 48_894
"""Of the 262,144 in the file; the first line is a heading."""
BLIP_TOKENS = ("[DEC]", "[ENC]")
"""What BLIP adds to BERT's words: 30522 and 30523 after the 30,522 of bert-base-uncased."""
_CLIP_WORDS = r"""'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""
_QUOTES = {**dict.fromkeys("ʼ‘’‚‛", "'"), **dict.fromkeys("“”„‟", '"')}
_LIGATURES = {c: unicodedata.normalize("NFKC", c) for c in "ĲĳŉǄǅǆǇǈǉǊǋǌǱǲǳﬀﬁﬂﬃﬄﬅﬆ"}
_PLAIN = str.maketrans({**_QUOTES, **_LIGATURES})


class PromptTokens(Protocol):
    """Turn prompts into what a text network reads."""

    @property
    def length(self) -> int:
        """Tokens per prompt, start, end and padding included."""
        ...

    @property
    def size(self) -> int:
        """How many different tokens there are."""
        ...

    def __call__(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids (T, length) int64 of T prompts, and their mask: 1 where there is a token, 0 for padding."""
        ...


class BertTokens:
    """BERT's lower-case word pieces with BLIP's two added tokens: [CLS] … [SEP], cut and padded to `length`.

    The first token stays [CLS]: ImageReward and Reward3D read their feature there, not at BLIP's [ENC].
    """

    def __init__(self, words: Sequence[str], length: int) -> None:
        from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

        ids = {word: index for index, word in enumerate(words)}
        if missing := [word for word in ("[PAD]", "[UNK]", "[CLS]", "[SEP]") if word not in ids]:
            raise ValueError(
                f"the vocabulary of {len(ids)} words has no {missing[0]}: it is not BERT's. "
                "Take vocab.txt of bert-base-uncased"
            )
        self.length = length
        self._tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))  # noqa: S106  # no password
        self._tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
        self._tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        self._tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[(word, ids[word]) for word in ("[CLS]", "[SEP]")]
        )
        self._tokenizer.add_special_tokens(list(BLIP_TOKENS))
        self._tokenizer.enable_truncation(length)
        self._tokenizer.enable_padding(length=length, pad_id=ids["[PAD]"], pad_token="[PAD]")  # noqa: S106

    @classmethod
    def read(cls, vocabulary: Path, length: int) -> BertTokens:
        """Read a `vocab.txt`, one word a line; raises ValueError when it is not there or not BERT's."""
        if not vocabulary.is_file():
            raise ValueError(
                f"{vocabulary} is not there: BLIP reads prompts with BERT's vocabulary. "
                "Put vocab.txt of bert-base-uncased beside the checkpoint"
            )
        return cls(vocabulary.read_text("utf-8").rstrip("\n").split("\n"), length)

    @property
    def size(self) -> int:
        """How many tokens there are, BLIP's two included."""
        return self._tokenizer.get_vocab_size()

    def __call__(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        read = [self._tokenizer.encode(prompt) for prompt in prompts]
        shape = (len(read), self.length)
        ids = torch.tensor([one.ids for one in read], dtype=torch.int64).reshape(shape)
        return ids, torch.tensor([one.attention_mask for one in read], dtype=torch.int64).reshape(shape)


class ClipTokens:
    """CLIP's byte pairs: <|startoftext|> … <|endoftext|>, then zeros; a longer prompt is cut before its end token.

    The ids are those of openai/CLIP and open_clip: 256 bytes, the same at a word's end, the merges, start and end.
    """

    def __init__(self, merges: Sequence[str] | None = None, length: int = CLIP_CONTEXT) -> None:
        self.length = length
        self._tokenizer, self.size = _byte_pairs(tuple(clip_merges() if merges is None else merges))

    def __call__(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        ids = torch.zeros(len(prompts), self.length, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            words = self._tokenizer.encode(clean_text(prompt)).ids[: self.length - 2]
            tokens = [self.size - 2, *words, self.size - 1]
            ids[row, : len(tokens)] = torch.tensor(tokens)
            mask[row, : len(tokens)] = 1
        return ids, mask


def clip_merges() -> list[str]:
    """Read the merges of openai/CLIP in their order: pairs of symbols with a space between.

    Raises FileNotFoundError when the package that holds them is not installed, saying how to install it.
    """
    package = importlib.util.find_spec("clip")  # found, not imported: it would want torchvision
    if package is None or package.origin is None:
        raise FileNotFoundError(
            "CLIP's vocabulary is not installed; run `pip install --no-deps clip-anytorch` "
            "(without its dependencies: they would replace torch)"
        )
    lines = gzip.decompress((Path(package.origin).parent / "bpe_simple_vocab_16e6.txt.gz").read_bytes())
    return lines.decode().split("\n")[1 : CLIP_MERGES + 1]


def clean_text(text: str) -> str:
    """Clean a prompt as CLIP does: plain quotes, letters and blanks, HTML entities resolved, lower case.

    It does what ftfy does to sound text, but repairs no text that was decoded with a wrong character set.
    """
    if "<" not in text:
        text = html.unescape(text)
    text = unicodedata.normalize("NFC", _half_width(text.translate(_PLAIN)))
    text = html.unescape(html.unescape(re.sub("\x1b\\[[0-9;]*[A-Za-z]", "", text)))
    text = "".join(c for c in text if c.isspace() or unicodedata.category(c) != "Cc")
    return " ".join(text.split()).lower()


def _half_width(text: str) -> str:
    """Replace the wide and narrow forms of East Asian typesetting by the plain characters."""
    return "".join(
        unicodedata.normalize("NFKC", c) if "\uff01" <= c <= "\uffef" or c == "\u3000" else c for c in text
    )


@cache
def _byte_pairs(merges: tuple[str, ...]) -> tuple[Tokenizer, int]:
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    pairs = [(left, right) for left, right in (merge.split(" ") for merge in merges)]
    symbols = _byte_symbols()
    words = [*symbols, *(symbol + "</w>" for symbol in symbols), *(left + right for left, right in pairs)]
    ids = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=pairs, end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_CLIP_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return tokenizer, len(words) + 2


def _byte_symbols() -> list[str]:
    """One printable symbol for each byte, in CLIP's order: the printable Latin-1 bytes first, then the others."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    return [chr(byte) for byte in printable] + [chr(256 + n) for n in range(256 - len(printable))]
