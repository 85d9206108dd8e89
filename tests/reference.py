"""The released PyTorch model in the shape of a config, with weights that make it lively.

Tests that compare against the reference import this module after `pytest.importorskip("torch")`
and `pytest.importorskip("segment_anything")`.
"""

from __future__ import annotations

import functools
import sys
import types

import numpy as np
import torch
from PIL import Image

from sam_jax.models.config import SamConfig


def stand_in_torchvision() -> None:
    """Puts the four functions that the released code imports from torchvision in `sys.modules`.

    Does nothing where torchvision itself is installed.
    """
    try:
        import torchvision  # noqa: F401
    except ImportError:
        modules = {
            "torchvision": {}, "torchvision.ops": {}, "torchvision.transforms": {},
            "torchvision.ops.boxes": {"batched_nms": _batched_nms, "box_area": _box_area},
            "torchvision.transforms.functional": {
                "resize": _resize, "to_pil_image": Image.fromarray,
            },
        }
        for name, members in modules.items():
            module = types.ModuleType(name)
            vars(module).update(members)
            sys.modules[name] = module


def _resize(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    return image.resize((size[1], size[0]), Image.Resampling.BILINEAR)


def _box_area(boxes: torch.Tensor) -> torch.Tensor:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def _batched_nms(boxes, scores, idxs, iou_threshold: float) -> torch.Tensor:
    """Greedy suppression within each category; indices by falling score, ties in order."""
    boxes = boxes.float()
    area = _box_area(boxes)
    alive = torch.sort(scores, descending=True, stable=True).indices
    kept = []
    while len(alive):
        best, rest = alive[0], alive[1:]
        kept.append(best)
        top_left = torch.maximum(boxes[best, :2], boxes[rest, :2])
        bottom_right = torch.minimum(boxes[best, 2:], boxes[rest, 2:])
        shared = (bottom_right - top_left).clamp(min=0).prod(-1)
        over = shared / (area[best] + area[rest] - shared) > iou_threshold
        alive = rest[~(over & (idxs[rest] == idxs[best]))]
    return torch.stack(kept) if kept else torch.zeros(0, dtype=torch.long)


def build_reference(config: SamConfig):
    """The released classes, built in the shape of `config`, in evaluation mode.

    Returns:
      A `segment_anything.modeling.Sam` with its own fresh weights.

    Raises:
      ValueError: the config has what the released classes lack (text, other head ratios).
    """
    stand_in_torchvision()
    from segment_anything.modeling import (
        ImageEncoderViT,
        MaskDecoder,
        PromptEncoder,
        Sam,
        TwoWayTransformer,
    )

    c = config
    if c.text_width:
        raise ValueError(f"config.text_width: the released classes have none, got {c.text_width}")
    encoder = ImageEncoderViT(
        img_size=c.image_size, patch_size=c.patch_size, embed_dim=c.encoder_width,
        depth=c.encoder_depth, num_heads=c.encoder_heads, mlp_ratio=c.encoder_mlp_ratio,
        out_chans=c.embed_dim, qkv_bias=True, use_rel_pos=True, window_size=c.window_size,
        norm_layer=functools.partial(torch.nn.LayerNorm, eps=1e-6),
        global_attn_indexes=c.global_blocks,
    )
    prompts = PromptEncoder(
        embed_dim=c.embed_dim, image_embedding_size=(c.grid, c.grid),
        input_image_size=(c.image_size, c.image_size), mask_in_chans=c.mask_channels,
    )
    decoder = MaskDecoder(
        transformer_dim=c.embed_dim, num_multimask_outputs=c.num_multimask,
        iou_head_depth=c.iou_head_depth, iou_head_hidden_dim=c.iou_head_width,
        transformer=TwoWayTransformer(
            depth=c.decoder_depth, embedding_dim=c.embed_dim, num_heads=c.decoder_heads,
            mlp_dim=c.decoder_mlp_width, attention_downsample_rate=c.attention_downsample,
        ),
    )
    return Sam(encoder, prompts, decoder).eval()


def lively(reference, seed: int = 0):
    """Fills a reference model with seeded random weights under which every part matters.

    Products keep their input's variance, position tables are as large as what they are added to,
    and no bias or norm is at the value that it is initialised with. The numbers come from NumPy,
    so they are the same with every release of PyTorch.

    Returns:
      The same model.
    """
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, old in reference.state_dict().items():
        x = rng.standard_normal(tuple(old.shape), dtype=np.float32)
        if "pos_embed" in name:
            x *= 0.5
        elif "rel_pos" in name:
            x *= 0.3
        elif old.ndim == 4 and "output_upscaling" in name:  # transposed: input channels come first
            x *= old.shape[0] ** -0.5
        elif old.ndim == 4 or (old.ndim == 2 and name.endswith("weight") and _is_product(name)):
            x *= 1.5 * float(np.prod(old.shape[1:])) ** -0.5
        elif name.endswith("bias"):
            x *= 0.2
        elif old.ndim == 1:  # a norm's scale
            x = 1.0 + 0.3 * x
        tensors[name] = torch.from_numpy(np.asarray(x, np.float32))
    reference.load_state_dict(tensors, strict=True)
    return reference


def _is_product(name: str) -> bool:
    lookups = ("iou_token.", "mask_tokens.", "point_embeddings.", "_embed.weight")
    return not any(part in name for part in lookups)


def state(reference) -> dict[str, np.ndarray]:
    """The model's tensors by their released names, as NumPy arrays."""
    return {name: tensor.detach().numpy() for name, tensor in reference.state_dict().items()}
