"""The pair data set: which of two objects people preferred for a prompt, read from `pairs.jsonl`, split by prompt.

One JSON object a line, paths relative to the file's folder:

    {"prompt": "a red cube", "a": ["1/0.png", "1/1.png", "1/2.png", "1/3.png"], "b": "2.npz", "preferred": "a"}

- `prompt`: what both objects were made for.
- `a`, `b`: each side's views, evenly spaced around the object: a list of pictures, or one .npz whose array `views` is
  (V, H, W, 3) uint8. Which object is a and which is b must be random.
- `preferred`: "a", "b" or "tie". One line for each pair: votes of several people are merged before.
- `sides` (optional): what the views show ("front", "side", "back", "overhead"), for rewards with a text for each view.
- `source` (optional): where the comparison comes from.

A blank line is skipped; another key is a fault, since it is most often a misspelt one.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast, get_args

import numpy as np
import torch
from PIL import Image

from reward_models.contracts import VIEW_SUFFIXES, ViewPrompt
from reward_models.preprocess import picture_tensor

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from torch import Tensor

__all__ = ["Comparison", "Preferred", "Split", "load_views", "read_comparisons", "split_by_prompt"]

Preferred = Literal["a", "b", "tie"]

MIN_DECIDED, MIN_PROMPTS = 32, 10
"""Below these nothing can be learned that would also hold for another prompt."""
ONE_SIDED_FROM = 12
"""So many fair coins fall on one side once in 2,000 files."""
LINES_NAMED = 5
READING_THREADS = 8


@dataclass(frozen=True, slots=True)
class Comparison:
    """One line: which of two objects was preferred for a prompt."""

    line: int
    prompt: str
    """A `ViewPrompt` when the line says what its views show."""
    a: tuple[Path, ...]
    """The pictures of its views, or one .npz."""
    b: tuple[Path, ...]
    preferred: Preferred
    source: str | None = None


class Split(NamedTuple):
    """Comparisons in three parts that share no prompt."""

    training: list[Comparison]
    validation: list[Comparison]
    """Says when to stop."""
    test: list[Comparison]
    """Looked at once, when training has ended."""


class _Fault(NamedTuple):
    kind: str
    line: int
    detail: str


def read_comparisons(
    file: Path, num_views: int | None, *, check_pictures: bool = True, one_sided: bool = False
) -> list[Comparison]:
    """Read and check all lines, and all pictures unless told otherwise; `num_views` `None` takes any one number.

    Raises ValueError that names every kind of fault with its count and first lines: lines that are no comparison, a
    side that is missing, wrong numbers of views, pictures that cannot be read, sides that are the same, contradictions,
    too few comparisons or prompts, and, unless `one_sided` is expected, a side that always wins.
    """
    try:
        lines = file.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} cannot be read as text: {error}") from error
    faults: list[_Fault] = []
    comparisons: list[Comparison] = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            one = _comparison(line, number, file.parent)
            (faults if isinstance(one, _Fault) else comparisons).append(one)  # type: ignore[arg-type]
    if check_pictures:
        faults += _picture_faults(comparisons, num_views)
    if faults:
        raise ValueError(_described(file.name, faults))
    _check_enough(file.name, comparisons, one_sided=one_sided)
    return comparisons


def split_by_prompt(
    comparisons: Iterable[Comparison], *, validation: float = 0.1, test: float = 0.1, seed: int = 0
) -> Split:
    """Split by a hash of each prompt, so that a prompt keeps its part when the file grows.

    Raises ValueError when a part has no decided comparison.
    """
    split = Split([], [], [])
    for one in comparisons:
        draw = _prompt_draw(str(one.prompt), seed)
        part = split.test if draw < test else split.validation if draw < test + validation else split.training
        part.append(one)
    for name, part in split._asdict().items():
        if not any(one.preferred != "tie" for one in part):
            raise ValueError(
                f"the {name} part has {len(part)} comparisons, none of them decided: give more prompts, "
                f"or larger shares (now {validation:.0%} validation, {test:.0%} test)"
            )
    return split


def load_views(paths: Sequence[Path]) -> Tensor:
    """Load an object's views: (V, 3, H, W) in [0, 1]; a transparent picture is put on white.

    Raises ValueError, naming the file, when one cannot be read or their sizes differ.
    """
    if paths[0].suffix == ".npz":
        return _load_array(paths[0])
    views = []
    for path in paths:
        try:
            with Image.open(path) as picture:
                views.append(picture_tensor(picture))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise ValueError(f"{path} cannot be read as a picture ({_brief(error)})") from error
    if len({view.shape for view in views}) != 1:
        sizes = ", ".join(f"{view.shape[2]}×{view.shape[1]}" for view in views)
        raise ValueError(f"the views beside {paths[0]} differ in size: {sizes}")
    return torch.stack(views)


def _load_array(path: Path) -> Tensor:
    try:
        with np.load(path, allow_pickle=False) as file:
            views = file["views"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} cannot be read as views ({_brief(error)})") from error
    if views.dtype != np.uint8 or views.ndim != 4 or views.shape[-1] != 3 or not views.size:
        raise ValueError(f"{path} holds views {views.shape} of {views.dtype}, expected (V, H, W, 3) of uint8")
    return torch.from_numpy(views).permute(0, 3, 1, 2).float() / 255


def _comparison(line: str, number: int, folder: Path) -> Comparison | _Fault:
    try:
        fields = json.loads(line)
    except json.JSONDecodeError as error:
        return _Fault("no JSON", number, error.msg)
    if not isinstance(fields, dict):
        return _Fault("no comparison", number, f"it is a {type(fields).__name__}, expected an object")
    known = {"prompt", "a", "b", "preferred", "sides", "source"}
    if unknown := sorted(set(fields) - known):
        return _Fault(
            "no comparison", number, f"unknown key {unknown[0]!r}, expected {', '.join(sorted(known))}"
        )
    if absent := [side for side in ("a", "b") if not fields.get(side)]:
        return _Fault("one-sided, a side is missing", number, f"nothing under {absent[0]!r}")
    prompt, preferred = fields.get("prompt"), fields.get("preferred")
    if not isinstance(prompt, str) or not prompt.strip():
        return _Fault("no comparison", number, f"'prompt' is {prompt!r}, expected words")
    if preferred not in get_args(Preferred):
        return _Fault("no comparison", number, f"'preferred' is {preferred!r}, expected 'a', 'b' or 'tie'")
    sides = fields.get("sides")
    if sides is not None:
        if not isinstance(sides, list) or not all(isinstance(s, str) and s in VIEW_SUFFIXES for s in sides):
            return _Fault(
                "no comparison", number, f"'sides' is {sides!r}, expected some of {list(VIEW_SUFFIXES)}"
            )
        prompt = ViewPrompt(prompt, [prompt + VIEW_SUFFIXES[side] for side in sides])
    a, b = (_paths(fields[side], folder) for side in ("a", "b"))
    if a is None or b is None:
        wrong = fields["a" if a is None else "b"]
        return _Fault("no comparison", number, f"{wrong!r} is neither a list of pictures nor one .npz file")
    return Comparison(number, prompt, a, b, cast("Preferred", preferred), fields.get("source"))


def _paths(value: Any, folder: Path) -> tuple[Path, ...] | None:
    if isinstance(value, str) and value.endswith(".npz"):
        return (folder / value,)
    if isinstance(value, list) and all(isinstance(one, str) and not one.endswith(".npz") for one in value):
        return tuple(folder / one for one in value)
    return None


def _picture_faults(comparisons: list[Comparison], num_views: int | None) -> list[_Fault]:
    """Look at every object's pictures once: can they be read, are they as many as wanted, are they different."""
    objects = list(dict.fromkeys(paths for one in comparisons for paths in (one.a, one.b)))
    with ThreadPoolExecutor(READING_THREADS) as threads:
        seen = dict(zip(objects, threads.map(_seen, objects), strict=True))
    faults: list[_Fault] = []
    judged: dict[tuple[str, frozenset[str]], tuple[int, str]] = {}
    for one in comparisons:
        found = [seen[paths] for paths in (one.a, one.b)]
        if broken := next((each for each in found if isinstance(each, str)), None):
            faults.append(_Fault("broken pictures", one.line, broken))
            continue
        (count_a, digest_a), (count_b, digest_b) = (each for each in found if not isinstance(each, str))
        wanted = num_views = num_views or count_a
        if isinstance(one.prompt, ViewPrompt) and len(one.prompt.views) != wanted:
            told = len(one.prompt.views)
            faults.append(_Fault("wrong number of views", one.line, f"{told} 'sides', expected {wanted}"))
        elif wrong := next((count for count in (count_a, count_b) if count != wanted), None):
            faults.append(_Fault("wrong number of views", one.line, f"{wrong} views, expected {wanted}"))
        elif digest_a == digest_b:
            faults.append(_Fault("one-sided, both sides are the same pictures", one.line, one.a[0].name))
        else:
            winner = {"a": digest_a, "b": digest_b, "tie": "tie"}[one.preferred]
            pair = (_plain(one.prompt), frozenset((digest_a, digest_b)))
            earlier, judgment = judged.setdefault(pair, (one.line, winner))
            if judgment != winner:
                detail = f"the same pair is judged otherwise in line {earlier}; keep one line with what most preferred"
                faults.append(_Fault("contradictory", one.line, detail))
    return faults


def _seen(paths: tuple[Path, ...]) -> tuple[int, str] | str:
    """How many views an object has and what tells it from another, or why it cannot be read."""
    try:
        views = load_views(paths)
    except ValueError as error:
        return str(error)
    return len(views), hashlib.sha256(str(tuple(views.shape)).encode() + views.numpy().tobytes()).hexdigest()


def _check_enough(name: str, comparisons: list[Comparison], *, one_sided: bool) -> None:
    decided = [one for one in comparisons if one.preferred != "tie"]
    prompts = len({_plain(one.prompt) for one in comparisons})
    if len(decided) < MIN_DECIDED or prompts < MIN_PROMPTS:
        raise ValueError(
            f"{name} has too few comparisons: {len(decided)} decided ones and {len(comparisons) - len(decided)} ties "
            f"for {prompts} prompts. At least {MIN_DECIDED} decided ones for {MIN_PROMPTS} prompts are needed"
        )
    if not one_sided and len({one.preferred for one in decided}) == 1 and len(decided) >= ONE_SIDED_FROM:
        raise ValueError(
            f"{name} is one-sided: all {len(decided)} decided comparisons (lines {decided[0].line} to "
            f"{decided[-1].line}) prefer {decided[0].preferred!r}, as if the side had been judged and not the object. "
            "Put the sides in random order, or say that the winner was written there (--one-sided)"
        )


def _described(name: str, faults: Iterable[_Fault]) -> str:
    kinds: dict[str, list[_Fault]] = {}
    for fault in sorted(faults, key=lambda fault: fault.line):
        kinds.setdefault(fault.kind, []).append(fault)
    told = []
    for kind, some in kinds.items():
        lines = ", ".join(str(fault.line) for fault in some[:LINES_NAMED])
        more = ", …" if len(some) > LINES_NAMED else ""
        told.append(
            f"  {kind}: {len(some)} (line{'s' * (len(some) > 1)} {lines}{more}); first: {some[0].detail}"
        )
    return f"{name} cannot be trained on. Correct these lines or take them out:\n" + "\n".join(told)


def _prompt_draw(prompt: str, seed: int) -> float:
    """A number in [0, 1) that belongs to the prompt: its case and blanks do not matter."""
    digest = hashlib.sha256(f"{seed}\n{_plain(prompt)}".encode()).digest()
    return int.from_bytes(digest[:4], "big") / 2**32


def _plain(prompt: str) -> str:
    return " ".join(str(prompt).casefold().split())


def _brief(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
