"""A model as `jax.export` programs, in a folder that needs jax and numpy and not this package."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.util
import json
import shutil
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from tqdm import tqdm

import sam_jax
from sam_jax.checkpoint.names import flatten, unflatten
from sam_jax.inference.compiled import DECODER_ON_CPU, POINT_SLOTS, PROMPT_SLOTS, PROMPT_SLOTS_CPU
from sam_jax.inference.export.signatures import Signature, signatures
from sam_jax.models.config import SamConfig
from sam_jax.models.platforms import portable
from sam_jax.models.prompt_encoder import DRAWN_LIMIT, DRAWN_SLOPE
from sam_jax.models.quantise import quantise_encoder
from sam_jax.models.sam import PIXEL_MEAN, PIXEL_STD

PLATFORMS = ("cpu", "cuda", "tpu")
SLOTS = POINT_SLOTS[:4]
"""Slots of a prompt that there are decoders for: up to 42 points."""
FORMAT = 1
"""Of manifest.json."""

Weights = Literal["beside", "inside", "none"]
Precision = Literal["float32", "float16", "int8"]
WEIGHTS_FILE = "weights.npz"
MODULE, GUIDE, MANIFEST = "sam.py", "README.md", "manifest.json"


def write(
    folder: Path,
    sam: Any,
    *,
    image_size: int | None = None,
    weights: Weights = "beside",
    precision: Precision = "float32",
) -> dict[str, Any]:
    """Writes programs, weights, a manifest, the module that runs them and a README.

    Args:
      folder: to be filled; it must exist.
      sam: what `sam_jax.load` gives.
      image_size: side of the frame in pixels; None: the one that the model was trained for.
      weights: in a file beside the programs, which take them as their first argument; in the
        programs themselves; or in none of them, for a folder whose weights come another way.
      precision: how they are stored: float16 is widened when it is loaded; int8 are the encoder's
        kernels, which the programs work with (`sam_jax.models.quantise`).

    Returns:
      The manifest.

    Raises:
      ValueError: weights inside in float16, or the package `flatbuffers` is missing.
    """
    if importlib.util.find_spec("flatbuffers") is None:
        raise ValueError("export: needs the package flatbuffers: pip install 'sam_jax[export]'")
    if weights == "inside" and precision == "float16":
        raise ValueError("precision: float16 is how a file is stored; with weights inside, float32")
    side = sam.config.image_size if image_size is None else image_size
    variables = quantise_encoder(sam.params) if precision == "int8" else sam.params
    flat = {name: np.asarray(x) for name, x in flatten(variables).items()}
    programs = {}
    chosen = _programs(sam.config, flat, side).items()
    for name, one in tqdm(chosen, "exporting", leave=False, disable=None):
        data = _exported(one, flat, weights == "inside").serialize()
        programs[name] = _written(folder / f"{name}.jaxexport", data)
        programs[name] |= {"inputs": one.inputs, "outputs": one.outputs}
    stored: dict[str, Any] = {"file": None, "where": weights, "precision": precision}
    if weights == "beside":
        kept = {k: _stored(x, precision) for k, x in flat.items()}
        np.savez(folder / WEIGHTS_FILE, **kept)
        stored |= hashed(folder / WEIGHTS_FILE)
    if weights != "inside":
        stored["arrays"] = {k: [str(x.dtype), list(x.shape)] for k, x in flat.items()}
    manifest = described(sam, side) | {"programs": programs, "weights": stored}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    for name in (MODULE, GUIDE):
        source = resources.files("sam_jax.inference.export") / "static" / name
        (folder / name).write_bytes(source.read_bytes())
    _vendor(folder / "vendor")
    return manifest


def _programs(config: SamConfig, flat: dict, side: int) -> dict[str, Signature]:
    """Every program by name."""
    variables, found = unflatten(flat), {}
    for slots in SLOTS:
        for name, one in signatures(config, variables, side, slots).items():
            name = name if name == "encoder" else f"{name}-{slots}"
            found[name] = one
            if "mask" in name:  # traced for one prompt its products are put, and rounded, otherwise
                found[f"{name}-single"] = one.with_sizes(n=1)
    return found


def _exported(signature: Signature, flat: dict, inside: bool) -> export.Exported:
    """The program for all platforms and any number of images and prompts."""
    scope = export.SymbolicScope()
    arguments = [
        jax.ShapeDtypeStruct(
            export.symbolic_shape(",".join(map(str, one["shape"])), scope=scope), one["dtype"]
        )
        for one in signature.inputs
    ]

    def program(variables, *arguments):
        return signature.function(unflatten(variables), *arguments)

    if inside:
        program = functools.partial(program, {k: jnp.asarray(x) for k, x in flat.items()})
    else:
        shapes = {k: jax.ShapeDtypeStruct(x.shape, x.dtype) for k, x in flat.items()}
        arguments = [shapes, *arguments]
    with portable():
        return export.export(jax.jit(program), platforms=PLATFORMS)(*arguments)


def described(sam: Any, side: int) -> dict[str, Any]:
    """What holds for all programs."""
    config = sam.config
    return {
        "format": FORMAT,
        "model": sam.name,
        "written_by": {"sam_jax": sam_jax.__version__, "jax": jax.__version__},
        "platforms": list(PLATFORMS),
        "image_size": side,
        "patch_size": config.patch_size,
        "preprocess": {
            "about": "scale the photo so that its longer side is image_size, each side rounded "
            "half up, by Pillow's bilinear filter; put it at the top left of a frame of zeros",
            "mean": PIXEL_MEAN,
            "std": PIXEL_STD,
            "normalised": "by the encoder, padding becomes zero after it",
        },
        "labels": {
            "1": "a point on the object",
            "0": "a point beside it",
            "2": "a box's top left corner",
            "3": "its bottom right corner, in the next slot",
            "-1": "not a point: one slot, after the points of a prompt without a box",
            "-2": "an empty slot",
        },
        "slots": list(SLOTS),
        "decoder_on_cpu": DECODER_ON_CPU,
        "prompts_at_once": {"cpu": list(PROMPT_SLOTS_CPU), "other": list(PROMPT_SLOTS)},
        "masks": "4: the one for prompts that leave no doubt, then whole, part and subpart of an "
        "ambiguous one; logits above 0 are the mask, once enlarged to the frame and cut",
        "draw_boxes": [DRAWN_SLOPE, DRAWN_LIMIT] if config.draw_boxes else None,
        "config": dataclasses.asdict(config),
    }


def _stored(array: np.ndarray, precision: Precision) -> np.ndarray:
    narrow = precision == "float16" and array.dtype == np.float32
    return array.astype(np.float16) if narrow else array


def _written(path: Path, data: bytes) -> dict[str, Any]:
    path.write_bytes(data)
    return hashed(path)


def hashed(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": digest}


def _vendor(folder: Path) -> None:
    """flatbuffers, which jax reads exported programs with and does not install."""
    found = importlib.util.find_spec("flatbuffers")
    source = Path(found.submodule_search_locations[0])
    shutil.copytree(source, folder / "flatbuffers", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "README").write_text(
        "flatbuffers: the Python package of that name, unchanged, by Google under the Apache "
        "licence 2.0 (https://github.com/google/flatbuffers). jax reads programs with it.\n"
    )
