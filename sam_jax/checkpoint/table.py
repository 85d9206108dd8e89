"""One table of names, both ways: this project's, the released PyTorch ones and Hugging Face's.

Every change of an array is a transposition, a reshaping or a stacking, so that a round trip gives
the same bits. Names are flat: "params/image_encoder/block_0/attn/qkv/kernel" here,
"image_encoder.blocks.0.attn.qkv.weight" in the released files (segment_anything/modeling), and
"vision_encoder.layers.0.attn.qkv.weight" in Hugging Face's `SamModel`.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np

from sam_jax.checkpoint.strict import CheckpointError
from sam_jax.models.config import SamConfig

HF_TWIN = "prompt_encoder.shared_embedding.positional_embedding"
"""Hugging Face's second name for the one matrix of the positional encoding."""
HF_GAUSSIAN = "shared_image_embedding.positional_embedding"


@dataclasses.dataclass(frozen=True)
class Row:
    """One array here, and the tensors that hold it elsewhere (several where they are stacked)."""

    own: str
    released: tuple[str, ...]
    hf: tuple[str, ...]
    layout: str
    size: int = 1
    """The side of a convolution's kernel, where the layout is that of one."""

    def pack(self, tensors: list[np.ndarray]) -> np.ndarray:
        """Released tensors -> own array."""
        return LAYOUTS[self.layout][0](self, tensors)

    def unpack(self, array: np.ndarray) -> list[np.ndarray]:
        """Own array -> released tensors: the inverse of `pack`."""
        return LAYOUTS[self.layout][1](self, array)


def _pack_patches(row: Row, tensors: list[np.ndarray]) -> np.ndarray:
    kernel = tensors[0].transpose(2, 3, 1, 0)  # [out, in, y, x] -> [y, x, in, out]
    return kernel.reshape(-1, kernel.shape[-1])


def _unpack_patches(row: Row, array: np.ndarray) -> list[np.ndarray]:
    k = row.size
    return [array.reshape(k, k, -1, array.shape[-1]).transpose(3, 2, 0, 1)]


def _pack_transposed(row: Row, tensors: list[np.ndarray]) -> np.ndarray:
    kernel = tensors[0].transpose(0, 2, 3, 1)  # [in, out, y, x] -> [in, y, x, out]
    return kernel.reshape(kernel.shape[0], -1)


def _unpack_transposed(row: Row, array: np.ndarray) -> list[np.ndarray]:
    k = row.size
    return [array.reshape(array.shape[0], k, k, -1).transpose(0, 3, 1, 2)]


LAYOUTS: dict[str, tuple[Callable, Callable]] = {
    "same": (lambda row, t: t[0], lambda row, a: [a]),
    "vector": (lambda row, t: t[0][0], lambda row, a: [a[None]]),
    "stack": (lambda row, t: np.concatenate(t), lambda row, a: list(a[:, None])),
    "linear": (lambda row, t: t[0].T, lambda row, a: [a.T]),
    "conv": (lambda row, t: t[0].transpose(2, 3, 1, 0), lambda row, a: [a.transpose(3, 2, 0, 1)]),
    "patches": (_pack_patches, _unpack_patches),
    "transposed": (_pack_transposed, _unpack_transposed),
}
"""How one array is laid out: (released -> own, own -> released).

same: as it is. vector: [1, D] -> [D]. stack: n times [1, D] -> [n, D]. linear: [out, in] ->
[in, out]. conv: [out, in, k, k] -> [k, k, in, out]. patches: the same, the first three axes as
one. transposed: a transposed convolution [in, out, k, k] -> [in, k * k * out].
"""


def _block(i: int) -> list[Row]:
    own, released = f"image_encoder/block_{i}", f"image_encoder.blocks.{i}"
    hf = f"vision_encoder.layers.{i}"
    rows = []
    for n in (1, 2):
        rows += _affine(f"{own}/norm{n}", f"{released}.norm{n}", f"{hf}.layer_norm{n}", scale=True)
        rows += _affine(f"{own}/lin{n}", f"{released}.mlp.lin{n}", f"{hf}.mlp.lin{n}")
    for name in ("qkv", "proj"):
        rows += _affine(f"{own}/attn/{name}", f"{released}.attn.{name}", f"{hf}.attn.{name}")
    for name in ("rel_pos_h", "rel_pos_w"):
        rows.append(_row(f"{own}/attn/{name}", f"{released}.attn.{name}", f"{hf}.attn.{name}"))
    return rows


def _affine(
    own: str, released: str, hf: str, layout: str = "linear", size: int = 1, scale: bool = False
) -> list[Row]:
    """A weight and a bias: of a norm (`scale`) or of a product."""
    weight, layout = (f"{own}/scale", "same") if scale else (f"{own}/kernel", layout)
    return [
        _row(weight, f"{released}.weight", f"{hf}.weight", layout, size),
        _row(f"{own}/bias", f"{released}.bias", f"{hf}.bias"),
    ]


def _row(own: str, released: str, hf: str, layout: str = "same", size: int = 1) -> Row:
    return Row(f"params/{own}", (released,), (hf,), layout, size)


def _image_encoder(depth: int, patch_size: int) -> list[Row]:
    own, released, hf = "image_encoder", "image_encoder", "vision_encoder"
    rows = _affine(
        f"{own}/patch_embed",
        f"{released}.patch_embed.proj",
        f"{hf}.patch_embed.projection",
        "patches",
        patch_size,
    )
    rows.append(_row(f"{own}/pos_embed", f"{released}.pos_embed", f"{hf}.pos_embed"))
    for i in range(depth):
        rows += _block(i)
    for n, layout in ((1, "patches"), (2, "conv")):
        k = 2 * n - 2
        rows.append(
            _row(
                f"{own}/neck_conv{n}/kernel",
                f"{released}.neck.{k}.weight",
                f"{hf}.neck.conv{n}.weight",
                layout,
            )
        )
        rows += _affine(
            f"{own}/neck_norm{n}",
            f"{released}.neck.{k + 1}",
            f"{hf}.neck.layer_norm{n}",
            scale=True,
        )
    return rows


def _prompt_encoder() -> list[Row]:
    part = "prompt_encoder"
    rows = [
        Row(
            f"buffers/{part}/gaussian",
            (f"{part}.pe_layer.positional_encoding_gaussian_matrix",),
            (HF_GAUSSIAN,),
            "same",
        ),
        Row(
            f"params/{part}/point_embeddings",
            tuple(f"{part}.point_embeddings.{i}.weight" for i in range(4)),
            tuple(f"{part}.point_embed.{i}.weight" for i in range(4)),
            "stack",
        ),
    ]
    for own in ("not_a_point", "no_mask"):
        name = f"{part}.{own}_embed.weight"
        rows.append(_row(f"{part}/{own}", name, name, "vector"))
    released, hf = f"{part}.mask_downscaling", f"{part}.mask_embed"
    for n, (conv, norm) in enumerate(((0, 1), (3, 4)), 1):
        rows += _affine(f"{part}/mask_conv{n}", f"{released}.{conv}", f"{hf}.conv{n}", "patches", 2)
        rows += _affine(
            f"{part}/mask_norm{n}", f"{released}.{norm}", f"{hf}.layer_norm{n}", scale=True
        )
    return rows + _affine(f"{part}/mask_conv3", f"{released}.6", f"{hf}.conv3", "patches")


def _attention(own: str, released: str) -> list[Row]:
    rows = []
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        rows += _affine(f"{own}/{name}", f"{released}.{name}", f"{released}.{name}")
    return rows


def _transformer(depth: int) -> list[Row]:
    own, released = "mask_decoder/transformer", "mask_decoder.transformer"
    rows = []
    for i in range(depth):
        here, there = f"{own}/layer_{i}", f"{released}.layers.{i}"
        for name, other in (
            ("self_attn", "self_attn"),
            ("token_to_image", "cross_attn_token_to_image"),
            ("image_to_token", "cross_attn_image_to_token"),
        ):
            rows += _attention(f"{here}/{name}", f"{there}.{other}")
        for n in (1, 2, 3, 4):
            rows += _affine(
                f"{here}/norm{n}", f"{there}.norm{n}", f"{there}.layer_norm{n}", scale=True
            )
        for n in (1, 2):
            rows += _affine(f"{here}/lin{n}", f"{there}.mlp.lin{n}", f"{there}.mlp.lin{n}")
    rows += _attention(f"{own}/final_attn", f"{released}.final_attn_token_to_image")
    return rows + _affine(
        f"{own}/norm_final",
        f"{released}.norm_final_attn",
        f"{released}.layer_norm_final_attn",
        scale=True,
    )


def _head(own: str, released: str, depth: int) -> list[Row]:
    """An MLP; Hugging Face names its first and last layer apart and counts the others from 0."""
    hf = ["proj_in", *(f"layers.{i}" for i in range(depth - 2)), "proj_out"]
    rows = []
    for i in range(depth):
        rows += _affine(
            f"mask_decoder/{own}/layer_{i}",
            f"mask_decoder.{released}.layers.{i}",
            f"mask_decoder.{released}.{hf[i] if depth > 1 else 'proj_out'}",
        )
    return rows


def _mask_decoder(depth: int, num_masks: int, iou_head_depth: int) -> list[Row]:
    part = "mask_decoder"
    rows = [
        _row(f"{part}/{name}", f"{part}.{name}.weight", f"{part}.{name}.weight")
        for name in ("iou_token", "mask_tokens")
    ]
    rows += _transformer(depth)
    released = f"{part}.output_upscaling"
    for n, k in ((1, 0), (2, 3)):
        kernel, bias = _affine(
            f"{part}/upscale_conv{n}",
            f"{released}.{k}",
            f"{part}.upscale_conv{n}",
            "transposed",
            2,
        )
        rows += [kernel, dataclasses.replace(bias, own=f"params/{part}/upscale_bias{n}")]
    rows += _affine(
        f"{part}/upscale_norm", f"{released}.1", f"{part}.upscale_layer_norm", scale=True
    )
    for k in range(num_masks):
        rows += _head(f"hyper_mlp_{k}", f"output_hypernetworks_mlps.{k}", 3)
    return rows + _head("iou_head", "iou_prediction_head", iou_head_depth)


class Counts(NamedTuple):
    """What decides which names a model has."""

    encoder_depth: int
    decoder_depth: int
    num_masks: int
    iou_head_depth: int
    patch_size: int


@functools.lru_cache(maxsize=32)
def rows(counts: Counts) -> tuple[Row, ...]:
    """Every array of a model but its text head, which has no name anywhere else."""
    return (
        *_image_encoder(counts.encoder_depth, counts.patch_size),
        *_prompt_encoder(),
        *_mask_decoder(counts.decoder_depth, counts.num_masks, counts.iou_head_depth),
    )


_BLOCKS = {
    "own": (
        r"params/image_encoder/block_(\d+)/",
        r"params/mask_decoder/transformer/layer_(\d+)/",
        r"params/mask_decoder/hyper_mlp_(\d+)/",
        r"params/mask_decoder/iou_head/layer_(\d+)/",
    ),
    "released": (
        r"image_encoder\.blocks\.(\d+)\.",
        r"mask_decoder\.transformer\.layers\.(\d+)\.",
        r"mask_decoder\.output_hypernetworks_mlps\.(\d+)\.",
        r"mask_decoder\.iou_prediction_head\.layers\.(\d+)\.",
    ),
    "hf": (
        r"vision_encoder\.layers\.(\d+)\.",
        r"mask_decoder\.transformer\.layers\.(\d+)\.",
        r"mask_decoder\.output_hypernetworks_mlps\.(\d+)\.",
        r"mask_decoder\.iou_prediction_head\.(?:layers\.)?(\d+|proj_in|proj_out)\.",
    ),
}


def count(names: Iterable[str], naming: str, patch_size: int = 1) -> Counts:
    """How many of each repeated part there are: the distinct indices in a naming's names."""
    names = list(names)
    found = [
        {m[1] for m in map(re.compile(pattern).match, names) if m} for pattern in _BLOCKS[naming]
    ]
    return Counts(*map(len, found), patch_size)


def counts_of(config: SamConfig) -> Counts:
    """What decides the names of this model."""
    return Counts(
        config.encoder_depth,
        config.decoder_depth,
        config.num_masks,
        config.iou_head_depth,
        config.patch_size,
    )


def unpack(flat: Mapping[str, np.ndarray], counts: Counts, naming: str) -> dict[str, np.ndarray]:
    """Own flat names -> the naming "released" | "hf"; views, no copies."""
    tensors = {}
    for row in rows(counts):
        names = row.released if naming == "released" else row.hf
        tensors.update(zip(names, row.unpack(flat[row.own]), strict=True))
    if naming == "hf":
        tensors[HF_TWIN] = tensors[HF_GAUSSIAN]
    return tensors


def pack(tensors: Mapping[str, np.ndarray], counts: Counts, naming: str) -> dict[str, np.ndarray]:
    """The inverse of `unpack`; tensors of other names are left out."""
    flat = {}
    for row in rows(counts):
        names = row.released if naming == "released" else row.hf
        flat[row.own] = row.pack([tensors[name] for name in names])
    return flat


def one_gaussian(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Hugging Face's tensors with the shared matrix under its first name alone.

    Raises:
      CheckpointError: it is there twice, and differs.
    """
    tensors = dict(tensors)
    twin = tensors.pop(HF_TWIN, None)
    if twin is not None and not np.array_equal(twin, tensors.setdefault(HF_GAUSSIAN, twin)):
        raise CheckpointError(
            f"{HF_GAUSSIAN} and {HF_TWIN} are the same matrix in every SAM, but differ here"
        )
    return tensors


def released_names(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Hugging Face's names -> released ones, the arrays as they are; unknown names stay."""
    tensors = one_gaussian(tensors)
    renamed = {
        hf: released
        for row in rows(count(tensors, "hf"))
        for hf, released in zip(row.hf, row.released, strict=True)
    }
    return {renamed.get(name, name): array for name, array in tensors.items()}
