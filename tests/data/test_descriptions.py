"""Words for objects: what is true of what, and that phrases say only that."""

import numpy as np
import pytest

from sam_jax.data import descriptions as words
from sam_jax.data.descriptions import (
    Attributes,
    located,
    matches,
    may_match,
    phrase,
    read_phrase,
    unique_phrase,
    unique_queries,
    worded,
)

RED = Attributes("red", "striped", "circle", "small")


def random_object(rng):
    kinds = (words.COLOURS, words.TEXTURES, words.SHAPES, words.SIZES)
    return located(Attributes(*(str(rng.choice(kind)) for kind in kinds)), tuple(rng.random(2)))


@pytest.mark.parametrize(
    "centre_xy, place, perhaps",
    [
        ((0.1, 0.5), {"left"}, {"top", "bottom"}),
        ((0.9, 0.9), {"right", "bottom"}, set()),
        ((0.2, 0.3), {"left", "top"}, set()),
        ((0.45, 0.2), {"top"}, {"left"}),
        ((0.51, 0.66), {"bottom"}, {"left", "right", "middle"}),
        ((0.5, 0.5), {"middle"}, {"left", "right", "top", "bottom"}),
        ((0.58, 0.45), {"middle"}, {"right", "top"}),
    ],
)
def test_places_have_a_margin(centre_xy, place, perhaps):
    found = located(RED, centre_xy)
    assert found.place == place and found.perhaps == perhaps
    assert (found.colour, found.texture, found.shape, found.size) == tuple(
        getattr(RED, kind) for kind in ("colour", "texture", "shape", "size")
    )


def test_what_is_true_of_what():
    one = located(RED, (0.2, 0.45))  # left, perhaps top
    for text, sure, possible in (
        ("a red circle", True, True),
        ("something striped on the left", True, True),
        ("something", True, True),
        ("small thing at the top", False, True),
        ("circle at the top left", False, True),
        ("the right circle", False, False),
        ("red square", False, False),
        ("a large red striped circle", False, False),
        ("circle with dots", False, False),
        ("blue thing on the left", False, False),
    ):
        query = read_phrase(text)
        assert matches(query, one) == sure, text
        assert may_match(query, one) == possible, text


def test_reading_phrases_by_hand():
    assert read_phrase("something dotted") == Attributes(texture="dotted")
    assert read_phrase("the big spotted disc at the top left") == Attributes(
        None, "dotted", "circle", "large", frozenset({"top", "left"})
    )
    assert read_phrase("ring with checks that is little and pink in the middle") == Attributes(
        "pink", "checked", "ring", "small", frozenset({"middle"})
    )
    with pytest.raises(ValueError, match="vocabulary, got 'zebra'"):
        read_phrase("a striped zebra")
    with pytest.raises(ValueError, match="must name one colour, got 'a red blue circle'"):
        read_phrase("a red blue circle")


def test_phrases_read_back_as_what_was_said():
    rng = np.random.default_rng(0)
    for _ in range(300):
        one = random_object(rng)
        chosen = unique_queries([one], 0)  # all that is true of it
        assert len(chosen) == 2 ** (4 + len(one.place)) - 1
        query = chosen[rng.integers(len(chosen))]
        assert read_phrase(worded(query, rng)) == query


def test_phrases_are_true_and_use_the_whole_vocabulary_and_no_more():
    rng = np.random.default_rng(1)
    used, lengths = set(), []
    for _ in range(1500):
        one = random_object(rng)
        text = phrase(one, rng)
        query = read_phrase(text)
        lengths.append(len(words.facts(query)))
        assert matches(query, one), (text, one)
        used |= set(text.split())
    assert used == set(words.VOCABULARY)
    assert list(words.VOCABULARY) == sorted(used)
    assert {1, 2, 3, 4, 5} <= set(lengths) and 2 < np.mean(lengths) < 3
    with pytest.raises(ValueError, match="at least one attribute"):
        phrase(Attributes(), rng)


def test_articles():
    rng = np.random.default_rng(2)
    orange, ring = (read_phrase(text) for text in ("orange ring", "ring"))
    assert {worded(ring, rng) for _ in range(50)} == {"ring", "a ring", "the ring"}
    found = {worded(orange, rng) for _ in range(200)}
    assert {"an orange ring", "the orange ring", "a ring that is orange"} <= found
    assert not any(text.startswith("a orange") for text in found)


def test_unique_phrases_by_hand():
    rng = np.random.default_rng(3)
    scene = [
        located(RED, (0.2, 0.2)),
        located(RED, (0.45, 0.2)),  # perhaps left
        located(Attributes("red", "plain", "square", "small"), (0.8, 0.8)),
    ]
    said = [{frozenset(words.facts(q)) for q in unique_queries(scene, i)} for i in range(3)]
    assert not said[0] and not said[1]  # nothing certain tells them apart
    assert unique_phrase(scene, 0, rng) is None
    shortest = {one for one in said[2] if len(one) == 1}
    assert shortest == {frozenset([w]) for w in ("plain", "square", "right", "bottom")}
    apart = [scene[0], located(RED, (0.9, 0.2))]
    assert {frozenset(words.facts(q)) for q in unique_queries(apart, 0)} >= {frozenset(["left"])}
    assert {"left"} <= set(unique_phrase(apart, 0, rng).split())


def test_unique_phrases_are_of_one_object_and_missing_only_where_there_is_none():
    rng = np.random.default_rng(4)
    none = 0
    for _ in range(150):
        scene = [random_object(rng) for _ in range(4)]
        scene.append(located(scene[0], tuple(rng.random(2))))  # its twin, elsewhere
        for i, one in enumerate(scene):
            text = unique_phrase(scene, i, rng)
            others = scene[:i] + scene[i + 1 :]
            if text is None:
                none += 1
                assert any(may_match(Attributes(*_all(one)), other) for other in others)
                continue
            query = read_phrase(text)
            assert matches(query, one), text
            assert not any(may_match(query, other) for other in others), text
    assert 10 < none < 150


def _all(one):
    return one.colour, one.texture, one.shape, one.size, one.place


def test_attributes_are_checked():
    with pytest.raises(ValueError, match="colour must be one of red, .* got 'mauve'"):
        Attributes("mauve")
    with pytest.raises(ValueError, match="size must be one of small, large or None, got 'big'"):
        Attributes(size="big")
    with pytest.raises(ValueError, match=r"place must be a set .* got \['above'\]"):
        Attributes(place=frozenset(["above"]))
