"""Variables <-> flat tensors in each of the three namings of `table`, strictly."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from sam_jax.checkpoint.infer import TINY_VIT, describe, infer_config, looks_like
from sam_jax.checkpoint.strict import CheckpointError, Shape, check
from sam_jax.checkpoint.table import (
    HF_TWIN,
    count,
    counts_of,
    one_gaussian,
    pack,
    rows,
    unpack,
)
from sam_jax.models.config import SamConfig
from sam_jax.models.sam import init

__all__ = [
    "CheckpointError",
    "flatten",
    "from_hf",
    "from_own",
    "from_torch",
    "infer_config",
    "own_shapes",
    "shapes",
    "to_hf",
    "to_torch",
    "unflatten",
]


def flatten(variables: Mapping, prefix: str = "") -> dict[str, Any]:
    """Nested dicts -> one dict whose names are joined by "/"."""
    flat = {}
    for name, value in variables.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{name}/"))
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict:
    """The inverse of `flatten`."""
    nested: dict = {}
    for name, value in flat.items():
        *path, last = name.split("/")
        at = nested
        for part in path:
            at = at.setdefault(part, {})
        at[last] = value
    return nested


@functools.lru_cache(maxsize=32)
def own_shapes(config: SamConfig) -> Mapping[str, Shape]:
    """Flat own name -> shape, of every array of the model."""
    tree = jax.eval_shape(lambda key: init(config, key), jax.random.key(0))
    return {name: tuple(leaf.shape) for name, leaf in flatten(tree).items()}


def shapes(config: SamConfig, naming: str = "released") -> dict[str, Shape]:
    """Name -> shape, of every tensor of the model in the naming "own" | "released" | "hf".

    Raises:
      CheckpointError: the model has a text head or MobileSAM's encoder, and the naming is not this
        project's.
    """
    own = own_shapes(config)
    if naming == "own":
        return dict(own)
    _refuse(own)
    # Arrays of one repeated zero take no memory, whatever their shape.
    zeros = {name: np.broadcast_to(np.zeros((), np.float32), own[name]) for name in own}
    return {name: tuple(t.shape) for name, t in unpack(zeros, counts_of(config), naming).items()}


def _refuse(flat: Iterable[str]) -> None:
    """Raises where the released classes have nothing of the kind."""
    if TINY_VIT in flat:
        raise CheckpointError(
            "MobileSAM's encoder is another one than that of the released classes and of Hugging "
            "Face's: keep it as .safetensors, as .pth (for MobileSAM's class) or as an Orbax folder"
        )
    text = [name for name in flat if "/text_proj/" in name]
    if text:
        raise CheckpointError(
            "a model with a text head has no PyTorch or Hugging Face form, because no such model "
            "was released: keep it as .safetensors or as an Orbax folder",
            unused=text,
        )


def _to(variables: Mapping, naming: str) -> dict[str, np.ndarray]:
    flat = {name: np.asarray(value) for name, value in flatten(variables).items()}
    _refuse(flat)
    kernel = flat.get("params/image_encoder/patch_embed/kernel")
    if kernel is None:
        raise CheckpointError(
            "variables: expected {'params': ..., 'buffers': ...} of a SamModel, got names "
            f"{list(variables)}"
        )
    counts = count(flat, "own", math.isqrt(kernel.shape[0] // 3))
    known = {row.own for row in rows(counts)}
    check({name: flat[name].shape if name in flat else () for name in known}, flat, "variables")
    return unpack(flat, counts, naming)


def to_torch(variables: Mapping) -> dict[str, np.ndarray]:
    """{"params", "buffers"} -> released name -> array, bit for bit (views, no copies).

    With MobileSAM's encoder: as its own class names them, with batch norms that change nothing.

    Raises:
      CheckpointError: for a model with a text head, or variables that are no whole model.
    """
    if TINY_VIT in flatten(variables):
        from sam_jax.checkpoint.mobile_sam import to_mobile_sam

        return to_mobile_sam(variables)
    return to_released(variables)


def to_released(variables: Mapping) -> dict[str, np.ndarray]:
    """As `to_torch`, of models with SAM's own encoder."""
    return _to(variables, "released")


def to_hf(variables: Mapping) -> dict[str, np.ndarray]:
    """As `to_torch`, in the names of Hugging Face's `SamModel`.

    The matrix of the positional encoding goes under both of its names there.

    Raises:
      CheckpointError: as `to_torch`, and for models that the class can't be built as.
    """
    tensors = _to(variables, "hf")
    config = infer_config(tensors)
    for field, fits, why in (
        ("iou_head_depth", config.iou_head_depth >= 2, "at least 2"),
        ("attention_downsample", config.attention_downsample == 2, "2"),
        ("mask_channels", config.mask_channels % 4 == 0, "a multiple of 4"),
    ):
        if not fits:
            raise CheckpointError(
                f"{field}: Hugging Face's SamModel has {why}, this model has "
                f"{getattr(config, field)}; write .pth or .safetensors"
            )
    return tensors


def from_torch(tensors: Mapping[str, np.ndarray], config: SamConfig, what: str = "tensors") -> dict:
    """Released names -> variables {"params", "buffers"} of float32 NumPy arrays.

    Args:
      tensors: released name -> array of floating-point numbers.
      config: of the model that they are for; see `infer.infer_config` to ask the tensors.
      what: how errors name the tensors' origin.

    Raises:
      CheckpointError: naming every missing, unused and misshapen tensor.
    """
    if config.encoder == "tiny_vit":
        from sam_jax.checkpoint.mobile_sam import from_mobile_sam

        return from_mobile_sam(tensors, what)
    return from_released(tensors, config, what)


def from_released(
    tensors: Mapping[str, np.ndarray], config: SamConfig, what: str = "tensors"
) -> dict:
    """As `from_torch`, of models with SAM's own encoder."""
    return _from(tensors, config, "released", what)


def from_hf(tensors: Mapping[str, np.ndarray], config: SamConfig, what: str = "tensors") -> dict:
    """As `from_torch`, from Hugging Face's names; either name of the shared matrix will do."""
    return _from(one_gaussian(tensors), config, "hf", what)


def from_own(flat: Mapping[str, np.ndarray], config: SamConfig, what: str = "tensors") -> dict:
    """As `from_torch`, from this project's flat names."""
    return _from(flat, config, "own", what)


def _from(tensors: Mapping[str, np.ndarray], config: SamConfig, naming: str, what: str) -> dict:
    _check(tensors, config, naming, what)
    if naming == "own":
        flat = {name: tensors[name] for name in own_shapes(config)}
    else:
        flat = pack(tensors, counts_of(config), naming)
    return unflatten({name: np.ascontiguousarray(a, np.float32) for name, a in flat.items()})


def check_own(tensors: Mapping[str, np.ndarray], config: SamConfig, what: str) -> None:
    """Only the strict check of `from_own`: for arrays that are yet to be read."""
    _check(tensors, config, "own", what)


def _check(tensors: Mapping[str, np.ndarray], config: SamConfig, naming: str, what: str) -> None:
    expected = shapes(config, naming)
    expected.pop(HF_TWIN, None)
    check(expected, tensors, f"{what} as {describe(config)}", looks_like(tensors, naming, config))
