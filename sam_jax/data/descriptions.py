"""What can be said of a drawn object, in a closed vocabulary, and what is true of which object.

A description is a set of attributes (`Attributes`); a phrase is one way to put some of them into
words. A query is an `Attributes` too, in which what is not asked for is None or empty. Nothing
here looks at pixels: `sam_jax.data.described` draws objects of which the attributes are true.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

COLOURS = (
    "red",
    "green",
    "blue",
    "yellow",
    "orange",
    "purple",
    "pink",
    "brown",
    "black",
    "white",
)
TEXTURES = ("plain", "striped", "dotted", "checked")
SHAPES = ("circle", "square", "triangle", "star", "ring", "cross", "heart", "diamond")
SIZES = ("small", "large")
PLACES = ("left", "right", "top", "bottom", "middle")

_OTHER_WORDS = {  # beside the attribute's own name, in its place
    "small": ("little",),
    "large": ("big",),
    "circle": ("disc",),
    "dotted": ("spotted",),
}
_WITH = {"striped": "stripes", "dotted": "dots", "checked": "checks"}  # "circle with stripes"
_NOUNS = ("object", "thing", "shape")  # where the shape is not told
_GLUE = ("a", "an", "and", "at", "in", "is", "on", "something", "that", "the", "with")

_TOLD = {"plain": 0.3}  # odds that an attribute is told, where they are not 1

_SURE = 0.12  # a place word is certain this far from the middle line, as a share of the side,
_UNSURE = 0.02  # and possible up to this far on the line's other side
_MIDDLE = (0.11, 0.2)  # certainly and possibly in the middle: distance from it along both axes

_KINDS = ("colour", "texture", "shape", "size")
_MEANING = {
    word: (kind, value)
    for kind, values in zip(
        (*_KINDS, "place"), (COLOURS, TEXTURES, SHAPES, SIZES, PLACES), strict=True
    )
    for value in values
    for word in (value, *_OTHER_WORDS.get(value, ()), *([_WITH[value]] if value in _WITH else []))
}
VOCABULARY: tuple[str, ...] = tuple(sorted({*_MEANING, *_NOUNS, *_GLUE}))
"""Every word that a phrase can hold, sorted."""


@dataclass(frozen=True)
class Attributes:
    """What is true of an object, or what a query asks for.

    Attributes:
      colour: one of COLOURS; None in a query that does not ask.
      texture: one of TEXTURES, or None.
      shape: one of SHAPES, or None.
      size: one of SIZES, or None.
      place: those of PLACES that are certainly true.
      perhaps: those of PLACES besides that somebody might say; of objects only.
    """

    colour: str | None = None
    texture: str | None = None
    shape: str | None = None
    size: str | None = None
    place: frozenset[str] = frozenset()
    perhaps: frozenset[str] = frozenset()

    def __post_init__(self):
        for kind, values in zip(_KINDS, (COLOURS, TEXTURES, SHAPES, SIZES), strict=True):
            value = getattr(self, kind)
            if value not in (None, *values):
                raise ValueError(
                    f"{kind} must be one of {', '.join(values)} or None, got {value!r}"
                )
        for kind in ("place", "perhaps"):
            if not getattr(self, kind) <= set(PLACES):
                raise ValueError(
                    f"{kind} must be a set of words out of {', '.join(PLACES)}, "
                    f"got {sorted(getattr(self, kind))}"
                )


def located(attributes: Attributes, centre_xy: tuple[float, float]) -> Attributes:
    """The attributes of an object with its place words.

    Within a margin around the middle lines an object is neither left nor right (top nor bottom)
    for certain: no phrase says it of such an object, and no unique phrase relies on its opposite.

    Args:
      attributes: all but its place.
      centre_xy: centroid of the visible mask, each in 0..1 of the picture.
    """
    sure, possible = set(), set()
    for at, (low, high) in zip(centre_xy, (("left", "right"), ("top", "bottom")), strict=True):
        for word, beyond in ((low, 0.5 - at), (high, at - 0.5)):
            if beyond >= _SURE:
                sure.add(word)
            elif beyond > -_UNSURE:
                possible.add(word)
    distance = max(abs(at - 0.5) for at in centre_xy)
    if distance < _MIDDLE[0]:
        sure.add("middle")
    elif distance < _MIDDLE[1]:
        possible.add("middle")
    return replace(attributes, place=frozenset(sure), perhaps=frozenset(possible))


def facts(attributes: Attributes) -> frozenset[str]:
    """All that is certainly true of an object, or asked for by a query, as one set of words."""
    named = (getattr(attributes, kind) for kind in _KINDS)
    return attributes.place.union(word for word in named if word)


def matches(query: Attributes, attributes: Attributes) -> bool:
    """Whether everything that the query asks for is certainly true of the object."""
    return facts(query) <= facts(attributes)


def may_match(query: Attributes, attributes: Attributes) -> bool:
    """Whether somebody might find the query true of the object, near the limits of its words."""
    return facts(query) <= facts(attributes) | attributes.perhaps


def unique_queries(scene: Sequence[Attributes], i: int) -> list[Attributes]:
    """The queries that are true of object i of the scene and not even perhaps of any other."""
    words = sorted(facts(scene[i]))
    others = [facts(one) | one.perhaps for number, one in enumerate(scene) if number != i]
    return [
        _query(chosen)
        for count in range(1, len(words) + 1)
        for chosen in itertools.combinations(words, count)
        if not any(other.issuperset(chosen) for other in others)
    ]


def phrase(attributes: Attributes, rng: np.random.Generator) -> str:
    """A phrase that is true of the object: some of its attributes, mostly two or three.

    Raises:
      ValueError: an object of which nothing is known.
    """
    words = sorted(facts(attributes))
    if not words:
        raise ValueError("attributes must hold at least one attribute, got none")
    count = int(np.searchsorted((0.15, 0.5, 0.8, 0.95), rng.random())) + 1
    # Those with the smallest of exponential times are drawn without replacement by their odds.
    times = rng.exponential(size=len(words)) / [_TOLD.get(word, 1.0) for word in words]
    return worded(_query([words[k] for k in np.argsort(times)[:count]]), rng)


def unique_phrase(
    scene: Sequence[Attributes], i: int, rng: np.random.Generator, shortest: float = 0.5
) -> str | None:
    """A phrase that is true of object i of the scene and of no other; None where there is none.

    Args:
      shortest: how often it is one of the shortest such descriptions; otherwise it is any of them.
    """
    found = unique_queries(scene, i)
    if not found:
        return None
    if rng.random() < shortest:
        found = [query for query in found if len(facts(query)) == len(facts(found[0]))]
    return worded(found[rng.integers(len(found))], rng)


def worded(query: Attributes, rng: np.random.Generator) -> str:
    """The query in words of VOCABULARY, separated by spaces: one of many orders and forms."""
    adjectives = [_said(word, rng) for word in (query.size, query.colour) if word]
    noun = _said(query.shape, rng) if query.shape else str(rng.choice(_NOUNS))
    after = ""
    if query.texture in _WITH and rng.random() < 0.3:
        after = f"with {_WITH[query.texture]}"
    elif query.texture:
        adjectives.append(_said(query.texture, rng))
    front = where = ""
    if query.place:
        words = " ".join(sorted(query.place, key=("top", "bottom").__contains__, reverse=True))
        if rng.random() < 0.3:
            front = words
        else:
            where = f"{_preposition(words)} the {words}"
    elif rng.random() < 0.2:
        adjectives = [adjectives[k] for k in rng.permutation(len(adjectives))]
    form = rng.random()
    if not query.shape and not front and form < 0.5:
        return _joined("something", *adjectives, after, where)
    if adjectives and form > 0.9:
        told = f"that is {' and '.join(adjectives)}"
        return _joined(_with_article(_joined(front, noun), rng), after, told, where)
    return _joined(_with_article(_joined(front, *adjectives, noun), rng), after, where)


def read_phrase(words: str) -> Attributes:
    """The query that a phrase stands for: the inverse of `worded`.

    Raises:
      ValueError: a word that is not in VOCABULARY, or two colours, textures, shapes or sizes.
    """
    found: dict[str, str] = {}
    place = set()
    for word in words.split():
        if word not in VOCABULARY:
            raise ValueError(f"words must be of the vocabulary, got {word!r} in {words!r}")
        kind, value = _MEANING.get(word, (None, ""))
        if kind == "place":
            place.add(value)
        elif kind is not None and found.setdefault(kind, value) != value:
            raise ValueError(f"words must name one {kind}, got {words!r}")
    return Attributes(**found, place=frozenset(place))


def _query(words: Iterable[str]) -> Attributes:
    """The query that asks for these attributes."""
    named = [(_MEANING[word][0], word) for word in words]
    place = frozenset(word for kind, word in named if kind == "place")
    return Attributes(**{kind: word for kind, word in named if kind != "place"}, place=place)


def _joined(*words: str) -> str:
    return " ".join(filter(None, words))


def _said(word: str, rng: np.random.Generator) -> str:
    others = _OTHER_WORDS.get(word, ())
    return str(rng.choice(others)) if others and rng.random() < 0.3 else word


def _preposition(place: str) -> str:
    return "in" if place == "middle" else "at" if place.split()[0] in ("top", "bottom") else "on"


def _with_article(words: str, rng: np.random.Generator) -> str:
    article = rng.choice(("", "a", "the"))
    if article == "a" and words[0] in "aeiou":
        article = "an"
    return f"{article} {words}".strip()
