"""Safetensors files and Orbax folders of this project, and reading of every format.

This project's own file holds flat Flax names and, under "sam_jax" in its metadata, JSON with the
format's version, the config and the model's name. Files are written beside their place and
renamed; reading checks names and shapes strictly.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from sam_jax.checkpoint import names
from sam_jax.checkpoint.huggingface import decoder_heads
from sam_jax.checkpoint.infer import describe, infer_config, infer_own, same_shapes, sane
from sam_jax.checkpoint.mobile_sam import from_mobile_sam, is_mobile_sam
from sam_jax.checkpoint.pth import read_pth
from sam_jax.checkpoint.stored import as_stored, widened
from sam_jax.checkpoint.strict import CheckpointError, check
from sam_jax.models.config import MOBILE_SAM, SamConfig
from sam_jax.storage import replacing

FORMAT_VERSION = 1
METADATA = "sam_jax"
ORBAX_JSON = "sam_jax.json"
ORBAX_TREE = "variables"
CLIP_METADATA = "sam_jax_clip"
"""Where a CLIP's own file has its JSON."""
TEXT_TOWER = "text_tower"
"""Before the names of a text tower's arrays; in Orbax folders the name of its own file."""
HF_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")

DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


class Bundle(NamedTuple):
    """A text tower as it lies in a model's file: see `sam_jax.checkpoint.clip.Clip.bundle`."""

    tensors: dict[str, np.ndarray]
    metadata: dict[str, str]


class Contents(NamedTuple):
    """What a file or folder holds."""

    variables: dict
    """{"params", "buffers"} of float32 NumPy arrays, perhaps views of the mapped file."""
    config: SamConfig
    name: str | None
    """The model's name, where the file gives it."""
    text_tower: Bundle | None = None
    """The text tower that came with it."""


def config_to_json(config: SamConfig, name: str | None = None) -> str:
    """A config and a name as the JSON that goes with this project's own formats."""
    fields = dataclasses.asdict(config)
    return json.dumps({"format_version": FORMAT_VERSION, "name": name, "config": fields})


def config_from_json(text: str) -> tuple[SamConfig, str | None]:
    """The inverse of `config_to_json`.

    Raises:
      CheckpointError: it is no such JSON, or was written by a newer version.
    """
    try:
        document = json.loads(text)
        version, name, fields = (document[k] for k in ("format_version", "name", "config"))
        if version != FORMAT_VERSION:
            raise CheckpointError(
                f"format_version: this sam_jax reads {FORMAT_VERSION}, the file has {version!r}; "
                "install a newer sam_jax"
            )
        fields["global_blocks"] = tuple(fields["global_blocks"])
        return sane(fields), name if isinstance(name, str) else None
    except CheckpointError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, ZeroDivisionError) as error:
        raise CheckpointError(f"its config is damaged: {error}") from error


def read_safetensors(path: str | os.PathLike) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Tensors as read-only views of the mapped file, and the metadata.

    Raises:
      CheckpointError: the file is damaged, or has numbers that NumPy lacks.
      FileNotFoundError: there is no such file.
    """
    path = Path(path)
    path.stat()  # its error, unlike the library's, says which file there isn't
    try:
        with safe_open(path, framework="numpy") as file:  # checks the header against the file
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise CheckpointError(f"{path}: is damaged or no safetensors file ({error})") from error
    whole = np.memmap(path, np.uint8, "r")
    start = 8 + int.from_bytes(whole[:8].tobytes(), "little")
    header = json.loads(whole[8:start].tobytes())
    tensors = {}
    for name, spec in header.items():
        if name == "__metadata__":
            continue
        if spec["dtype"] not in DTYPES:
            raise CheckpointError(f"{path}: {name} has numbers of kind {spec['dtype']}, unknown")
        begin, end = spec["data_offsets"]
        data = whole[start + begin : start + end]
        tensors[name] = data.view(DTYPES[spec["dtype"]]).reshape(spec["shape"])
    return tensors, metadata


def write_safetensors(
    path: str | os.PathLike,
    variables: Mapping,
    config: SamConfig,
    name: str | None = None,
    half: bool = False,
    text_tower: Bundle | None = None,
    int8: bool = False,
) -> None:
    """Writes this project's own file.

    Args:
      path: of the file.
      variables: {"params", "buffers"} of the model.
      config: of the model.
      name: of the model.
      half: store float16 numbers, read back as float32; for a file of half the size.
      text_tower: goes into the file too.
      int8: as `half`, but for large kernels, which are stored in eight bits with a float32 scale a
        column; read back as float32.

    Raises:
      CheckpointError: the variables are not those of the config.
      ValueError: a number is beyond float16.
    """
    flat = {key: np.asarray(value) for key, value in names.flatten(variables).items()}
    check(names.own_shapes(config), flat, "variables")
    metadata = {METADATA: config_to_json(config, name)}
    stored = as_stored(flat, half, int8)
    if text_tower is not None:  # never in eight bits
        tower = as_stored(text_tower.tensors, half or int8)
        stored |= {f"{TEXT_TOWER}/{key}": value for key, value in tower.items()}
        metadata |= text_tower.metadata
    with replacing(path) as made:
        save_file(stored, made, metadata)


def write_orbax(
    path: str | os.PathLike,
    variables: Mapping,
    config: SamConfig,
    name: str | None = None,
    text_tower: Bundle | None = None,
) -> None:
    """Writes an Orbax folder: `variables` by Orbax's StandardCheckpointer, all else beside it."""
    import orbax.checkpoint as ocp

    flat = {key: np.asarray(value, np.float32) for key, value in names.flatten(variables).items()}
    check(names.own_shapes(config), flat, "variables")
    with replacing(path) as made:
        made.mkdir()
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(made.resolve() / ORBAX_TREE, names.unflatten(flat))
        (made / ORBAX_JSON).write_text(config_to_json(config, name) + "\n")
        if text_tower is not None:
            beside = made / f"{TEXT_TOWER}.safetensors"
            save_file(as_stored(text_tower.tensors), beside, text_tower.metadata)


def _read_orbax(path: Path, expected: SamConfig | None) -> Contents:
    import orbax.checkpoint as ocp

    try:
        own, name = config_from_json((path / ORBAX_JSON).read_text())
        config = _agree(own, expected)
        folder = path.resolve() / ORBAX_TREE
        with ocp.StandardCheckpointer() as checkpointer:
            stored = checkpointer.metadata(folder)
            tree = getattr(stored, "item_metadata", stored)
            tree = names.flatten(getattr(tree, "tree", tree) or {})
            tree = {
                key: np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape)
                for key, leaf in tree.items()
            }
            if not tree:
                raise ValueError("it lists no arrays")
            # Orbax itself would cut or fill an array of another shape.
            names.check_own(tree, config, str(path))
            target = {key: np.empty(leaf.shape, np.float32) for key, leaf in tree.items()}
            variables = checkpointer.restore(folder, names.unflatten(target))
        beside = path / f"{TEXT_TOWER}.safetensors"
        text_tower = Bundle(*read_safetensors(beside)) if beside.is_file() else None
    except CheckpointError as error:
        raise _within(path, error) from error
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        first = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise CheckpointError(f"{path}: is damaged or no Orbax folder ({first})") from error
    return Contents(variables, config, name, text_tower)


def read(path: str | os.PathLike, config: SamConfig | None = None) -> Contents:
    """Reads whatever checkpoint is at `path`: .pth, .safetensors, Orbax or Hugging Face folder.

    Args:
      path: of the file or folder. Tensors may have this project's, the released or Hugging Face's
        names, in either kind of file.
      config: what the model must be; by default the file is asked.

    Raises:
      CheckpointError: the file is damaged, hostile, or no such model.
      ValueError: nothing is there, or no checkpoint.
    """
    path = Path(path)
    try:
        if path.is_dir():
            orbax = (path / ORBAX_JSON).is_file()
            return _read_orbax(path, config) if orbax else _read_folder(path, config)
        if not _is_safetensors(path):
            return _from_tensors(path, read_pth(path), {}, config)
        return _from_tensors(path, *read_safetensors(path), config)
    except FileNotFoundError as error:
        missing = error.filename or path
        raise ValueError(f"path: there is no file or folder {missing}") from error
    except OSError as error:
        raise ValueError(f"path: can't read {path}: {error.strerror or error}") from error


def _is_safetensors(path: Path) -> bool:
    """By its first bytes: a length and JSON, or a zip; by its name where they are neither."""
    with open(path, "rb") as file:
        head = file.read(9)
    if head.startswith(b"PK"):
        return False
    return head[8:] == b"{" or path.suffix.lower() == ".safetensors"


def _read_folder(path: Path, expected: SamConfig | None) -> Contents:
    """Hugging Face's folder, or any other with a file of its name."""
    if hf_weights(path) is None:
        raise ValueError(
            f"path: the folder {path} is no checkpoint: it has neither {ORBAX_JSON} (Orbax) nor "
            f"model.safetensors (Hugging Face)"
        )
    tensors, metadata = read_weights(hf_weights(path))
    contents = _from_tensors(path, tensors, metadata, expected)
    if METADATA not in metadata and (path / "config.json").is_file():
        heads = decoder_heads(path / "config.json", contents.config)
        contents = contents._replace(config=contents.config.replace(decoder_heads=heads))
    return contents


def hf_weights(folder: Path) -> Path | None:
    """The file of a Hugging Face folder that has the weights or, of many files, their index."""
    return next((folder / name for name in HF_WEIGHTS if (folder / name).is_file()), None)


def read_weights(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Tensors and metadata of a .safetensors file, an index of several, or PyTorch's file.

    Raises:
      CheckpointError: a file is damaged or hostile.
      FileNotFoundError: a file is not there.
    """
    if path.suffix == ".json":
        tensors: dict[str, np.ndarray] = {}
        for shard in _shards(path):
            tensors.update(read_safetensors(path.parent / shard)[0])
        return tensors, {}
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    return read_pth(path), {}


def _shards(index: Path) -> list[str]:
    """The files of a model that is split over several, all in the index's own folder."""
    try:
        shards = set(json.loads(index.read_text())["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index}: is damaged ({error})") from error
    return sorted(Path(str(shard)).name for shard in shards)


def _from_tensors(
    path: Path,
    tensors: dict[str, np.ndarray],
    metadata: Mapping[str, str],
    expected: SamConfig | None,
) -> Contents:
    try:
        if any(key.startswith("params/") for key in tensors):
            stated, name = None, None
            if METADATA not in metadata and CLIP_METADATA in metadata:
                raise CheckpointError(
                    "is a CLIP, no Segment Anything model; `load_clip` reads it, and "
                    "`python -m train` takes it as --text.clip"
                )
            if METADATA in metadata:
                stated, name = config_from_json(metadata[METADATA])
            before = f"{TEXT_TOWER}/"
            tower = {k.removeprefix(before): t for k, t in tensors.items() if k.startswith(before)}
            text_tower = Bundle(tower, dict(metadata)) if tower else None
            tensors = widened({k: t for k, t in tensors.items() if not k.startswith(before)})
            config = _agree(stated or infer_own(tensors), expected)
            if stated is not None and same_shapes(stated, config):  # no shape tells of it
                config = config.replace(draw_boxes=stated.draw_boxes)
                if config.encoder == "tiny_vit":
                    config = config.replace(image_size=stated.image_size)
            variables = names.from_own(tensors, config, str(path))
            return Contents(variables, config, name, text_tower)
        if is_mobile_sam(tensors):
            config = _agree(MOBILE_SAM, expected)
            if not same_shapes(config, MOBILE_SAM):
                raise CheckpointError(f"expected {describe(config)}, got mobile_sam")
            return Contents(from_mobile_sam(tensors, str(path)), config, None)
        config = _agree(expected or infer_config(tensors), expected)
        if config.encoder != "vit":
            found = describe(infer_config(tensors))
            raise CheckpointError(f"expected {describe(config)}, got {found}")
        hf = any(key.startswith("vision_encoder.") for key in tensors)
        convert = names.from_hf if hf else names.from_torch
        return Contents(convert(tensors, config, str(path)), config, None)
    except CheckpointError as error:
        raise _within(path, error) from error


def _agree(stated: SamConfig, expected: SamConfig | None) -> SamConfig:
    """The config to read with: the expected one, unless the file says what it can't be."""
    if expected is None:
        return stated
    if same_shapes(stated, expected) and stated.decoder_heads != expected.decoder_heads:
        raise CheckpointError(
            f"expected a model with {expected.decoder_heads} decoder heads, got "
            f"{stated.decoder_heads}"
        )
    return expected


def _within(path: Path, error: CheckpointError) -> CheckpointError:
    """The error with the path in its sentence."""
    if str(path) in error.summary:
        return error
    return CheckpointError(f"{path}: {error.summary}", error.missing, error.unused, error.misshapen)
