"""CLIP's tensors and configs: one table of names both ways, this project's and Hugging Face's.

As in `table`, an array changes only its order of axes, so that a round trip gives the same bits.
"params/text/block_0/attn/q_proj/kernel" here is "text_model.encoder.layers.0.self_attn.q_proj.
weight" in `transformers.CLIPModel`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from sam_jax.checkpoint.infer import MAX_DEPTH, MAX_SIZE
from sam_jax.checkpoint.names import flatten, unflatten
from sam_jax.checkpoint.strict import CheckpointError, Shape, check
from sam_jax.checkpoint.table import Row
from sam_jax.models.clip import FIRST_SCALE, ClipConfig, TowerConfig, init_clip

MODEL_TYPE = "clip"
BUFFERS = tuple(f"{part}_model.embeddings.position_ids" for part in ("text", "vision"))
"""Counts from 0 on, kept by older files of Hugging Face; no weights."""
MAX_VOCABULARY = 1 << 24
_BLOCK = (
    ("norm1", "layer_norm1"),
    ("norm2", "layer_norm2"),
    *((f"attn/{name}", f"self_attn.{name}") for name in ("q_proj", "k_proj", "v_proj", "out_proj")),
    ("lin1", "mlp.fc1"),
    ("lin2", "mlp.fc2"),
)


def _row(own: str, hf: str, layout: str = "same", size: int = 1) -> Row:
    return Row(f"params/{own}", (), (hf,), layout, size)


def _affine(own: str, hf: str) -> list[Row]:
    """A weight and a bias, of a norm or a linear layer."""
    is_norm = own.rsplit("/", 1)[1].startswith("norm")
    weight, layout = ("scale", "same") if is_norm else ("kernel", "linear")
    return [
        _row(f"{own}/{weight}", f"{hf}.weight", layout),
        _row(f"{own}/bias", f"{hf}.bias"),
    ]


def _blocks(tower: str, hf: str, depth: int) -> list[Row]:
    return [
        row
        for i in range(depth)
        for own, other in _BLOCK
        for row in _affine(f"{tower}/block_{i}/{own}", f"{hf}.encoder.layers.{i}.{other}")
    ]


@functools.lru_cache(maxsize=32)
def rows(config: ClipConfig, text_tower_only: bool = False) -> tuple[Row, ...]:
    """Every array of a model, or of its text tower, and the tensor that holds it elsewhere."""
    hf = "text_model"
    found = [
        _row("text/token_embed", f"{hf}.embeddings.token_embedding.weight"),
        _row("text/pos_embed", f"{hf}.embeddings.position_embedding.weight"),
        *_blocks("text", hf, config.text.depth),
        *_affine("text/norm_final", f"{hf}.final_layer_norm"),
        _row("text/proj/kernel", "text_projection.weight", "linear"),
    ]
    if text_tower_only:
        return tuple(found)
    hf = "vision_model"
    patches = f"{hf}.embeddings.patch_embedding.weight"
    return (
        *found,
        _row("image/class_token", f"{hf}.embeddings.class_embedding"),
        _row("image/patch_embed/kernel", patches, "patches", config.patch_size),
        _row("image/pos_embed", f"{hf}.embeddings.position_embedding.weight"),
        *_affine("image/norm_pre", f"{hf}.pre_layrnorm"),  # spelt so
        *_blocks("image", hf, config.image.depth),
        *_affine("image/norm_post", f"{hf}.post_layernorm"),
        _row("image/proj/kernel", "visual_projection.weight", "linear"),
        _row("logit_scale/log", "logit_scale"),
    )


@functools.lru_cache(maxsize=32)
def own_shapes(config: ClipConfig, text_tower_only: bool = False) -> Mapping[str, Shape]:
    """Flat own name -> shape, of every array of a model or of its text tower."""
    tree = jax.eval_shape(lambda key: init_clip(config, key, text_tower_only), jax.random.key(0))
    return {name: tuple(leaf.shape) for name, leaf in flatten(tree).items()}


def hf_shapes(config: ClipConfig, text_tower_only: bool = False) -> dict[str, Shape]:
    """Hugging Face's name -> shape, likewise."""
    own = own_shapes(config, text_tower_only)
    # Arrays of one repeated zero take no memory, whatever their shape.
    zeros = {name: np.broadcast_to(np.zeros((), np.float32), own[name]) for name in own}
    return {name: tuple(t.shape) for name, t in _unpack(zeros, config, text_tower_only).items()}


def _unpack(flat: Mapping[str, np.ndarray], config: ClipConfig, text_tower_only: bool) -> dict:
    return {
        row.hf[0]: row.unpack(np.asarray(flat[row.own]))[0] for row in rows(config, text_tower_only)
    }


def to_huggingface(
    params: Mapping, config: ClipConfig, text_tower_only: bool = False
) -> dict[str, np.ndarray]:
    """{"params"} -> `transformers.CLIPModel`'s name -> array, bit for bit (views, no copies).

    Args:
      params: of a ClipModel.
      config: its config.
      text_tower_only: whether `params` is that of the text tower alone.

    Raises:
      CheckpointError: the params are not those of the config.
    """
    flat = {name: np.asarray(value) for name, value in flatten(params).items()}
    check(own_shapes(config, text_tower_only), flat, "params")
    return _unpack(flat, config, text_tower_only)


def from_huggingface(
    tensors: Mapping[str, np.ndarray],
    config: ClipConfig,
    what: str = "tensors",
    text_tower_only: bool = False,
) -> dict:
    """The inverse of `to_huggingface`, strictly.

    Args:
      tensors: Hugging Face's name -> array of floating-point numbers; the buffers `position_ids`
        may be among them.
      config: of the model that they are for.
      what: how errors name the tensors' origin.
      text_tower_only: take the text tower alone; whether the rest of the model is there or not.

    Returns:
      {"params"} of float32 NumPy arrays.

    Raises:
      CheckpointError: naming every missing, unused and misshapen tensor.
    """
    tensors = {name: x for name, x in tensors.items() if name not in BUFFERS}
    if text_tower_only:
        tensors = _text_part(tensors, [row.hf[0] for row in rows(config)], "text_")
    check(hf_shapes(config, text_tower_only), tensors, f"{what} as {describe(config)}")
    return _nested({r.own: r.pack([tensors[r.hf[0]]]) for r in rows(config, text_tower_only)})


def from_own(
    flat: Mapping[str, np.ndarray],
    config: ClipConfig,
    what: str = "tensors",
    text_tower_only: bool = False,
) -> dict:
    """As `from_huggingface`, from this project's flat names."""
    if text_tower_only:
        flat = _text_part(flat, own_shapes(config), "params/text/")
    expected = own_shapes(config, text_tower_only)
    check(expected, flat, f"{what} as {describe(config)}")
    return _nested({name: flat[name] for name in expected})


def _text_part(tensors: Mapping, known: Any, prefix: str) -> dict:
    """What the model has beside its text tower is left out; what it does not know stays."""
    others = {name for name in known if not name.startswith(prefix)}
    return {name: x for name, x in tensors.items() if name not in others}


def _nested(flat: Mapping[str, np.ndarray]) -> dict:
    return unflatten({name: np.asarray(x, np.float32, order="C") for name, x in flat.items()})


def describe(config: ClipConfig) -> str:
    """A model's sizes in a few words."""
    return (
        f"a CLIP of image size {config.image_size}, patch size {config.patch_size}, widths "
        f"{config.image.width} (image) and {config.text.width} (text), depths "
        f"{config.image.depth} and {config.text.depth}, embedding width {config.embed_dim}"
    )


def config_to_huggingface(config: ClipConfig) -> dict[str, Any]:
    """Hugging Face's `CLIPConfig` as JSON."""
    sides = {
        part: {
            "hidden_size": t.width,
            "intermediate_size": t.mlp_width,
            "num_hidden_layers": t.depth,
            "num_attention_heads": t.heads,
            "hidden_act": t.activation,
            "layer_norm_eps": t.norm_eps,
            "projection_dim": config.embed_dim,
        }
        for part, t in (("text", config.text), ("vision", config.image))
    }
    text = {
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.context,
        "eos_token_id": config.eos_id,
        # These two decide nothing in the model; its own defaults are beyond a small vocabulary.
        "bos_token_id": 0,
        "pad_token_id": config.eos_id,
    }
    vision = {"image_size": config.image_size, "patch_size": config.patch_size, "num_channels": 3}
    return {
        "model_type": MODEL_TYPE,
        "architectures": ["CLIPModel"],
        "dtype": "float32",
        "projection_dim": config.embed_dim,
        "logit_scale_init_value": FIRST_SCALE,
        "text_config": {"model_type": "clip_text_model", **sides["text"], **text},
        "vision_config": {"model_type": "clip_vision_model", **sides["vision"], **vision},
    }


def config_from_huggingface(document: Mapping[str, Any]) -> ClipConfig:
    """The inverse of `config_to_huggingface`; what the JSON leaves out has the class's default.

    Raises:
      CheckpointError: it is of another kind of model, or has a field that no CLIP here has.
    """
    kind = document.get("model_type") if isinstance(document, Mapping) else document
    if kind != MODEL_TYPE:
        raise CheckpointError(
            f"model_type: expected {MODEL_TYPE!r} (transformers.CLIPModel), got {kind!r}; give the "
            "folder of a whole CLIP"
        )
    try:
        text, vision = _section(document, "text"), _section(document, "vision")
        channels = vision.get("num_channels", 3)
        if channels != 3:
            raise ValueError(f"vision_config.num_channels: expected 3, got {channels!r}")
        return sane(
            {
                "image": _tower(vision, 768, 12),
                "text": _tower(text, 512, 8),
                "embed_dim": document.get("projection_dim", 512),
                "image_size": _side(vision.get("image_size", 224)),
                "patch_size": _side(vision.get("patch_size", 32)),
                "vocab_size": text.get("vocab_size", 49408),
                "context": text.get("max_position_embeddings", 77),
                "eos_id": text.get("eos_token_id", 49407),
            }
        )
    except (ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"its config is none of a CLIP: {error}") from error


def _section(document: Mapping[str, Any], part: str) -> dict[str, Any]:
    """A tower's fields; older files have them a second time, and that time counts."""
    second = document.get(f"{part}_config_dict")
    return dict(document.get(f"{part}_config") or {} if second is None else second)


def _side(value: Any) -> Any:
    """The side of a square that may be given as [H, W]."""
    if isinstance(value, list | tuple) and len(set(value)) == 1:
        return value[0]
    return value


def _tower(fields: Mapping[str, Any], width: int, heads: int) -> dict[str, Any]:
    """Fields of a TowerConfig; `width` and `heads` are what the class has by default."""
    return {
        "width": fields.get("hidden_size", width),
        "depth": fields.get("num_hidden_layers", 12),
        "heads": fields.get("num_attention_heads", heads),
        "mlp_width": fields.get("intermediate_size", 4 * width),
        "activation": fields.get("hidden_act", "quick_gelu"),
        "norm_eps": fields.get("layer_norm_eps", 1e-5),
    }


def sane(fields: Mapping[str, Any]) -> ClipConfig:
    """A config out of a file's numbers, none of which may be such that a model of it never ends.

    Raises:
      ValueError, TypeError: a field is of the wrong type, absurd, or unknown.
    """
    fields = dict(fields)
    for part in ("image", "text"):
        tower = dict(fields[part])
        for name in ("width", "depth", "heads", "mlp_width"):
            most = MAX_DEPTH if name == "depth" else MAX_SIZE
            _whole(f"{part}.{name}", tower[name], 1, most)
        eps = tower["norm_eps"]
        if not (isinstance(eps, float | int) and 0 < eps < 1):
            raise ValueError(f"{part}.norm_eps: expected a number from 0 to 1, got {eps!r}")
        fields[part] = TowerConfig(**tower)
    for name in ("embed_dim", "image_size", "patch_size", "context"):
        _whole(name, fields[name], 1, MAX_SIZE)
    _whole("vocab_size", fields["vocab_size"], 1, MAX_VOCABULARY)
    _whole("eos_id", fields["eos_id"], 0, MAX_VOCABULARY)
    if fields.get("dtype", "float32") not in ("float32", "bfloat16"):
        raise ValueError(f"dtype: expected float32 or bfloat16, got {fields['dtype']!r}")
    return ClipConfig(**fields)


def _whole(name: str, value: Any, least: int, most: int) -> None:
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{name}: expected a whole number from {least} to {most}, got {value!r}")
