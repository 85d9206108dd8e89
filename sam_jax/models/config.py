"""The sizes of a Segment Anything model, and the released ones by name."""

from __future__ import annotations

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class SamConfig:
    """Everything that decides the shapes of the parameters, and how they are computed with.

    The defaults are those of the released models (PROTOCOLS sections 2-4); the encoder's sizes
    have none. `image_size` is the side that the position tables were trained for: the model takes
    any height and width that are multiples of `patch_size` and interpolates the tables. MobileSAM's
    encoder has no tables, and its `image_size` is the side that it was trained at last.
    """

    encoder_width: int
    encoder_depth: int
    encoder_heads: int
    global_blocks: tuple[int, ...]
    image_size: int = 1024
    patch_size: int = 16
    window_size: int = 14
    encoder_mlp_ratio: float = 4.0
    embed_dim: int = 256
    mask_channels: int = 16
    decoder_depth: int = 2
    decoder_heads: int = 8
    decoder_mlp_width: int = 2048
    attention_downsample: int = 2
    num_multimask: int = 3
    iou_head_depth: int = 3
    iou_head_width: int = 256
    text_width: int = 0
    """Width of the text embeddings taken as prompts; 0: the model has no text head."""
    draw_boxes: bool = False
    """Whether a box that comes without a mask is also given as a mask, its own shape drawn
    (`prompt_encoder.draw_boxes`). The released models were not trained with it."""
    encoder: Literal["vit", "tiny_vit"] = "vit"
    """Which image encoder: SAM's, or MobileSAM's (`sam_jax.models.tiny_vit`), whose sizes are
    fixed: of the fields above only `image_size` and `embed_dim` are then read for the encoder."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """What matrix products are computed in. Parameters, positions, softmax and norms: float32."""
    drop_path: float = 0.0
    """Stochastic depth of the last encoder block; earlier ones rise linearly from 0."""
    decoder_dropout: float = 0.0
    """Dropout in the decoder's attention and MLP sublayers (the paper trains with 0.1)."""
    remat: bool = False
    """Recompute all of an encoder block in the backward pass. False: only what is cheap (norms,
    GELU, windows' scores), from the results of its linear layers and of attention."""
    scan_blocks: bool = False
    """Run the encoder's blocks as a loop: the same numbers, a program that compiles many times
    faster, and under FSDP the parameters of one block at a time."""

    def __post_init__(self) -> None:
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_size: expected a multiple of patch_size={self.patch_size}, "
                f"got {self.image_size}"
            )
        if self.encoder not in ("vit", "tiny_vit"):
            raise ValueError(f"encoder: expected 'vit' or 'tiny_vit', got {self.encoder!r}")
        if self.encoder == "tiny_vit":
            for field in ("patch_size", "drop_path", "remat", "scan_blocks"):
                only = type(self).__dataclass_fields__[field].default
                if getattr(self, field) != only:
                    raise ValueError(
                        f"{field}: expected {only} with encoder='tiny_vit', got "
                        f"{getattr(self, field)}"
                    )
        for width, heads, what in (
            (self.encoder_width, self.encoder_heads, "encoder_width"),
            (self.embed_dim // self.attention_downsample, self.decoder_heads, "embed_dim"),
        ):
            if width % heads:
                raise ValueError(f"{what}: {width} does not divide into {heads} heads")

    @property
    def grid(self) -> int:
        """Side of the embedding that the position tables were trained for, in patches."""
        return self.image_size // self.patch_size

    @property
    def windows(self) -> tuple[int, ...]:
        """Each encoder block's window side; 0 where it attends globally."""
        blocks = range(self.encoder_depth)
        return tuple(0 if i in self.global_blocks else self.window_size for i in blocks)

    @property
    def num_masks(self) -> int:
        """Masks that the decoder computes: the single-mask one (index 0), then the multimask."""
        return self.num_multimask + 1

    @property
    def head_dim(self) -> int:
        """Channels of one attention head in the encoder."""
        return self.encoder_width // self.encoder_heads

    def replace(self, **changes) -> SamConfig:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)


VIT_B = SamConfig(768, 12, 12, (2, 5, 8, 11))
VIT_L = SamConfig(1024, 24, 16, (5, 11, 17, 23))
VIT_H = SamConfig(1280, 32, 16, (7, 15, 23, 31))
VIT_TI = SamConfig(
    192,
    8,
    3,
    (2, 5, 7),
    image_size=512,
    window_size=8,
    embed_dim=128,
    decoder_mlp_width=512,
    iou_head_width=128,
)
"""A small one of the released architecture, for training from nothing; no weights of it come with
the package."""
MOBILE_SAM = SamConfig(320, 12, 10, (), encoder="tiny_vit")
TINY = MOBILE_SAM.replace(image_size=512, draw_boxes=True)

CONFIGS = {
    "tiny": TINY,
    "mobile_sam": MOBILE_SAM,
    "vit_b": VIT_B,
    "vit_l": VIT_L,
    "vit_h": VIT_H,
}
