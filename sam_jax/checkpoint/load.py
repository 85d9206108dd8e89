"""A model by its name or its file, ready to use; and back into a file."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp

from sam_jax.checkpoint import files, huggingface, names
from sam_jax.checkpoint.clip import Clip
from sam_jax.checkpoint.fetch import RELEASED, released_file
from sam_jax.checkpoint.pth import write_pth
from sam_jax.checkpoint.strict import CheckpointError
from sam_jax.models.config import CONFIGS, SamConfig
from sam_jax.models.quantise import is_quantised, quantise_encoder
from sam_jax.models.sam import SamModel
from sam_jax.storage import cache_folder

ASSETS = Path(__file__).parent.parent / "assets"
BUNDLED = ("tiny",)
NAMES = (*BUNDLED, *RELEASED)

Format = Literal["pth", "safetensors", "hf", "orbax"]
SUFFIXES: dict[str, Format] = {".pth": "pth", ".pt": "pth", ".safetensors": "safetensors"}


@dataclasses.dataclass(frozen=True)
class Sam:
    """A model and its weights.

    Attributes:
      model: the Flax module; `model.apply(params, ..., method="encode" | "decode")`.
      params: the variables {"params", "buffers"}, float32 `jax.Array`s (int8: `load`).
      config: the sizes, and what is computed in.
      name: the model's name, or that of the file it came from.
      text: the text tower that it was trained beside, for phrases as prompts; None where its file
        has none. `dataclasses.replace(sam, text=load_clip(...))` gives it another.
    """

    model: SamModel
    params: Mapping
    config: SamConfig
    name: str
    text: Clip | None = None

    def __post_init__(self) -> None:
        if self.text is not None and self.text.config.embed_dim != self.config.text_width:
            raise CheckpointError(
                f"text: expected a text tower of width {self.config.text_width} (the model's "
                f"text_width), got one of {self.text.config.embed_dim}"
            )


def load(
    name_or_path: str | os.PathLike = "tiny",
    *,
    dtype: Literal["float32", "bfloat16"] | None = None,
    encoder_weights: Literal["float32", "int8"] = "float32",
    config: SamConfig | None = None,
) -> Sam:
    """Loads a model.

    Args:
      name_or_path: "tiny", which comes with the package; "mobile_sam", "vit_b", "vit_l" or "vit_h",
        whose released file is fetched once into the cache folder ($SAM_JAX_CACHE or
        ~/.cache/sam_jax) and checked; or the path of a .pth, a .safetensors, an Orbax or a Hugging
        Face folder.
      dtype: what matrix products are computed in; by default what the file says, or float32.
      encoder_weights: "int8" rounds the encoder's to a quarter or third of the memory; such a model
        can neither be trained nor saved.
      config: what the file must hold, where it isn't to be asked; for paths only.

    Returns:
      The model, its variables on the default device.

    Raises:
      CheckpointError: (a ValueError) the file can't be fetched, is damaged, or no such model.
      ValueError: there is no such name or path, or an option is none of those.
    """
    if isinstance(name_or_path, str) and name_or_path in NAMES:
        if config is not None:
            raise ValueError(f"config: the model {name_or_path!r} has its own; leave it out")
        contents, name = _named(name_or_path), name_or_path
    else:
        path = Path(name_or_path)
        if not path.exists():
            raise ValueError(
                f"name_or_path: expected one of {', '.join(NAMES)} or the path of a checkpoint, "
                f"got {str(name_or_path)!r}, where nothing is"
            )
        contents = files.read(path, config)
        name = contents.name or path.stem
    config = contents.config
    if dtype is not None:
        if dtype not in ("float32", "bfloat16"):
            raise ValueError(f"dtype: expected 'float32' or 'bfloat16', got {dtype!r}")
        config = config.replace(dtype=dtype)
    if encoder_weights not in ("float32", "int8"):
        raise ValueError(f"encoder_weights: expected 'float32' or 'int8', got {encoder_weights!r}")
    # Copied: what is mapped from a file must neither be donated nor change with the file.
    params = jax.tree.map(lambda x: jnp.array(x, copy=True), contents.variables)
    if encoder_weights == "int8":
        params = quantise_encoder(params)
    text = contents.text_tower and Clip.from_bundle(contents.text_tower, str(name))
    if text is not None:
        text = text._replace(params=jax.tree.map(lambda x: jnp.array(x, copy=True), text.params))
    return Sam(SamModel(config), params, config, name, text)


def _named(name: str) -> files.Contents:
    if name in BUNDLED:
        path = ASSETS / f"{name}.safetensors"
        if not path.exists():
            raise CheckpointError(
                f"{name}: this copy of sam_jax lacks its bundled model, {path}; install it anew, "
                f"or load one of {', '.join(RELEASED)}"
            )
        return files.read(path)
    converted = cache_folder() / Path(RELEASED[name].file).with_suffix(".safetensors")
    if not converted.exists():
        fetched_now = not (cache_folder() / RELEASED[name].file).exists()
        original = released_file(name)
        contents = files.read(original, CONFIGS[name])
        files.write_safetensors(converted, contents.variables, contents.config, name)
        if fetched_now:  # the same bits are in the converted file; what a user put there stays
            original.unlink(missing_ok=True)
    return files.read(converted, CONFIGS[name])


def save(
    sam: Sam,
    path: str | os.PathLike,
    format: Format | None = None,
    *,
    half: bool = False,
    int8: bool = False,
) -> None:
    """Writes a model; loading the result gives the same bits.

    Args:
      sam: the model.
      path: of the file or folder. A file is replaced once the new one is whole; a folder must be
        empty or new.
      format: "pth" (released PyTorch names, or MobileSAM's), "safetensors" (this project's own),
        "orbax" (a folder) or "hf" (a folder for Hugging Face's `SamModel`). By default by the
        suffix, a folder being Orbax.
      half: for "safetensors": store float16, half the size, and not the same bits.
      int8: likewise, kernels of 10,000 numbers and more in eight bits: a quarter of the size.

    Raises:
      CheckpointError: the format can't hold this model.
      ValueError: an unknown format, or a path that can't be written.
    """
    format = format or format_of(path)
    if is_quantised(sam.params):
        raise CheckpointError(
            "sam: its encoder is in int8, which no format holds; save the model as it was loaded "
            "without encoder_weights='int8'"
        )
    if half and int8:
        raise ValueError(
            "int8: expected without half, got both; what is in no eight bits is float16"
        )
    for option, on in (("half", half), ("int8", int8)):
        if on and format != "safetensors":
            raise ValueError(f"{option}: only for the format 'safetensors', got format {format!r}")
    tower = sam.text and sam.text.bundle()
    if format == "pth":
        write_pth(path, names.to_torch(sam.params))
    elif format == "safetensors":
        files.write_safetensors(path, sam.params, sam.config, sam.name, half, tower, int8)
    elif format == "hf":
        huggingface.write_hf(path, sam.params, sam.config)
    elif format == "orbax":
        files.write_orbax(path, sam.params, sam.config, sam.name, tower)
    else:
        raise ValueError(f"format: expected 'pth', 'safetensors', 'hf' or 'orbax', got {format!r}")


def format_of(path: str | os.PathLike) -> Format:
    """The format that a path's suffix stands for: "pth", "safetensors", or else "orbax".

    Raises:
      ValueError: the suffix is one of another kind of file.
    """
    suffix = Path(path).suffix.lower()
    if suffix in SUFFIXES:
        return SUFFIXES[suffix]
    if suffix in (".bin", ".ckpt", ".onnx", ".npz", ".json", ".zip", ".h5", ".msgpack"):
        raise ValueError(
            f"path: expected a suffix of {', '.join(SUFFIXES)}, or a folder's name, got {path}"
        )
    return "orbax"
