"""Hugging Face's folder of a SAM: weights, config and what its processor needs to know."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from sam_jax.checkpoint import names
from sam_jax.checkpoint.strict import CheckpointError
from sam_jax.models.config import SamConfig
from sam_jax.models.sam import PIXEL_MEAN, PIXEL_STD
from sam_jax.storage import replacing


def write_hf(path: str | os.PathLike, variables: Mapping, config: SamConfig) -> None:
    """Writes a folder that `transformers.SamModel.from_pretrained` opens.

    It holds model.safetensors, config.json and preprocessor_config.json.
    """
    tensors = {k: np.ascontiguousarray(v, np.float32) for k, v in names.to_hf(variables).items()}
    with replacing(path) as made:
        made.mkdir()
        save_file(tensors, made / "model.safetensors", {"format": "pt"})
        for file, content in (
            ("config.json", hf_config(config)),
            ("preprocessor_config.json", hf_preprocessor(config)),
        ):
            (made / file).write_text(json.dumps(content, indent=2) + "\n")


def hf_config(config: SamConfig) -> dict[str, Any]:
    """Hugging Face's `SamConfig` as JSON.

    Its two-way transformer has LayerNorm epsilons of 1e-6 by default where the released code has
    1e-5; written out here, it gives the released numbers.
    """
    c = config
    return {
        "model_type": "sam",
        "architectures": ["SamModel"],
        "dtype": "float32",
        "vision_config": {
            "hidden_size": c.encoder_width,
            "output_channels": c.embed_dim,
            "num_hidden_layers": c.encoder_depth,
            "num_attention_heads": c.encoder_heads,
            "num_channels": 3,
            "image_size": c.image_size,
            "patch_size": c.patch_size,
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-6,
            "qkv_bias": True,
            "mlp_ratio": c.encoder_mlp_ratio,
            "use_abs_pos": True,
            "use_rel_pos": True,
            "window_size": c.window_size,
            "global_attn_indexes": list(c.global_blocks),
            "num_pos_feats": c.embed_dim // 2,
            "mlp_dim": int(c.encoder_width * c.encoder_mlp_ratio),
        },
        "prompt_encoder_config": {
            "hidden_size": c.embed_dim,
            "image_size": c.image_size,
            "patch_size": c.patch_size,
            "mask_input_channels": c.mask_channels,
            "num_point_embeddings": 4,
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-6,
        },
        "mask_decoder_config": {
            "hidden_size": c.embed_dim,
            "hidden_act": "relu",
            "mlp_dim": c.decoder_mlp_width,
            "num_hidden_layers": c.decoder_depth,
            "num_attention_heads": c.decoder_heads,
            "attention_downsample_rate": c.attention_downsample,
            "num_multimask_outputs": c.num_multimask,
            "iou_head_depth": c.iou_head_depth,
            "iou_head_hidden_dim": c.iou_head_width,
            "layer_norm_eps": 1e-5,
        },
    }


def hf_preprocessor(config: SamConfig) -> dict[str, Any]:
    """What Hugging Face's `SamProcessor` needs to know."""
    side, mask = config.image_size, 4 * config.grid
    return {
        "image_processor_type": "SamImageProcessor",
        "processor_class": "SamProcessor",
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_pad": True,
        "do_rescale": True,
        "do_resize": True,
        "resample": 2,
        "rescale_factor": 1 / 255,
        "image_mean": [x / 255 for x in PIXEL_MEAN],
        "image_std": [x / 255 for x in PIXEL_STD],
        "size": {"longest_edge": side},
        "pad_size": {"height": side, "width": side},
        "mask_size": {"longest_edge": mask},
        "mask_pad_size": {"height": mask, "width": mask},
    }


def decoder_heads(path: Path, config: SamConfig) -> int:
    """The decoder's heads, which no tensor's shape shows; the encoder's must agree with them."""
    try:
        document = json.loads(path.read_text())
        encoder = document.get("vision_config", {})
        heads = document.get("mask_decoder_config", {}).get("num_attention_heads", 8)
        inner = config.embed_dim // config.attention_downsample
        fits = isinstance(heads, int) and heads > 0 and inner % heads == 0
        stated = encoder.get("num_attention_heads", config.encoder_heads)
    except (ValueError, AttributeError) as error:
        raise CheckpointError(f"{path}: is damaged ({error})") from error
    if not fits or stated != config.encoder_heads:
        raise CheckpointError(
            f"{path}: expected {config.encoder_heads} encoder heads, as the tensors have, and "
            f"decoder heads that divide {inner}, got {stated} and {heads}"
        )
    return heads
