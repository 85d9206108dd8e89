"""Phrases to embeddings: tokens, lengths, what is refused, and parity with transformers."""

from __future__ import annotations

import functools
import json
import subprocess
import sys

import numpy as np
import pytest

from sam_jax.checkpoint.clip import load_clip
from sam_jax.inference import text
from sam_jax.inference.text import TextTower, with_tokenizer, word_tokenizer
from sam_jax.models.clip import CLIP_TINY, TowerConfig
from tests.clips import (
    PHRASES,
    SMALL,
    bpe_tokenizer,
    random_clip,
    random_params,
    reference,
    word_clip,
)
from tests.clips import write_reference as write
from tests.models.stages import difference

WORDS = ["a", "red", "Green", "circle", "square", "red"]


@functools.cache
def tower():
    """The small CLIP's tower with a vocabulary of five words, up to 20 tokens."""
    return TextTower(word_clip(WORDS))


def test_a_tokenizer_of_words():
    made = json.loads(word_tokenizer(WORDS, 6))
    vocabulary = "[UNK] [BOS] a red green circle square [EOS]".split()
    assert made["model"]["vocab"] == {word: i for i, word in enumerate(vocabulary)}
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(json.dumps(made))
    found = tokenizer.encode_batch(["A RED, circle-square", "green dog!", "a a a a a a"])
    assert [row.ids for row in found] == [
        [1, 2, 3, 5, 6, 7],
        [1, 4, 0, 7, 7, 7],
        [1, 2, 2, 2, 2, 7],
    ]
    assert found[1].attention_mask == [1, 1, 1, 1, 0, 0]


def test_a_config_takes_its_tokenizers_sizes():
    config = with_tokenizer(CLIP_TINY, word_tokenizer(WORDS))
    assert config == CLIP_TINY.replace(vocab_size=8, eos_id=7)
    one = with_tokenizer(CLIP_TINY, word_tokenizer(["dog"]))
    assert (one.vocab_size, one.eos_id) == (4, 3)  # never 2, which would mean another rule
    made = json.loads(word_tokenizer(["dog"]))
    made["post_processor"]["special_tokens"]["[EOS]"]["ids"] = [2]
    with pytest.raises(ValueError, match="its end token has the id 2"):
        with_tokenizer(CLIP_TINY, json.dumps(made))


def test_tokens_are_filled_up_to_the_context():
    ids = tower().tokenise(["a Red  circle", "green"])
    assert ids.dtype == np.int32 and ids.shape == (2, 20)
    assert ids[0].tolist() == [1, 2, 3, 5] + [7] * 16
    assert ids[1].tolist() == [1, 4] + [7] * 18
    assert tower().tokenise([]).shape == (0, 20)


def test_embeddings_have_length_1_whatever_is_beside_them():
    phrases = ["a red circle", "green", "red " * 15, "red " * 14]
    together = tower().embed(phrases)
    assert together.dtype == np.float32 and together.shape == (4, SMALL.embed_dim)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, rtol=1e-6)
    whole = text._embed(tower().config, tower()._params, tower().tokenise(phrases))
    np.testing.assert_allclose(together, whole, atol=2e-6)
    for phrase, row in zip(phrases, together, strict=True):  # alone, and most of them shorter
        np.testing.assert_allclose(tower().embed([phrase])[0], row, atol=2e-6)
    assert difference(together[2], together[3]) > 1e-3
    assert tower().embed([]).shape == (0, SMALL.embed_dim)


def test_a_program_for_a_size_is_compiled_once():
    tower().embed(["a"] * 4)
    before = text._embed._cache_size()
    for phrases in (["red"] * 3, ["a red circle", "a square"], ["green"] * 4, ["a " * 14] * 2):
        tower().embed(phrases)
    tokenizer = word_tokenizer(WORDS, 20)
    other = random_clip(tokenizer, with_tokenizer(SMALL.replace(context=20), tokenizer))
    TextTower(other.text_tower()).embed(["a circle"] * 3)
    assert text._embed._cache_size() == before


def test_many_phrases_go_in_parts(monkeypatch):
    monkeypatch.setattr(text, "BATCHES", (1, 4))
    phrases = ["a circle", "red", "green", "square", "a", "a red square"]
    got = tower().embed(phrases)
    want = np.concatenate([tower().embed(phrases[:4]), tower().embed(phrases[4:])])
    assert got.shape == (6, SMALL.embed_dim)
    np.testing.assert_allclose(got, want, atol=2e-6)


def test_a_phrase_that_is_too_long_is_refused_or_cut():
    long = "red " * 18 + "circle"
    message = r"phrases: 'red .*'\.\.\. has 21 tokens, .* at most 20; shorten it"
    with pytest.raises(ValueError, match=message):
        tower().tokenise(["a", long])
    ids = tower().tokenise([long, long[4:]], truncate=True)
    assert ids[0].tolist() == [1] + [3] * 18 + [7] and ids[1].tolist() == [1] + [3] * 17 + [5, 7]
    cut = tower().embed([long], truncate=True)
    np.testing.assert_allclose(cut, tower().embed(["red " * 18]), atol=1e-6)


@pytest.mark.parametrize(
    "phrase, message",
    [
        ("", r"phrases: expected a phrase, got ''; leave it out"),
        (" \n", r"phrases: expected a phrase, got ' \\n'; leave it out"),
        (None, r"phrases: expected a phrase, got None"),
        ("?!", r"phrases: expected a phrase, got '\?!', of which the tokenizer keeps nothing"),
        (
            "a Cirle red",
            r"phrases: .* does not know 'Cirle' in 'a Cirle red'; use words such as 'circle'",
        ),
        ("a dog", "does not know 'dog' in 'a dog'; use words that it was trained with"),
        ("red [EOS] a", "does not know 'EOS' in"),
    ],
)
def test_phrases_that_cannot_be_embedded_are_named(phrase, message):
    with pytest.raises(ValueError, match=message):
        tower().embed(["a", phrase])


def test_one_text_is_no_sequence():
    with pytest.raises(ValueError, match="phrases: expected a sequence .* 'red'; put it in a list"):
        tower().embed("red")


@pytest.mark.parametrize(
    "words, context, message",
    [
        (["red", "hot dog"], 77, r"words\[1\]: expected one word, got 'hot dog', .*'hot', 'dog'"),
        (["x-ray"], 77, r"words\[0\]: expected one word, got 'x-ray', which is split"),
        ([""], 77, r"words\[0\]: expected one word, got ''"),
        ([], 77, "words: expected a sequence of at least one word"),
        ("red", 77, "words: expected a sequence"),
        (["red"], 2, "context: expected 3 or more"),
    ],
)
def test_words_that_are_none(words, context, message):
    with pytest.raises(ValueError, match=message):
        word_tokenizer(words, context)


def test_tokenizers_that_do_not_fit():
    fitting = word_tokenizer(WORDS)
    config = with_tokenizer(SMALL, fitting)
    for other in (config.replace(vocab_size=7), config.replace(eos_id=6)):
        with pytest.raises(
            ValueError, match="clip: its tokenizer is another model's.* got 8 and 7"
        ):
            TextTower(random_clip(fitting, other))
    assert TextTower(random_clip(fitting, config.replace(eos_id=2))).width == SMALL.embed_dim
    with pytest.raises(ValueError, match="tokenizer_json: is no tokenizer"):
        TextTower(random_clip("{}", config))
    bare = json.dumps(json.loads(fitting) | {"post_processor": None})
    with pytest.raises(ValueError, match="expected a begin and an end token around a text, got 0"):
        TextTower(random_clip(bare, config))


def test_the_package_is_imported_late_and_missed_in_words(monkeypatch):
    code = "import sys, sam_jax.inference.text; print('tokenizers' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert out.stdout.strip() == "False", out.stderr
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    for call in (lambda: word_tokenizer(["a"]), lambda: TextTower(random_clip())):
        with pytest.raises(ValueError, match=r"tokenizers: pip install 'sam_jax\[text\]'"):
            call()


@pytest.fixture(scope="module")
def twins(tmp_path_factory):
    """transformers' tokenizer and model, and the tower read from the folder that they write."""
    pytest.importorskip("transformers", reason="compares with Hugging Face's port")
    path, tokenizer = tmp_path_factory.mktemp("hf"), bpe_tokenizer()
    size = len(tokenizer)
    config = SMALL.replace(
        vocab_size=size, eos_id=size - 1, context=20, text=TowerConfig(20, 2, 2, 36)
    )
    model = reference(config, random_params(config))
    # Their file keeps the cutting and filling of the last call: it is not to be used.
    tokenizer(["a"], padding="max_length", truncation=True, max_length=4)
    write(path, model, tokenizer)
    return tokenizer, model, TextTower(load_clip(path, text_tower_only=True))


def theirs(tokenizer, phrases, context):
    return tokenizer(
        phrases, padding="max_length", truncation=True, max_length=context, return_tensors="pt"
    )


@pytest.mark.torch
def test_tokens_are_those_of_transformers(twins):
    tokenizer, _, tower = twins
    ids = theirs(tokenizer, PHRASES, 20)["input_ids"].numpy()
    lengths = [len(row) for row in tokenizer(PHRASES)["input_ids"]]
    assert max(lengths) > 20 > min(lengths)  # one is cut, one is filled up
    np.testing.assert_array_equal(tower.tokenise(PHRASES, truncate=True), ids)
    with pytest.raises(ValueError, match=rf"phrases: .* has {max(lengths)} tokens, begin"):
        tower.tokenise(PHRASES)


@pytest.mark.torch
@pytest.mark.parametrize("kept", [slice(None), slice(0, 2)], ids=["long", "short"])
def test_embeddings_are_those_of_transformers(twins, kept):
    import torch

    tokenizer, model, tower = twins
    with torch.no_grad():
        out = model.text_model(**theirs(tokenizer, PHRASES[kept], 20))
        want = torch.nn.functional.normalize(model.text_projection(out.pooler_output))
    got = tower.embed(PHRASES[kept], truncate=True)
    assert difference(got, want) < 1e-4
    assert difference(got[0], got[1]) > 0.1


@pytest.mark.torch
def test_an_end_within_a_phrase_is_no_end(twins):
    with pytest.raises(ValueError, match=r"does not know '<\|endoftext\|>' in"):
        twins[2].embed(["a dog <|endoftext|> and a cat"])
