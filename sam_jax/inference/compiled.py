"""The two halves of a model, compiled ahead of time for shapes out of a small set.

Prompts have slots, and empty slots change nothing, so any number of points and prompts runs in
one of a few compiled decoders. What was compiled is shared by all predictors of the process with
the same config, and kept on disk for the next process (`use_compilation_cache`).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sam_jax.models.config import SamConfig
from sam_jax.models.prompt_encoder import EMPTY, Prompts, draw_boxes
from sam_jax.models.sam import SamModel, normalise
from sam_jax.storage import cache_folder

POINT_SLOTS = (8, 32, 128, 512)
"""Slots of a prompt: its points, the "not a point" token, the two corners of its box."""
PROMPT_SLOTS = (1, 4, 16, 64)
"""Prompts that are decoded in one call; more of them take several calls."""
PROMPT_SLOTS_CPU = (1, 4, 8)
"""Likewise on a CPU, where larger batches leave the cache and are slower a prompt."""

_executables: dict[Any, Any] = {}
_lock = threading.Lock()


def use_compilation_cache() -> Path | None:
    """Turns JAX's persistent compilation cache on, unless the user has configured it.

    It lies beside the fetched checkpoints, in $SAM_JAX_CACHE/xla or ~/.cache/sam_jax/xla.

    Returns:
      The folder in use, or None where it cannot be written to (the cache then stays off).
    """
    chosen = jax.config.jax_compilation_cache_dir
    if chosen:
        return Path(chosen)
    if not jax.config.jax_enable_compilation_cache:
        return None
    try:
        folder = cache_folder() / "xla"
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK)
    except (OSError, RuntimeError):  # no home folder, a file in the way, a read-only disk
        return None
    if not writable:
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    # JAX decides at its first compilation whether there is a cache; make it look again.
    from jax.experimental.compilation_cache import compilation_cache

    compilation_cache.reset_cache()
    return folder


def bucket(count: int, sizes: tuple[int, ...]) -> int:
    """The smallest of `sizes` that holds `count`; beyond the last, that times a power of 4."""
    for size in sizes:
        if count <= size:
            return size
    size = sizes[-1]
    while size < count:
        size *= 4
    return size


def prompt_slots_of(features: jax.Array) -> tuple[int, ...]:
    """The numbers of prompts that are decoded in one call on the device of `features`."""
    on_cpu = next(iter(features.devices())).platform == "cpu"
    return PROMPT_SLOTS_CPU if on_cpu else PROMPT_SLOTS


class CompiledModel:
    """A model's variables on the device, and its `encode` and `decode` as compiled programs.

    Attributes:
      config: the model's SamConfig.
      variables: {"params", "buffers"} on the device.
    """

    def __init__(self, config: SamConfig, variables: dict) -> None:
        self.config = config
        self.variables = jax.device_put(variables)
        leaves, structure = jax.tree.flatten(self.variables)
        self._key = (config, structure, tuple((x.shape, x.dtype, x.sharding) for x in leaves))

    def encode(self, images: np.ndarray, input_hw: np.ndarray) -> jax.Array:
        """Padded photos -> embeddings.

        Args:
          images: uint8 or float32 [B, S, S, 3] in 0..255, S a multiple of the patch size.
          input_hw: int32 [B, 2], what of each is photo; the rest is padding.

        Returns:
          float32 [B, h, w, D] on the device.
        """
        return self._run("encode", _encode, images, np.asarray(input_hw, np.int32))

    def decode(
        self,
        features: jax.Array,
        prompts: Prompts,
        *,
        point_slots: tuple[int, ...] = POINT_SLOTS,
        prompt_slots: tuple[int, ...] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Any number of prompts with any number of points, of one image.

        Args:
          features: float32 [1, h, w, D].
          prompts: numpy arrays, B = 1, coordinates in pixels of the model's frame.
          point_slots, prompt_slots: the sizes that the slots are filled up to; None: those of
            the device.

        Returns:
          numpy float32 logits [N, K, 4h, 4w] and predicted IoU [N, K] with K = 4, the single mask
          first.
        """
        count = prompts.labels.shape[1]
        if not count:
            k, (h, w) = self.config.num_masks, features.shape[1:3]
            return np.zeros((0, k, 4 * h, 4 * w), np.float32), np.zeros((0, k), np.float32)
        if self.config.draw_boxes:
            prompts = draw_boxes(prompts, features.shape[1:3], self.config.patch_size)
        if prompt_slots is None:
            prompt_slots = prompt_slots_of(features)
        slots = bucket(prompts.labels.shape[2], point_slots)
        logits, scores = [], []
        for start in range(0, count, prompt_slots[-1]):
            part = jax.tree.map(lambda x, s=start: x[:, s : s + prompt_slots[-1]], prompts)
            size = part.labels.shape[1]
            part = _fill(part, bucket(size, prompt_slots), slots)
            result = self._run("decode", _decode, features, part)
            for chunks, x in zip((logits, scores), result, strict=True):
                chunks.append(np.asarray(x)[0, :size])
        if len(logits) == 1:
            return logits[0], scores[0]
        return np.concatenate(logits), np.concatenate(scores)

    def _run(self, name: str, function: Callable, *args):
        shapes = jax.tree.map(lambda x: (x.shape, str(x.dtype)), args)
        leaves, structure = jax.tree.flatten(shapes, is_leaf=lambda x: isinstance(x, tuple))
        key = (name, self._key, tuple(leaves), structure)
        if key not in _executables:
            with _lock:
                if key not in _executables:
                    jitted = jax.jit(function, static_argnums=0)
                    lowered = jitted.lower(self.config, self.variables, *args)
                    _executables[key] = lowered.compile()
        return _executables[key](self.variables, *args)


def _encode(config: SamConfig, variables, images, input_hw):
    images = normalise(images, input_hw)
    return SamModel(config).apply(variables, images, method="encode")


def _decode(config: SamConfig, variables, features, prompts):
    return SamModel(config).apply(variables, features, prompts, method="decode")


def _fill(prompts: Prompts, count: int, slots: int) -> Prompts:
    """Empty slots and empty prompts up to the given numbers."""

    def pad(x, value, axes=1):
        if x is None:
            return None
        widths = [(0, 0), (0, count - x.shape[1]), (0, slots - x.shape[2] if axes == 2 else 0)]
        widths = (widths + [(0, 0)] * x.ndim)[: x.ndim]
        return np.pad(x, widths, constant_values=value)

    return Prompts(
        points=pad(prompts.points, 0.0, 2),
        labels=pad(prompts.labels, EMPTY, 2),
        masks=pad(prompts.masks, 0.0),
        has_mask=pad(prompts.has_mask, False),
        text=pad(prompts.text, 0.0),
        has_text=pad(prompts.has_text, False),
    )
