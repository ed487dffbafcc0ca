"""The grammar that says a `Description` in words: synonyms, articles, word order.

Only training and evaluation use it. At run time a caption reaches the networks as tokens and nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from workers.embedded.world import EVERYDAY, PALETTE, SHAPES, SIZES, Description, Thing

if TYPE_CHECKING:
    import numpy as np

__all__ = ["accent_nouns", "nouns", "plain_caption", "random_caption", "vocabulary"]

_NOUNS: dict[str, tuple[str, ...]] = {
    "cube": ("cube", "cube", "box", "block"),
    "sphere": ("sphere", "sphere", "ball", "orb"),
    "cylinder": ("cylinder", "cylinder", "tube", "can"),
    "cone": ("cone",),
    "torus": ("torus", "torus", "donut", "ring", "doughnut"),
    "pyramid": ("pyramid",),
    "capsule": ("capsule", "capsule", "pill"),
    "disk": ("disk", "disk", "disc", "coin"),
    "egg": ("egg",),
    "snowman": ("snowman",),
    "table": ("table", "table", "desk"),
    "chair": ("chair", "chair", "seat"),
    "mushroom": ("mushroom", "mushroom", "toadstool"),
    "tree": ("tree",),
    "house": ("house", "house", "hut", "home"),
    "rocket": ("rocket", "rocket", "spaceship"),
    "lamp": ("lamp", "lamp", "table lamp"),
    "mug": ("mug", "mug", "cup"),
    "car": ("car", "car", "automobile"),
    "icecream": ("ice cream", "ice cream cone", "icecream"),
    "dumbbell": ("dumbbell", "dumbbell", "barbell"),
    "boat": ("boat", "boat", "ship", "tugboat"),
    "bed": ("bed",),
    "sofa": ("sofa", "sofa", "couch", "armchair"),
    "bottle": ("bottle", "bottle", "flask"),
    "hat": ("top hat", "hat", "hat"),
    "pine": ("pine tree", "pine", "fir", "fir tree", "christmas tree"),
    "cactus": ("cactus",),
    "train": ("train", "train", "locomotive", "steam train"),
    "robot": ("robot",),
    "cake": ("cake", "cake", "birthday cake"),
    "airplane": ("airplane", "airplane", "plane", "aeroplane"),
    "lighthouse": ("lighthouse",),
}
_COLORS = {"gray": ("gray", "grey"), "purple": ("purple", "purple", "violet")}
_SIZES: dict[str, tuple[str, ...]] = {
    "small": ("small", "little", "tiny"),
    "large": ("large", "big", "huge"),
    "tall": ("tall", "high"),
    "flat": ("flat", "thin"),
}
_ARTICLES = ("a", "a", "a", "the", "one", "")
_ON = ("on top of", "on top of", "on", "atop", "above", "standing on", "sitting on", "over")
_UNDER = ("under", "below", "beneath", "underneath")
_NEXT = ("next to", "next to", "beside", "by", "near", "left of", "to the left of", "and")
_NEXT_SWAPPED = ("right of", "to the right of")
_PREFIXES = ("", "", "", "", "", "a 3d model of", "a photo of", "a toy made of", "a render of", "an object ,")


def plain_caption(description: Description) -> str:
    """Say a description in its plainest words: "a red cube on top of a blue cylinder"."""
    a = _with_article(_plain(description.a))
    if description.b is None:
        return a
    words = {"on": "on top of", "next": "next to"}[description.relation]
    return f"{a} {words} {_with_article(_plain(description.b))}"


def random_caption(description: Description, rng: np.random.Generator) -> str:
    """Say a description in random words of the grammar."""
    a = _random_phrase(description.a, rng)
    prefix = _pick(_PREFIXES, rng)
    if description.b is None:
        return f"{prefix} {a}".strip()
    b = _random_phrase(description.b, rng)
    draw = rng.random()
    if description.relation == "on":
        if draw < 0.55:
            text = f"{a} {_pick(_ON, rng)} {b}"
        elif draw < 0.9:
            text = f"{b} {_pick(_UNDER, rng)} {a}"
        else:
            text = f"{b} with {a} on top"
    else:
        text = f"{a} {_pick(_NEXT, rng)} {b}" if draw < 0.8 else f"{b} {_pick(_NEXT_SWAPPED, rng)} {a}"
    return f"{prefix} {text}".strip()


def vocabulary() -> list[str]:
    """List every word that the grammar can say, sorted."""
    phrases: list[str] = ["with", "on top", "an", "and", *PALETTE]
    for group in (*_NOUNS.values(), *_COLORS.values(), *_SIZES.values()):
        phrases += group
    phrases += [*_ARTICLES, *_ON, *_UNDER, *_NEXT, *_NEXT_SWAPPED, *_PREFIXES]
    phrases += [thing.accent_noun for thing in EVERYDAY.values() if thing.accent_noun]
    return sorted({word for phrase in phrases for word in phrase.split() if word.isalnum()})


def nouns() -> list[str]:
    """List every word that ends the name of a thing ("cream", "hat", not "top"), sorted."""
    return sorted({name.split()[-1] for names in _NOUNS.values() for name in names})


def accent_nouns() -> list[str]:
    """List every word that names an accent after "with", sorted."""
    return sorted({thing.accent_noun for thing in EVERYDAY.values() if thing.accent_noun})


def _plain(thing: Thing) -> str:
    size = "" if thing.size == "normal" else thing.size
    noun = _NOUNS[thing.name][0]
    return " ".join(word for word in (size, thing.color or "", noun, _accent(thing)) if word)


def _accent(thing: Thing) -> str:
    return f"with a {thing.accent} {EVERYDAY[thing.name].accent_noun}" if thing.accent else ""


def _with_article(phrase: str) -> str:
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def _random_phrase(thing: Thing, rng: np.random.Generator) -> str:
    color = _pick(_COLORS.get(thing.color, (thing.color,)), rng) if thing.color else ""
    size = _pick(_SIZES[thing.size], rng) if thing.size != "normal" else ""
    adjectives = [size, color] if rng.random() < 0.85 else [color, size]
    words = [*adjectives, _pick(_NOUNS[thing.name], rng), _accent(thing)]
    phrase = " ".join(word for word in words if word)
    article = _pick(_ARTICLES, rng)
    return _with_article(phrase) if article == "a" else f"{article} {phrase}".strip()


def _pick(options: tuple[str, ...], rng: np.random.Generator) -> str:
    return options[int(rng.integers(len(options)))]


assert set(_NOUNS) == {*SHAPES, *EVERYDAY}
assert set(_SIZES) == set(SIZES) - {"normal"}
