"""A model as ONNX files, each for one photo and one prompt."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from sam_jax.inference.export.programs import Precision
from sam_jax.inference.export.signatures import Signature, closed, signatures
from sam_jax.models.platforms import portable
from sam_jax.models.quantise import quantise_encoder

SLOTS = 11
"""Of the prompt: ten points, or a box and nine."""
OPSET = 21
"""The newest that current releases of onnxruntime and onnxruntime-web run all of."""
APART = 1_500_000_000
"""Bytes of a model from which on its weights lie in a file beside it: protobuf ends at 2 GiB."""
LARGE = 256
"""Numbers of an array, from which on it is stored in float16."""


def write(
    folder: Path, sam: Any, *, image_size: int | None = None, precision: Precision = "float32"
) -> dict[str, Signature]:
    """Writes the three files; arguments and `precision` as for `programs.write`.

    float16 weights are widened by the runtime when it loads them, int8 ones when it computes.

    Returns:
      File name -> its arrays, for one image and one prompt.

    Raises:
      ValueError: the package jax2onnx is missing.
    """
    if importlib.util.find_spec("jax2onnx") is None:
        raise ValueError(
            "--onnx: needs the package jax2onnx: pip install 'sam_jax[onnx]', best in an "
            "environment of its own (it asks for an older orbax)"
        )
    side = sam.config.image_size if image_size is None else image_size
    variables = quantise_encoder(sam.params) if precision == "int8" else sam.params
    variables = jax.tree.map(jnp.asarray, variables)
    found = {}
    chosen = signatures(sam.config, variables, side, SLOTS).items()
    for name, one in tqdm(chosen, "converting to ONNX", leave=False, disable=None):
        one = found[f"{name}.onnx"] = one.with_sizes(b=1, n=1)
        _convert(folder / f"{name}.onnx", one, variables, precision)
    return found


def _convert(path: Path, signature: Signature, variables: Any, precision: Precision) -> None:
    import onnx
    from jax2onnx import to_onnx

    logging.getLogger("onnx_ir").setLevel(logging.ERROR)  # notes on types that nothing needs
    shapes = [jax.ShapeDtypeStruct(tuple(x["shape"]), x["dtype"]) for x in signature.inputs]
    with portable():
        model = to_onnx(
            closed(signature, variables),
            shapes,
            model_name=path.stem,
            opset=OPSET,
            input_names=[x["name"] for x in signature.inputs],
            output_names=[x["name"] for x in signature.outputs],
        )
    if precision == "float16":
        _narrow(model)
    if model.ByteSize() < APART:
        onnx.checker.check_model(model)
        onnx.save(model, path)
    else:
        apart = {"location": f"{path.name}.data", "size_threshold": 1024}
        onnx.save(model, path, save_as_external_data=True, **apart)
        onnx.checker.check_model(path)


def _narrow(model: Any) -> None:
    """Stores large float32 arrays as float16, each followed by its cast back."""
    from onnx import TensorProto, helper, numpy_helper

    casts = []
    for array in model.graph.initializer:
        if array.data_type == TensorProto.FLOAT and np.prod(array.dims) >= LARGE:
            name = array.name
            narrow = numpy_helper.to_array(array).astype(np.float16)
            array.CopyFrom(numpy_helper.from_array(narrow, f"{name}/float16"))
            casts.append(helper.make_node("Cast", [array.name], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
