"""Files of a CLIP, or of its text tower alone: Hugging Face's folder and this project's own file.

Hugging Face's folder holds config.json, the weights and tokenizer.json; `transformers.CLIPModel`
opens what is written here. This project's own .safetensors holds flat Flax names and in its
metadata, under "sam_jax_clip", JSON with the format's version, the config and whether it is the
text tower alone, and under "tokenizer.json" that file's text. Reading is strict either way.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from sam_jax.checkpoint.clip_names import (
    config_from_huggingface,
    config_to_huggingface,
    from_huggingface,
    from_own,
    own_shapes,
    sane,
    to_huggingface,
)
from sam_jax.checkpoint.files import CLIP_METADATA as METADATA
from sam_jax.checkpoint.files import (
    HF_WEIGHTS,
    TEXT_TOWER,
    Bundle,
    hf_weights,
    read_weights,
)
from sam_jax.checkpoint.names import flatten
from sam_jax.checkpoint.stored import as_stored
from sam_jax.checkpoint.strict import CheckpointError, check
from sam_jax.models.clip import ClipConfig
from sam_jax.storage import replacing

__all__ = [
    "Clip",
    "config_from_huggingface",
    "config_to_huggingface",
    "from_huggingface",
    "from_metadata",
    "load_clip",
    "metadata",
    "save_clip",
    "to_huggingface",
]

FORMAT_VERSION = 1
TOKENIZER = "tokenizer.json"


class Clip(NamedTuple):
    """A CLIP, or its text tower alone, and the tokenizer that goes with it."""

    config: ClipConfig
    params: dict
    """{"params": {"image", "text", "logit_scale"}}, or {"params": {"text"}}; float32."""
    tokenizer_json: str
    """The text of its tokenizer.json; "" where it came without one, and can't read."""

    @property
    def text_tower_only(self) -> bool:
        """Whether the image tower is not there."""
        return "image" not in self.params["params"]

    def text_tower(self) -> Clip:
        """The text tower alone."""
        return self._replace(params={"params": {"text": self.params["params"]["text"]}})

    def bundle(self) -> Bundle:
        """The text tower as it goes into the file of a model that was trained beside it."""
        flat = flatten(self.text_tower().params)
        arrays = {name: np.asarray(value) for name, value in flat.items()}
        return Bundle(arrays, metadata(self.config, self.tokenizer_json, True))

    @staticmethod
    def from_bundle(bundle: Bundle, what: str) -> Clip:
        """The inverse of `bundle`; `what` names the file.

        Raises:
          CheckpointError: it is damaged, or its arrays are not those of its config.
        """
        try:
            config, tokenizer_json, _ = from_metadata(bundle.metadata)
        except CheckpointError as error:
            raise CheckpointError(f"{what}: its text tower: {error.summary}") from error
        params = from_own(bundle.tensors, config, f"{what}: its text tower", True)
        return Clip(config, params, tokenizer_json)


def metadata(
    config: ClipConfig, tokenizer_json: str, text_tower_only: bool = False
) -> dict[str, str]:
    """What goes with the arrays in a .safetensors file's metadata; see `from_metadata`."""
    document = {
        "format_version": FORMAT_VERSION,
        "text_tower_only": text_tower_only,
        "config": dataclasses.asdict(config),
    }
    return {METADATA: json.dumps(document), TOKENIZER: tokenizer_json}


def from_metadata(found: Mapping[str, str]) -> tuple[ClipConfig, str, bool]:
    """The inverse of `metadata`: config, tokenizer_json, text_tower_only.

    Raises:
      CheckpointError: it is damaged, or was written by a newer version.
    """
    try:
        document = json.loads(found[METADATA])
        version, fields = document["format_version"], document["config"]
        if version != FORMAT_VERSION:
            raise CheckpointError(
                f"format_version: this sam_jax reads {FORMAT_VERSION}, the file has {version!r}; "
                "install a newer sam_jax"
            )
        config, only = sane(fields), bool(document["text_tower_only"])
    except CheckpointError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"its config is damaged: {error}") from error
    return config, _json_text(found.get(TOKENIZER), "its tokenizer.json"), only


def save_clip(
    path: str | os.PathLike,
    config: ClipConfig,
    params: Mapping,
    tokenizer_json: str,
    *,
    text_tower_only: bool = False,
    half: bool = False,
) -> None:
    """Writes a CLIP; loading the result gives the same bits.

    Args:
      path: a .safetensors file in this project's own form, or else a new or empty folder in
        Hugging Face's. A file is replaced once the new one is whole.
      config: of the model.
      params: {"params"} of the model; with `text_tower_only` of its text tower, at least.
      tokenizer_json: the text of its tokenizer.json, or "".
      text_tower_only: keep the text tower alone; .safetensors only.
      half: store float16, half the size, and not the same bits; .safetensors only.

    Raises:
      CheckpointError: the params are not those of the config, or the tokenizer is no JSON.
      ValueError: the path can't be written, a number is beyond float16, or an option does not go
        with a folder.
    """
    path = Path(path)
    _json_text(tokenizer_json, "tokenizer_json")
    if text_tower_only:
        params = {"params": {"text": params.get("params", {}).get("text", {})}}
    if path.suffix.lower() == ".safetensors":
        flat = {name: np.asarray(value) for name, value in flatten(params).items()}
        check(own_shapes(config, text_tower_only), flat, "params")
        stored = as_stored(flat, half)
        with replacing(path) as made:
            save_file(stored, made, metadata(config, tokenizer_json, text_tower_only))
        return
    for name, on in (("text_tower_only", text_tower_only), ("half", half)):
        if on:
            raise ValueError(
                f"{name}: Hugging Face's folder has no such form; expected a path that ends in "
                f".safetensors, got {path}"
            )
    tensors = as_stored(to_huggingface(params, config))
    with replacing(path) as made:
        made.mkdir()
        save_file(tensors, made / "model.safetensors", {"format": "pt"})
        document = json.dumps(config_to_huggingface(config), indent=2)
        (made / "config.json").write_text(document + "\n")
        if tokenizer_json:
            (made / TOKENIZER).write_text(tokenizer_json, encoding="utf-8")


def load_clip(path: str | os.PathLike, *, text_tower_only: bool = False) -> Clip:
    """Reads a CLIP.

    Args:
      path: a file of `save_clip`, or, for its text tower, of a model that reads; a folder of
        Hugging Face's CLIPModel with config.json, tokenizer.json (without which no phrase can be
        read) and model.safetensors (or several with their index, or pytorch_model.bin, of which no
        code is run); or one such file of weights, in a folder with the other two.
      text_tower_only: take the text tower alone. A file that holds no more needs it.

    Returns:
      The config, float32 `jax.Array`s on the default device, and the tokenizer.json's text.

    Raises:
      CheckpointError: (a ValueError) a file is damaged or of another kind of model: every missing,
        unused and misshapen tensor is named.
      ValueError: nothing is there, or config.json is missing.
    """
    path = Path(path)
    try:
        weights = hf_weights(path) if path.is_dir() else path
        if weights is None:
            raise ValueError(
                f"path: the folder {path} is no CLIP: expected one of {', '.join(HF_WEIGHTS)} in it"
            )
        weights.stat()  # its error says which file there isn't
        tensors, found = read_weights(weights)
        before = f"{TEXT_TOWER}/"
        tower = {k.removeprefix(before): t for k, t in tensors.items() if k.startswith(before)}
        if tower and text_tower_only:  # of a model that was trained beside it
            clip = Clip.from_bundle(Bundle(tower, found), str(weights))
        elif METADATA in found:
            clip = _own(weights, tensors, found, text_tower_only)
        else:
            clip = _huggingface(weights, tensors, text_tower_only)
    except FileNotFoundError as error:
        missing = error.filename or path
        raise ValueError(f"path: there is no file or folder {missing}") from error
    except OSError as error:
        raise ValueError(f"path: can't read {path}: {error.strerror or error}") from error
    # Copied: what is mapped from a file must not change with the file.
    return clip._replace(params=jax.tree.map(lambda x: jnp.array(x, copy=True), clip.params))


def _own(path: Path, tensors: Mapping, found: Mapping, text_tower_only: bool) -> Clip:
    try:
        config, tokenizer_json, only = from_metadata(found)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error.summary}") from error
    if only and not text_tower_only:
        raise CheckpointError(
            f"{path}: holds the text tower of a CLIP alone, expected both towers; pass "
            "text_tower_only=True, or give a file of the whole model"
        )
    params = from_own(tensors, config, str(path), text_tower_only)
    return Clip(config, params, tokenizer_json)


def _huggingface(path: Path, tensors: Mapping, text_tower_only: bool) -> Clip:
    folder = path.parent
    document, tokenizer = folder / "config.json", folder / TOKENIZER
    if not document.is_file():
        raise ValueError(
            f"path: the folder {folder} has no config.json, which says what {path.name} is; put "
            "the model's own there"
        )
    try:
        config = config_from_huggingface(json.loads(document.read_text(encoding="utf-8")))
    except CheckpointError as error:
        raise CheckpointError(f"{document}: {error.summary}") from error
    except ValueError as error:
        raise CheckpointError(f"{document}: is damaged ({error})") from error
    params = from_huggingface(tensors, config, str(path), text_tower_only)
    if not tokenizer.is_file():
        return Clip(config, params, "")
    try:
        text = tokenizer.read_text(encoding="utf-8")
    except ValueError as error:
        raise CheckpointError(f"{tokenizer}: is damaged ({error})") from error
    return Clip(config, params, _json_text(text, str(tokenizer)))


def _json_text(text: str | None, what: str) -> str:
    """The text, if it can be a tokenizer.json's, or "" for none."""
    if text == "":
        return text
    try:
        if isinstance(json.loads(text), dict):
            return text
        problem = "it is no object"
    except (ValueError, TypeError) as error:
        problem = str(error)
    raise CheckpointError(f"{what}: expected the text of a tokenizer.json: {problem}")
