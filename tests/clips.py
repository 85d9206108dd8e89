"""A CLIP of odd sizes with random weights, its twin in transformers, and a small tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sam_jax.checkpoint.clip import Clip, config_to_huggingface, to_huggingface
from sam_jax.checkpoint.clip_names import own_shapes
from sam_jax.checkpoint.names import unflatten
from sam_jax.inference.text import with_tokenizer, word_tokenizer
from sam_jax.models.clip import ClipConfig, TowerConfig

SMALL = ClipConfig(
    TowerConfig(24, 2, 3, 40),
    TowerConfig(20, 2, 2, 36, "gelu"),
    embed_dim=14,
    image_size=30,
    patch_size=6,
    vocab_size=32,
    context=9,
    eos_id=27,
)
"""No two sizes alike, so that a wrong transposition has a wrong shape; ids beyond the end's."""
PHRASES = [
    "a dog",
    "It's  a CAT!!",
    "dogcat, 42 cafés",
    "the cat's dog and another dog and then a cat",
    "\tdog\ncat ",
]


def random_params(config: ClipConfig = SMALL, seed: int = 0) -> dict:
    """{"params"} of NumPy arrays: products keep their size, no bias is zero, no scale one."""
    rng, flat = np.random.default_rng(seed), {}
    for name, shape in own_shapes(config).items():
        x, last = rng.standard_normal(shape, np.float32), name.split("/")[-1]
        if last == "kernel":
            x *= np.float32(shape[0]) ** -0.5
        flat[name] = 1 + 0.3 * x if last == "scale" else 0.3 * x if last == "bias" else x
    return unflatten(flat)


def random_clip(tokenizer_json: str = "{}", config: ClipConfig = SMALL) -> Clip:
    """A CLIP of such params."""
    return Clip(config, random_params(config), tokenizer_json)


def word_clip(words: Sequence[str], context: int = 20) -> Clip:
    """Such a CLIP with a tokenizer of whole words."""
    tokenizer = word_tokenizer(words, context)
    return random_clip(tokenizer, with_tokenizer(SMALL.replace(context=context), tokenizer))


def images(count: int = 3, config: ClipConfig = SMALL, seed: int = 1) -> np.ndarray:
    """Normalised images float32 [B, S, S, 3] of noise."""
    shape = (count, config.image_size, config.image_size, 3)
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def reference(config: ClipConfig, params: dict):
    """transformers' CLIPModel with these params, every one of them taken."""
    import torch
    import transformers

    model = transformers.CLIPModel(transformers.CLIPConfig(**config_to_huggingface(config)))
    tensors = {k: torch.tensor(np.array(v)) for k, v in to_huggingface(params, config).items()}
    model.load_state_dict(tensors, strict=True)
    return model.eval()


def bpe_tokenizer():
    """transformers' CLIP tokenizer with every byte and a few merges for its vocabulary."""
    import transformers
    from tokenizers import pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("d", "o"), ("do", "g</w>"), ("c", "a"), ("ca", "t</w>"), ("a", "n"), ("t", "h")]
    words = [*letters, *(f"{c}</w>" for c in letters), *(a + b for a, b in merges)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: i for i, word in enumerate(words)}
    return transformers.CLIPTokenizerFast(vocab=vocabulary, merges=merges)


def write_reference(path: Path, model, tokenizer, **options) -> None:
    """The folder that transformers writes."""
    model.save_pretrained(path, **options)
    tokenizer.save_pretrained(path)
