"""The released PyTorch model in the shape of a config, with weights that make it lively.

With MobileSAM's encoder its layers are those of `tests.mobile_sam`; all else is the released code.

Tests that compare against the reference import this module after `pytest.importorskip("torch")`
and `pytest.importorskip("segment_anything")`.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
import types

import numpy as np
import torch
from PIL import Image

from sam_jax.models.config import SamConfig
from tests.mobile_sam import encode
from tests.mobile_sam import tensors as mobile_tensors
from tests.weights import lively_tensors


def stand_in_torchvision() -> None:
    """Imports the released package where torchvision, of which it needs four functions, is missing.

    They are put in `sys.modules` while it is imported, and taken out again, so that no other
    package takes them for torchvision. Does nothing where either package is as it should be.
    """
    if "segment_anything" in sys.modules or importlib.util.find_spec("torchvision"):
        return
    modules = {
        "torchvision": {},
        "torchvision.ops": {},
        "torchvision.transforms": {},
        "torchvision.ops.boxes": {"batched_nms": _batched_nms, "box_area": _box_area},
        "torchvision.transforms.functional": {
            "resize": _resize,
            "to_pil_image": Image.fromarray,
        },
    }
    for name, members in modules.items():
        module = types.ModuleType(name)
        vars(module).update(members)
        sys.modules[name] = module
    try:
        importlib.import_module("segment_anything")
    except ModuleNotFoundError:
        pass  # whoever needs it will say so
    finally:
        for name in modules:
            del sys.modules[name]


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
    if c.encoder == "tiny_vit":
        encoder = MobileEncoder(c.image_size)
    else:
        encoder = ImageEncoderViT(
            img_size=c.image_size,
            patch_size=c.patch_size,
            embed_dim=c.encoder_width,
            depth=c.encoder_depth,
            num_heads=c.encoder_heads,
            mlp_ratio=c.encoder_mlp_ratio,
            out_chans=c.embed_dim,
            qkv_bias=True,
            use_rel_pos=True,
            window_size=c.window_size,
            norm_layer=functools.partial(torch.nn.LayerNorm, eps=1e-6),
            global_attn_indexes=c.global_blocks,
        )
    prompts = PromptEncoder(
        embed_dim=c.embed_dim,
        image_embedding_size=(c.grid, c.grid),
        input_image_size=(c.image_size, c.image_size),
        mask_in_chans=c.mask_channels,
    )
    decoder = MaskDecoder(
        transformer_dim=c.embed_dim,
        num_multimask_outputs=c.num_multimask,
        iou_head_depth=c.iou_head_depth,
        iou_head_hidden_dim=c.iou_head_width,
        transformer=TwoWayTransformer(
            depth=c.decoder_depth,
            embedding_dim=c.embed_dim,
            num_heads=c.decoder_heads,
            mlp_dim=c.decoder_mlp_width,
            attention_downsample_rate=c.attention_downsample,
        ),
    )
    return Sam(encoder, prompts, decoder).eval()


class MobileEncoder(torch.nn.Module):
    """`tests.mobile_sam.encode` as a module whose tensors have MobileSAM's names."""

    def __init__(self, image_size: int) -> None:
        super().__init__()
        self.img_size = image_size
        own = (item for item in mobile_tensors().items() if item[0].startswith("image_encoder."))
        for name, x in own:
            *path, last = name.split(".")[1:]
            at = self
            for part in path:
                if part not in dict(at.named_children()):
                    at.add_module(part, torch.nn.Module())
                at = getattr(at, part)
            if last.startswith(("running", "num")):
                at.register_buffer(last, torch.tensor(x))
            else:
                at.register_parameter(last, torch.nn.Parameter(torch.tensor(x)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, 3, H, W] -> [B, 256, H / 16, W / 16]."""
        return encode(dict(self.named_parameters()) | dict(self.named_buffers()), x)


def lively(reference, seed: int = 0):
    """Fills a reference model with seeded random weights under which every part matters.

    See `tests.weights`.

    Returns:
      The same model.
    """
    shapes = {name: tuple(x.shape) for name, x in reference.state_dict().items()}
    tensors = lively_tensors(shapes, seed)
    reference.load_state_dict({k: torch.from_numpy(x) for k, x in tensors.items()}, strict=True)
    return reference


def state(reference) -> dict[str, np.ndarray]:
    """The model's tensors by their released names, as NumPy arrays."""
    return {name: tensor.detach().numpy() for name, tensor in reference.state_dict().items()}
