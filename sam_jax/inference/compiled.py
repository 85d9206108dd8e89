"""The two halves of a model, compiled ahead of time for shapes out of a small set.

Prompts have slots, and empty slots change nothing, so any number of points and prompts runs in
one of a few compiled decoders. What was compiled is shared by all predictors of the process with
the same config, and kept on disk for the next process (`use_compilation_cache`).
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sam_jax.compiling import compile_ahead
from sam_jax.models.config import SamConfig
from sam_jax.models.prompt_encoder import (
    EMPTY,
    NOT_A_POINT,
    POSITIVE,
    Prompts,
    draw_boxes,
)
from sam_jax.models.quantise import round_encoder
from sam_jax.models.sam import SamModel, normalise
from sam_jax.models.transformer import ImageParts
from sam_jax.storage import cache_folder

POINT_SLOTS = (3, 7, 11, 43, 123, 507)
"""Slots of a prompt: its points, the "not a point" token, the two corners of its box. With the
decoder's own 5 tokens they make 8, 12, 16, 48, 128 and 512."""
PROMPT_SLOTS = (1, 4, 16, 64)
"""Prompts that are decoded in one call; more of them take several calls."""
PROMPT_SLOTS_CPU = (1, 4, 8)
"""Likewise on a CPU, where larger batches leave the cache and are slower a prompt."""
POINTS, POINTS_CPU = (4, 16, 64, 256), (4, 16, 64)
"""Single points that `decode_points` takes in one call."""
CHUNKS, CHUNKS_CPU = (1, 4, 16, 64), (1,)
"""Of these, how many are decoded at a time: more of them leave a CPU's cache, and in processes that
give freed memory back two cost 5 to 9% more a point than one."""

DECODER_ON_CPU = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"}
"""XLA puts what surrounds a product into one kernel with it, in which narrow products are slower
than by themselves: by 5% for float32 points and 12% for bfloat16 ones, two cores with AVX2."""

STREAMS = 4
"""Calls of a decoder that a CPU works on at a time: the small steps of one leave cores idle."""

KEPT_PARTS = 4
"""Images whose `image_parts` a model remembers: 14 MB each at the released sizes."""

_executables: dict[Any, Any] = {}
_signatures: dict[Any, int] = {}
"""A number for each config with the shapes and places of its arrays: hashing those takes longer
than looking a program up may."""
_lock = threading.Lock()
_threads = ThreadPoolExecutor(STREAMS, thread_name_prefix="sam_jax_decoder")
"""On a CPU, JAX computes one thread's calls one after the other and those of several at a time."""


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

    Args:
      config: the model's SamConfig.
      variables: {"params", "buffers"}.
      image_size: side of the frame in pixels; None is the one that the model was trained for.
      devices: where to run; None: where the variables are. With several of them every device has
        the variables, `encode` and `decode_points` take a multiple of as many photos, each device
        its share of them and by the program of a single one, and `decode` cannot be used.

    Attributes:
      config, image_size: as given.
      variables: on the devices.
      devices: how many there are.
      on_cpu: whether they are a CPU.
    """

    def __init__(
        self,
        config: SamConfig,
        variables: dict,
        image_size: int | None = None,
        devices: Sequence[jax.Device] | None = None,
    ) -> None:
        self.config = config
        self.image_size = config.image_size if image_size is None else image_size
        self.devices = len(devices or [None])
        self._mesh = Mesh(np.array(devices), ("data",)) if self.devices > 1 else None
        where = NamedSharding(self._mesh, PartitionSpec()) if self._mesh else None
        self.variables = jax.device_put(variables, where)
        self.on_cpu = next(iter(jax.tree.leaves(self.variables)[0].devices())).platform == "cpu"
        decoder = dict(self.variables["params"])
        encoder = {"image_encoder": round_encoder(decoder.pop("image_encoder"), config.dtype)}
        self._encoder, self._decoder = map(self._half, (encoder, decoder))
        self._parts: list[tuple[jax.Array, ImageParts]] = []

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
        parts = self.image_parts(features) if prompts.masks is None else None
        calls = []
        for start in range(0, count, prompt_slots[-1]):
            part = jax.tree.map(lambda x, s=start: x[:, s : s + prompt_slots[-1]], prompts)
            size = part.labels.shape[1]
            part = _fill(part, bucket(size, prompt_slots), slots)
            calls.append((self._call("decode", _decode, features, part, parts), size))
        results = self._several(
            lambda call: [np.asarray(x)[0, : call[1]] for x in call[0]()], calls
        )
        return tuple(x[0] if len(x) == 1 else np.concatenate(x) for x in zip(*results, strict=True))

    def decode_points(
        self, features: jax.Array, points: np.ndarray, at_once: int, least: float = -np.inf
    ) -> tuple[jax.Array, jax.Array]:
        """The three masks of each of N points, every point a prompt of its own.

        Args:
          features: float32 [B, h, w, D].
          points: float32 [B, N, 2], pixels of the model's frame; N is one of `point_counts`.
          at_once: how many are decoded at a time, at most.
          least: logits of masks whose predicted IoU is not above it may be 0: a CPU does not
            compute them where no mask of those decoded at a time is above it.

        Returns:
          float32 logits [B, N, 3, 4h, 4w] and predicted IoU [B, N, 3] on the devices, perhaps
          still being computed.
        """
        sizes = CHUNKS_CPU if self.on_cpu else CHUNKS
        chunk = min(max(size for size in sizes if size <= at_once), points.shape[1])
        program = functools.partial(_decode_points, chunk=chunk)
        points = np.asarray(points, np.float32)
        parts = self.image_parts(features)
        # One for each image: where devices share them out, every argument is split.
        limits = np.full(len(points), least, np.float32) if self.on_cpu else None
        count = points.shape[1]
        share = bucket(-(-count // STREAMS), POINTS_CPU) if self.on_cpu else count
        calls = [
            self._call(
                f"points {chunk}", program, features, points[:, i : i + share], parts, limits
            )
            for i in range(0, count, share)
        ]
        results = self._several(lambda call: call(), calls)
        return tuple(
            x[0] if len(x) == 1 else jnp.concatenate(x, 1) for x in zip(*results, strict=True)
        )

    def image_parts(self, features: jax.Array) -> ImageParts:
        """What the decoder makes of embeddings before any prompt; kept for the last few of them."""
        for known, parts in self._parts:
            if known is features:
                return parts
        parts = self._run("parts", _image_parts, features)
        self._parts = [(features, parts), *self._parts[: KEPT_PARTS - 1]]
        return parts

    @property
    def point_counts(self) -> tuple[int, ...]:
        """The numbers of points that `decode_points` is compiled for."""
        return POINTS_CPU if self.on_cpu else POINTS

    def _half(self, params: dict) -> tuple[dict, int]:
        """Variables with these parameters alone, and the number of their signature."""
        variables = {**self.variables, "params": params}
        leaves, structure = jax.tree.flatten(variables)
        shapes = tuple((x.shape, x.dtype, x.sharding) for x in leaves)
        with _lock:
            signature = (self.config, structure, shapes)
            return variables, _signatures.setdefault(signature, len(_signatures))

    def _several(self, result: Callable, calls: Sequence) -> Iterable:
        """The result of each call: several at a time on a CPU."""
        return (_threads.map if self.on_cpu and len(calls) > 1 else map)(result, calls)

    def _run(self, name: str, function: Callable, *args):
        return self._call(name, function, *args)()

    def _call(self, name: str, function: Callable, *args) -> Callable[[], Any]:
        """A call that is still to be made, of a program that is compiled where need be."""
        encodes = function is _encode
        variables, signature = self._encoder if encodes else self._decoder
        leaves, structure = jax.tree.flatten(args)
        key = (name, signature, structure, tuple((x.shape, x.dtype) for x in leaves))
        if self._mesh:
            args = jax.device_put(args, NamedSharding(self._mesh, PartitionSpec("data")))
        program = _executables.get(key)
        if program is None:
            options = DECODER_ON_CPU if self.on_cpu and not encodes else None
            with _lock:
                if key not in _executables:
                    program = self._shared_out(functools.partial(function, self.config), len(args))
                    program = jax.jit(program)
                    _executables[key] = compile_ahead(program, variables, *args, options=options)
                program = _executables[key]
        return functools.partial(program, variables, *args)

    def _shared_out(self, program: Callable, count: int) -> Callable:
        """A program of (variables, `count` arguments) in which each device does its share."""
        if not self._mesh:
            return program
        whole, shared = PartitionSpec(), PartitionSpec("data")
        specs = (whole, *[shared] * count)
        return jax.shard_map(
            program, mesh=self._mesh, in_specs=specs, out_specs=shared, check_vma=False
        )


def _encode(config: SamConfig, variables, images, input_hw):
    images = normalise(images, input_hw)
    return SamModel(config).apply(variables, images, method="encode")


def _image_parts(config: SamConfig, variables, features):
    return SamModel(config).apply(variables, features, method="image_parts")


def _decode(config: SamConfig, variables, features, prompts, parts):
    return SamModel(config).apply(variables, features, prompts, parts=parts, method="decode")


def _decode_points(config: SamConfig, variables, features, points, parts, limits, chunk: int):
    """`chunk` points at a time; a point is two slots: itself, and "not a point"."""
    b, n = points.shape[:2]
    slots = jnp.stack([points, jnp.zeros_like(points)], 2)
    slots = jnp.moveaxis(slots.reshape(b, n // chunk, chunk, 2, 2), 1, 0)
    labels = jnp.broadcast_to(jnp.array([POSITIVE, NOT_A_POINT]), (b, chunk, 2))
    options = {
        "wanted": "several",
        "parts": parts,
        "least": None if limits is None else limits.min(),
    }

    def decode(part):
        prompts = Prompts(part, labels)
        return SamModel(config).apply(variables, features, prompts, method="decode", **options)

    results = jax.lax.map(decode, slots)
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(b, n, *x.shape[3:]), results)


def _fill(prompts: Prompts, count: int, slots: int) -> Prompts:
    """Empty slots and empty prompts up to the given numbers."""

    def pad(x, value, axes=1):
        if x is None:
            return None
        shape = (x.shape[0], *(count, slots)[:axes], *x.shape[1 + axes :])
        if shape == x.shape:
            return x
        padded = np.full(shape, value, x.dtype)
        padded[tuple(map(slice, x.shape))] = x
        return padded

    return Prompts(
        points=pad(prompts.points, 0.0, 2),
        labels=pad(prompts.labels, EMPTY, 2),
        masks=pad(prompts.masks, 0.0),
        has_mask=pad(prompts.has_mask, False),
        text=pad(prompts.text, 0.0),
        has_text=pad(prompts.has_text, False),
    )
