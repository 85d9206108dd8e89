"""MobileSAM's checkpoint, from it and back: its own encoder, SAM's prompt encoder and decoder.

`mobile_sam.pt` of https://github.com/ChaoningZhang/MobileSAM (Apache 2.0).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import jax
import numpy as np

from sam_jax.checkpoint.names import flatten, from_released, own_shapes, to_released
from sam_jax.checkpoint.strict import Shape, check
from sam_jax.models.config import MOBILE_SAM, SamConfig
from sam_jax.models.sam import init
from sam_jax.models.tiny_vit import DEPTHS, HEAD_DIM, WIDTHS, WINDOWS

ENCODER, _OURS = "image_encoder.", "image_encoder"
_DECODER = SamConfig(32, 1, 1, (0,), image_size=32)
"""A model with MobileSAM's decoder, and next to no encoder."""
UNUSED = re.compile(r"(norm_head|head)\.(weight|bias)|.*num_batches_tracked")
"""What the encoder has from having been a classifier, and counters."""
BATCH_EPS = 1e-5
CLASSES = 1000
"""Of the classifier that MobileSAM's own class still builds."""

_PARTS = {
    "patch_embed.seq.0": "stem_0",
    "patch_embed.seq.2": "stem_1",
    "neck.0": "neck_conv1",
    "neck.1": "neck_norm1",
    "neck.2": "neck_conv2",
    "neck.3": "neck_norm2",
}
_INNER = {
    "conv1": "expand",
    "conv2": "depthwise",
    "conv3": "project",
    "local_conv": "local",
    "attn": "attn",
    "attn.norm": "attn/norm",
    "attn.qkv": "attn/qkv",
    "attn.proj": "attn/proj",
    "mlp.norm": "mlp_norm",
    "mlp.fc1": "lin1",
    "mlp.fc2": "lin2",
}


_OWN = ("kernel", "bias", "scale", "distances")
"""Last names of this project's parameters."""


def is_mobile_sam(tensors: Mapping[str, np.ndarray]) -> bool:
    """Whether these are a MobileSAM's: its encoder begins with convolutions."""
    return f"{ENCODER}patch_embed.seq.0.c.weight" in tensors


def from_mobile_sam(tensors: Mapping[str, np.ndarray], what: str) -> dict:
    """The file's tensors -> variables {"params", "buffers"} of `MOBILE_SAM`, float32 NumPy arrays.

    Args:
      tensors: by their names in the file.
      what: how errors name their origin.

    Raises:
      CheckpointError: naming every missing, unused and misshapen tensor.
    """
    encoder, variables = _encoder(tensors, what), _decoder(tensors, what)
    return variables | {"params": variables["params"] | {"image_encoder": encoder}}


def to_mobile_sam(variables: Mapping) -> dict[str, np.ndarray]:
    """Variables of `MOBILE_SAM` -> all that MobileSAM's own class asks for, by its names.

    Its batch norms, which were folded in, become those that change nothing, and its classifier one
    of zeros; `from_mobile_sam` gives the same bits again.

    Raises:
      CheckpointError: the variables are no whole model.
    """
    params = variables["params"]
    small = init(_DECODER, jax.random.key(0))["params"]
    tensors = to_released({**variables, "params": {**params, "image_encoder": small[_OURS]}})
    tensors = {name: x for name, x in tensors.items() if not name.startswith(ENCODER)}
    check(own_shapes(MOBILE_SAM), flatten(variables), "variables as a MobileSAM's")
    expected, encoder = encoder_shapes(), {}
    for module in dict.fromkeys(map(_module, expected)):
        at = params[_OURS]
        for part in _place(module).split("/"):
            at = at[part]
        encoder |= _restored(module, {k: np.asarray(at[k]) for k in _OWN if k in at}, expected)
    counters = {f"{m}.num_batches_tracked" for m in (k[:-7] for k in encoder if ".bn.weight" in k)}
    width = WIDTHS[-1]
    encoder |= {
        **{name: np.zeros((), np.int64) for name in sorted(counters)},
        "norm_head.weight": np.ones(width, np.float32),
        "norm_head.bias": np.zeros(width, np.float32),
        "head.weight": np.zeros((CLASSES, width), np.float32),
        "head.bias": np.zeros(CLASSES, np.float32),
    }
    return {ENCODER + name: x for name, x in encoder.items()} | tensors


def _restored(
    module: str, own: Mapping[str, np.ndarray], expected: Mapping[str, Shape]
) -> dict[str, np.ndarray]:
    """The inverse of `_converted`."""
    if f"{module}.attention_biases" in expected:
        return {f"{module}.attention_biases": own["distances"]}
    if f"{module}.c.weight" in expected:
        ones = np.ones_like(own["bias"])
        return {
            f"{module}.c.weight": _weight(own["kernel"], expected[f"{module}.c.weight"]),
            f"{module}.bn.weight": np.sqrt(ones + BATCH_EPS),
            f"{module}.bn.bias": own["bias"],
            f"{module}.bn.running_mean": 0 * ones,
            f"{module}.bn.running_var": ones,
        }
    bias = {f"{module}.bias": own["bias"]} if "bias" in own else {}
    if "scale" in own:
        return {f"{module}.weight": own["scale"], **bias}
    return {f"{module}.weight": _weight(own["kernel"], expected[f"{module}.weight"]), **bias}


def _decoder(tensors: Mapping[str, np.ndarray], what: str) -> dict:
    """Its prompt encoder and mask decoder, beside the smallest encoder that a model can have."""
    whole = to_released(init(_DECODER, jax.random.key(0)))
    whole = {name: x for name, x in whole.items() if name.startswith(ENCODER)}
    whole |= {name: x for name, x in tensors.items() if not name.startswith(ENCODER)}
    variables = from_released(whole, _DECODER, what)
    del variables["params"]["image_encoder"]
    return variables


def _encoder(tensors: Mapping[str, np.ndarray], what: str) -> dict:
    encoder = {
        name.removeprefix(ENCODER): np.asarray(x, np.float32)
        for name, x in tensors.items()
        if name.startswith(ENCODER) and not UNUSED.fullmatch(name.removeprefix(ENCODER))
    }
    check(encoder_shapes(), encoder, f"{what} as MobileSAM's encoder")
    params: dict = {}
    for module in dict.fromkeys(_module(name) for name in encoder):
        *path_, last = _place(module).split("/")
        at = params
        for part in path_:
            at = at.setdefault(part, {})
        at.setdefault(last, {}).update(_converted(module, encoder))
    return params


def encoder_shapes() -> dict[str, Shape]:
    """Name -> shape of every tensor of the encoder that is used (TinyViT-5M, its neck SAM's)."""
    shapes: dict[str, Shape] = {}

    def with_bias(name, *shape):
        shapes.update({f"{name}.weight": shape, f"{name}.bias": shape[:1]})

    def conv(name, into, out, size, groups=1):
        shapes[f"{name}.c.weight"] = (out, into // groups, size, size)
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.bn.{part}"] = (out,)

    def bottleneck(name, into, hidden, out):
        conv(f"{name}.conv1", into, hidden, 1)
        conv(f"{name}.conv2", hidden, hidden, 3, hidden)
        conv(f"{name}.conv3", hidden, out, 1)

    conv("patch_embed.seq.0", 3, WIDTHS[0] // 2, 3)
    conv("patch_embed.seq.2", WIDTHS[0] // 2, WIDTHS[0], 3)
    for i, (width, depth, window) in enumerate(zip(WIDTHS, DEPTHS, WINDOWS, strict=True)):
        for block in (f"layers.{i}.blocks.{j}" for j in range(depth)):
            if not window:
                bottleneck(block, width, 4 * width, width)
                continue
            with_bias(f"{block}.attn.norm", width)
            with_bias(f"{block}.attn.qkv", 3 * width, width)
            with_bias(f"{block}.attn.proj", width, width)
            shapes[f"{block}.attn.attention_biases"] = (width // HEAD_DIM, window**2)
            conv(f"{block}.local_conv", width, width, 3, width)
            with_bias(f"{block}.mlp.norm", width)
            with_bias(f"{block}.mlp.fc1", 4 * width, width)
            with_bias(f"{block}.mlp.fc2", width, 4 * width)
        if i + 1 < len(WIDTHS):
            bottleneck(f"layers.{i}.downsample", width, WIDTHS[i + 1], WIDTHS[i + 1])
    d = _DECODER.embed_dim
    shapes |= {"neck.0.weight": (d, WIDTHS[-1], 1, 1), "neck.2.weight": (d, d, 3, 3)}
    with_bias("neck.1", d)
    with_bias("neck.3", d)
    return shapes


def _module(name: str) -> str:
    """The module that a tensor belongs to; a convolution and its batch norm are one."""
    of_layer = r"(\.(c|bn))?\.(weight|bias|running_mean|running_var)"
    return re.sub(rf"({of_layer}|\.attention_biases)$", "", name)


def _place(module: str) -> str:
    """Where its parameters belong: "stage_1/block_0/attn/qkv"."""
    if module in _PARTS:
        return _PARTS[module]
    match = re.fullmatch(r"layers\.(\d)\.(?:blocks\.(\d)|(downsample))\.(.+)", module)
    return f"stage_{match[1]}/{'merge' if match[3] else f'block_{match[2]}'}/{_INNER[match[4]]}"


def _converted(module: str, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A module's parameters in this project's layouts, its batch norm folded in."""
    if f"{module}.attention_biases" in tensors:
        return {"distances": tensors[f"{module}.attention_biases"]}
    if f"{module}.c.weight" in tensors:
        kernel = tensors[f"{module}.c.weight"]
        norm = {
            part: tensors[f"{module}.bn.{part}"]
            for part in ("weight", "bias", "running_mean", "running_var")
        }
        scale = norm["weight"] / np.sqrt(norm["running_var"] + BATCH_EPS)
        kernel = _kernel(kernel * scale[:, None, None, None])
        return {"kernel": kernel, "bias": norm["bias"] - norm["running_mean"] * scale}
    weight = tensors[f"{module}.weight"]
    bias = {"bias": tensors[f"{module}.bias"]} if f"{module}.bias" in tensors else {}
    if weight.ndim == 1:
        return {"scale": weight, **bias}
    return {"kernel": _kernel(weight), **bias}


def _kernel(weight: np.ndarray) -> np.ndarray:
    """[D, C, s, s] -> [s, s, C, D]; [D, C], and a convolution of single pixels, -> [C, D]."""
    if weight.ndim == 4 and weight.shape[-1] > 1:
        return weight.transpose(2, 3, 1, 0)
    return weight.reshape(weight.shape[:2]).T


def _weight(kernel: np.ndarray, shape: Shape) -> np.ndarray:
    """The inverse of `_kernel`."""
    return kernel.transpose(3, 2, 0, 1) if kernel.ndim == 4 else kernel.T.reshape(shape)
