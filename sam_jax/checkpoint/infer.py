"""What model a set of tensors is: read off their names and shapes."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from sam_jax.checkpoint.strict import CheckpointError
from sam_jax.checkpoint.table import count, released_names, unpack
from sam_jax.models.config import CONFIGS, MOBILE_SAM, SamConfig

MAX_DEPTH = 512
MAX_SIZE = 1 << 16

TINY_VIT = "params/image_encoder/stem_0/kernel"
"""In this project's names: what MobileSAM's encoder has, and no other."""
NOT_IN_SHAPES = (
    "decoder_heads",
    "dtype",
    "drop_path",
    "decoder_dropout",
    "remat",
    "scan_blocks",
    "draw_boxes",
)
"""Fields of a config that no tensor's shape depends on."""
OF_A_VIT = (
    *("encoder_width", "encoder_depth", "encoder_heads", "encoder_mlp_ratio"),
    *("global_blocks", "window_size", "image_size"),
)
"""Nor on these where the encoder is MobileSAM's."""


def infer_config(tensors: Mapping[str, np.ndarray]) -> SamConfig:
    """The config of a model, out of its tensors in the released or Hugging Face's names.

    The encoder's heads follow from the width of its position tables, its window from their length.
    A table as long as the whole map makes its block a global one: where the window is as large as
    the map, the two are one and the same at the size that the model was trained for. The
    decoder's heads can't be seen: 8, as in every released model (or the largest power of 2 below
    that divides).

    Raises:
      CheckpointError: the tensors are no Segment Anything model.
    """
    if any(name.startswith("vision_encoder.") for name in tensors):
        tensors = released_names(tensors)
    counts = count(tensors, "released")
    shape = _Shapes(tensors)
    _, grid, grid_w, width = shape("image_encoder.pos_embed", 4)
    if grid != grid_w:
        raise CheckpointError(
            f"image_encoder.pos_embed: expected a square table [1, g, g, C], got {grid} x {grid_w}"
        )
    patch = shape("image_encoder.patch_embed.proj.weight", 4)[-1]
    hidden = shape("image_encoder.blocks.0.mlp.lin1.weight", 2)[0]
    embed = shape("image_encoder.neck.0.weight", 4)[0]
    tables = [
        shape(f"image_encoder.blocks.{i}.attn.rel_pos_h", 2) for i in range(counts.encoder_depth)
    ]
    window, global_blocks = _windows([length for length, _ in tables], grid)
    layer = "mask_decoder.transformer.layers.0"
    inner = shape(f"{layer}.cross_attn_token_to_image.q_proj.weight", 2)[0]
    head = "mask_decoder.iou_prediction_head.layers.0.weight"
    fields = dict(
        encoder_width=width,
        encoder_depth=counts.encoder_depth,
        encoder_heads=width // max(tables[0][1], 1),
        global_blocks=global_blocks,
        image_size=grid * patch,
        patch_size=patch,
        window_size=window,
        encoder_mlp_ratio=_ratio(width, hidden),
        embed_dim=embed,
        mask_channels=shape("prompt_encoder.mask_downscaling.3.weight", 4)[0],
        decoder_depth=counts.decoder_depth,
        decoder_heads=_heads(inner),
        decoder_mlp_width=shape(f"{layer}.mlp.lin1.weight", 2)[0],
        attention_downsample=max(embed // max(inner, 1), 1),
        num_multimask=shape("mask_decoder.mask_tokens.weight", 2)[0] - 1,
        iou_head_depth=counts.iou_head_depth,
        iou_head_width=shape(head, 2)[0] if counts.iou_head_depth > 1 else 256,
    )
    try:
        return sane(fields)
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"the tensors' shapes are those of no model: {error}") from error


def sane(fields: Mapping[str, Any]) -> SamConfig:
    """A config out of a file's numbers, none of which may be such that a model of it never ends.

    Raises:
      ValueError, TypeError: a field is of the wrong type, absurd, or unknown.
    """
    for field in dataclasses.fields(SamConfig):
        value = fields.get(field.name, 1)
        if field.type == "int":
            most = MAX_DEPTH if field.name.endswith("depth") else MAX_SIZE
            least = 0 if field.name in ("text_width", "num_multimask") else 1
            if type(value) is not int or not least <= value <= most:
                raise ValueError(f"{field.name}: expected {least} to {most}, got {value!r}")
        elif field.type == "float" and not (
            isinstance(value, int | float) and 0 <= value <= MAX_SIZE
        ):
            raise ValueError(f"{field.name}: expected a number, got {value!r}")
    blocks = fields["global_blocks"]
    if not all(type(i) is int and 0 <= i < fields["encoder_depth"] for i in blocks):
        raise ValueError(f"global_blocks: expected indices of blocks, got {blocks!r}")
    if fields.get("dtype", "float32") not in ("float32", "bfloat16"):
        raise ValueError(f"dtype: expected float32 or bfloat16, got {fields['dtype']!r}")
    return SamConfig(**fields)


def infer_own(flat: Mapping[str, np.ndarray]) -> SamConfig:
    """As `infer_config`, out of this project's flat names; a text head is seen too.

    Of a model with MobileSAM's encoder all else is taken to be MobileSAM's too.
    """
    text = flat.get("params/prompt_encoder/text_proj/kernel")
    text_width = 0 if text is None else text.shape[0]
    if TINY_VIT in flat:
        return MOBILE_SAM.replace(text_width=text_width)
    kernel = flat.get("params/image_encoder/patch_embed/kernel")
    if kernel is None or kernel.ndim != 2:
        raise CheckpointError("no model of this project: params/image_encoder/patch_embed/kernel")
    try:
        tensors = unpack(flat, count(flat, "own", math.isqrt(kernel.shape[0] // 3)), "released")
    except (KeyError, ValueError, IndexError, ZeroDivisionError) as error:
        raise CheckpointError(f"no model of this project: {error}") from error
    return infer_config(tensors).replace(text_width=text_width)


class _Shapes:
    """Shapes by name, or the error that says what kind of file this isn't."""

    def __init__(self, tensors: Mapping[str, np.ndarray]) -> None:
        self.tensors = tensors

    def __call__(self, name: str, ndim: int) -> tuple[int, ...]:
        if name not in self.tensors:
            first = ", ".join(list(self.tensors)[:3])
            raise CheckpointError(
                f"no Segment Anything checkpoint: it lacks {name}, and its {len(self.tensors)} "
                f"tensors begin with {first or 'nothing'}"
            )
        shape = tuple(self.tensors[name].shape)
        if len(shape) != ndim or 0 in shape:
            raise CheckpointError(f"{name}: expected {ndim} axes, none empty, got shape {shape}")
        return shape


def _windows(lengths: list[int], grid: int) -> tuple[int, tuple[int, ...]]:
    """Lengths of the blocks' tables -> the window's side and which blocks are global."""
    whole = 2 * grid - 1
    short = Counter(length for length in lengths if length != whole)
    if len(short) > 1 or any(length % 2 == 0 for length in short):
        raise CheckpointError(
            "image_encoder.blocks.*.attn.rel_pos_h: expected tables of two odd lengths, one of "
            f"them {whole} for the map of {grid} x {grid}, got lengths {sorted(set(lengths))}"
        )
    window = (next(iter(short)) + 1) // 2 if short else grid
    return window, tuple(i for i, length in enumerate(lengths) if length == whole)


def _ratio(width: int, hidden: int) -> float:
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else (hidden + 0.5) / width


def _heads(inner: int) -> int:
    return next(heads for heads in (8, 4, 2, 1) if inner % heads == 0)


def same_shapes(a: SamConfig, b: SamConfig) -> bool:
    """Whether the weights of one model fit the other, in every respect that shapes can show."""
    return _bare(a) == _bare(b)


def _bare(config: SamConfig) -> SamConfig:
    if config.encoder == "tiny_vit":
        config = config.replace(**{field: getattr(MOBILE_SAM, field) for field in OF_A_VIT})
    # Where the window is as large as the map, every block has a table of the same length.
    if config.window_size == config.grid:
        config = config.replace(global_blocks=tuple(range(config.encoder_depth)))
    if len(set(config.global_blocks)) == config.encoder_depth:
        config = config.replace(window_size=config.grid)
    ratio = int(config.encoder_width * config.encoder_mlp_ratio)
    defaults = {
        field.name: field.default
        for field in dataclasses.fields(SamConfig)
        if field.name in NOT_IN_SHAPES
    }
    defaults["decoder_heads"] = 1
    return config.replace(
        **defaults,
        encoder_mlp_ratio=float(ratio),
        global_blocks=tuple(sorted(set(config.global_blocks))),
    )


def model_name(config: SamConfig) -> str | None:
    """The name in `CONFIGS` of a model of these shapes, or None; of two, that of its image size."""
    names = [name for name, known in CONFIGS.items() if same_shapes(config, known)]
    if "mobile_sam" in names:
        return "tiny" if config.image_size == CONFIGS["tiny"].image_size else "mobile_sam"
    return names[0] if names else None


def describe(config: SamConfig) -> str:
    """A model's name, or its sizes in a few words."""
    name = model_name(config)
    if config.encoder == "tiny_vit":
        return name or f"a model of MobileSAM's encoder, embedding width {config.embed_dim}"
    return name or (
        f"a model of width {config.encoder_width}, depth {config.encoder_depth}, "
        f"heads {config.encoder_heads}, image size {config.image_size}, "
        f"embedding width {config.embed_dim}"
    )


def looks_like(tensors: Mapping[str, np.ndarray], naming: str, config: SamConfig) -> str:
    """A sentence that says which other model the tensors seem to be; "" if that can't be said."""
    try:
        found = infer_own(tensors) if naming == "own" else infer_config(tensors)
    except CheckpointError:
        return ""
    return "" if same_shapes(found, config) else f"these tensors look like {describe(found)}"
