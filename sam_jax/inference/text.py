"""Phrases and crops to embeddings: a CLIP's towers and tokenizer, compiled once, called often."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from sam_jax.checkpoint.clip import Clip
from sam_jax.inference.compiled import bucket, use_compilation_cache
from sam_jax.models.clip import LEGACY_EOS, ClipConfig, ClipModel, clip_normalise

BATCHES = (1, 4, 16, 64)
"""Phrases or crops that are embedded in one call; more of them take several calls."""
SHORT = 16
"""Tokens that most phrases have room in. What follows a text's end changes nothing of it, so that
short ones need not be computed at the tower's full length."""
UNKNOWN, BEGIN, END = "[UNK]", "[BOS]", "[EOS]"


class TextTower:
    """A CLIP's text tower: phrases in, embeddings of length 1 out.

    Args:
      clip: of `sam_jax.checkpoint.clip.load_clip`; its text tower alone will do.
      cache: whether compiled programs are kept on disk, as for `Predictor`.

    Attributes:
      config: the CLIP's.
      width: T, of the embeddings.

    Raises:
      ValueError: the tokenizer cannot be read or is not this model's, or the package `tokenizers`
        is missing.
    """

    def __init__(self, clip: Clip, *, cache: bool = True) -> None:
        if not clip.tokenizer_json:
            raise ValueError(
                "clip: came without a tokenizer.json, and phrases can't be read; put the model's "
                "own beside its weights (transformers.CLIPTokenizerFast.save_pretrained writes it)"
            )
        self.config = clip.config
        self.width = clip.config.embed_dim
        self._tokenizer = _Tokenizer(clip.tokenizer_json)
        known, ends = self._tokenizer.size, self._tokenizer.end
        if known > self.config.vocab_size or self.config.eos_id not in (LEGACY_EOS, ends):
            raise ValueError(
                f"clip: its tokenizer is another model's: expected at most "
                f"{self.config.vocab_size} tokens and the end's id {self.config.eos_id}, got "
                f"{known} and {ends}"
            )
        if cache:
            use_compilation_cache()
        self._params = jax.device_put({"params": {"text": clip.params["params"]["text"]}})

    def tokenise(
        self, phrases: Sequence[str], *, truncate: bool = False, called: str = "phrases"
    ) -> np.ndarray:
        """Phrases -> tokens, filled up with the end token.

        Args:
          phrases: N texts.
          truncate: cut the end off a phrase that is too long, instead of refusing it.
          called: what errors call the phrases.

        Returns:
          int32 [N, context].

        Raises:
          ValueError: a phrase is empty, too long, or has what the tokenizer does not know.
        """
        if isinstance(phrases, str):
            raise ValueError(
                f"phrases: expected a sequence of them, got the text {phrases!r}; put it in a list"
            )
        ids = np.full((len(phrases), self.config.context), self._tokenizer.end, np.int32)
        for i, phrase in enumerate(phrases):
            row = self._tokenizer.encode(phrase, called, self.config.context, truncate)
            ids[i, : len(row)] = row
        return ids

    def embed(
        self, phrases: Sequence[str], *, truncate: bool = False, called: str = "phrases"
    ) -> np.ndarray:
        """Phrases -> embeddings of length 1, float32 [N, T]; arguments and errors: `tokenise`."""
        ids = self.tokenise(phrases, truncate=truncate, called=called)
        short = self._lengths[0]
        if (ids[:, short - 1 :] == self._tokenizer.end).all():
            ids = ids[:, :short]
        parts = [np.zeros((0, self.width), np.float32)]
        for start in range(0, len(ids), BATCHES[-1]):
            part = ids[start : start + BATCHES[-1]]
            filled = np.resize(part, (bucket(len(part), BATCHES), ids.shape[1]))
            parts.append(np.asarray(_embed(self.config, self._params, filled))[: len(part)])
        return np.concatenate(parts)

    def warm_up(self) -> None:
        """Compiles now what `embed` needs for a single phrase."""
        for length in self._lengths:
            _embed(self.config, self._params, np.full((1, length), self._tokenizer.end, np.int32))

    @property
    def _lengths(self) -> tuple[int, int]:
        return min(SHORT, self.config.context), self.config.context


@functools.partial(jax.jit, static_argnums=0)
def _embed(config: ClipConfig, params: Any, ids: jax.Array) -> jax.Array:
    return ClipModel(config).apply(params, ids, normalise=True, method="encode_text")


def crop_embedder(clip: Clip) -> Callable[[list[tuple[np.ndarray, np.ndarray]]], np.ndarray]:
    """What makes embeddings float32 [N, T] of length 1 of N crops.

    Args:
      clip: with its image tower.

    Returns:
      A function of a list of pairs as `sam_jax.data.crops.crop_object` gives them.

    Raises:
      ValueError: the CLIP has no image tower.
    """
    if clip.text_tower_only:
        raise ValueError("clip: expected both towers, got the text tower alone")
    params = jax.device_put({"params": {"image": clip.params["params"]["image"]}})

    def of(crops: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
        found = [np.zeros((0, clip.config.embed_dim), np.float32)]
        for start in range(0, len(crops), BATCHES[-1]):
            part = crops[start : start + BATCHES[-1]]
            spare = [part[-1]] * (bucket(len(part), BATCHES) - len(part))
            images, inside = (np.stack(x) for x in zip(*part, *spare, strict=True))
            found.append(np.asarray(_embed_crops(clip.config, params, images, inside))[: len(part)])
        return np.concatenate(found)

    return of


@functools.partial(jax.jit, static_argnums=0)
def _embed_crops(config: ClipConfig, params: Any, crops: jax.Array, inside: jax.Array) -> jax.Array:
    images = clip_normalise(crops)
    return ClipModel(config).apply(params, images, inside, True, method="encode_image")


class _Tokenizer:
    """A tokenizer.json that puts a begin and an end around a text.

    Attributes:
      size: one more than the largest id.
      begin, end: ids.
    """

    def __init__(self, tokenizer_json: str) -> None:
        tokenizers = _package()
        try:
            self._made = tokenizers.Tokenizer.from_str(tokenizer_json)
            self._made.no_truncation()
            self._made.no_padding()
            empty = self._made.encode("").ids
        except Exception as error:  # the package raises nothing narrower
            raise ValueError(f"tokenizer_json: is no tokenizer: {error}") from error
        if len(empty) != 2:
            raise ValueError(
                "tokenizer_json: expected a begin and an end token around a text, got "
                f"{len(empty)} tokens around nothing"
            )
        self.begin, self.end = empty
        self._vocabulary = self._made.get_vocab()
        self.size = 1 + max(self._vocabulary.values())
        unknown = getattr(self._made.model, "unk_token", None)
        self._strange = {self.begin, self.end, self._vocabulary.get(unknown)}

    def encode(self, phrase: str, called: str, context: int, truncate: bool) -> list[int]:
        """Ids of a phrase, begin and end included, at most `context`; `called` is for errors."""
        if not isinstance(phrase, str) or not phrase.strip():
            raise ValueError(f"{called}: expected a phrase, got {phrase!r}; leave it out")
        try:
            found = self._made.encode(phrase)
        except Exception as error:  # the package raises nothing narrower
            raise ValueError(f"{called}: the tokenizer cannot read {phrase!r}: {error}") from error
        ids = found.ids
        if len(ids) == 2:
            raise ValueError(
                f"{called}: expected a phrase, got {phrase!r}, of which the tokenizer keeps "
                "nothing; use words"
            )
        for token, (start, stop) in zip(ids[1:-1], found.offsets[1:-1], strict=True):
            if token in self._strange:
                raise ValueError(self._unknown(phrase, called, phrase[start:stop]))
        if len(ids) > context:
            if not truncate:
                raise ValueError(
                    f"{called}: {_brief(phrase)} has {len(ids)} tokens, begin and end included, "
                    f"expected at most {context}; shorten it"
                )
            ids = [*ids[: context - 1], self.end]  # as transformers does
        return ids

    def _unknown(self, phrase: str, called: str, word: str) -> str:
        known = [w for w, token in self._vocabulary.items() if token not in self._strange]
        near = difflib.get_close_matches(word.lower(), known)
        instead = f"such as {' or '.join(map(repr, near))}" if near else "that it was trained with"
        return f"{called}: the model does not know {word!r} in {phrase!r}; use words {instead}"


def _brief(phrase: str) -> str:
    return repr(phrase) if len(phrase) <= 60 else f"{phrase[:40]!r}..."


def _package():
    try:
        import tokenizers
    except ImportError:
        raise ValueError(
            "text prompts need the package tokenizers: pip install 'sam_jax[text]'"
        ) from None
    return tokenizers


def word_tokenizer(words: Sequence[str], context: int = 77) -> str:
    """A tokenizer of whole words, for a small CLIP.

    Texts are lower-cased and split at spaces and punctuation, which is dropped; a word that is not
    among `words` becomes "[UNK]". A text begins with "[BOS]" and ends with "[EOS]", whose id is the
    highest, so that both rules of `sam_jax.models.clip.end_positions` find it.

    Args:
      words: the vocabulary, in the order of their ids (from 2 on); doubles are left out.
      context: what texts are cut and, with "[EOS]", filled up to, in tokens.

    Returns:
      The text of its tokenizer.json.

    Raises:
      ValueError: no words, one that would be split, too small a context, or the package
        `tokenizers` is missing.
    """
    _package()
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    if isinstance(words, str) or not words:
        raise ValueError(f"words: expected a sequence of at least one word, got {words!r}")
    if context < 3:
        raise ValueError(f"context: expected 3 or more, a word and its two ends, got {context}")
    normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    splitter = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation("removed")]
    )
    vocabulary = {UNKNOWN: 0, BEGIN: 1}
    for i, word in enumerate(words):
        word = normalizer.normalize_str(word)
        pieces = [piece for piece, _ in splitter.pre_tokenize_str(word)]
        if pieces != [word]:
            raise ValueError(
                f"words[{i}]: expected one word, got {words[i]!r}, which is split into {pieces}; "
                "give its parts"
            )
        vocabulary.setdefault(word, len(vocabulary))
    end = vocabulary[END] = len(vocabulary)
    made = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    made.normalizer, made.pre_tokenizer = normalizer, splitter
    made.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A {END}", special_tokens=[(BEGIN, vocabulary[BEGIN]), (END, end)]
    )
    made.enable_truncation(context)
    made.enable_padding(length=context, pad_id=end, pad_token=END)
    return made.to_str()


def with_tokenizer(config: ClipConfig, tokenizer_json: str) -> ClipConfig:
    """The config with the sizes that come from its tokenizer: `vocab_size` and `eos_id`.

    Raises:
      ValueError: the tokenizer cannot be read or its end has the id 2, or the package `tokenizers`
        is missing.
    """
    tokenizer = _Tokenizer(tokenizer_json)
    if tokenizer.end == LEGACY_EOS:
        raise ValueError(
            f"tokenizer_json: its end token has the id {LEGACY_EOS}, which in a config means "
            "'the highest id'; give it another"
        )
    return config.replace(vocab_size=tokenizer.size, eos_id=tokenizer.end)
