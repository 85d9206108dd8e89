"""The arithmetic of the model and of a training step, by formula: matrix products alone.

A multiply-add counts as 2. Elementwise work, resizing and the optimiser (Muon's products too) are
left out: under 2% at the released sizes. Two counts of a step:

- *model* FLOPs: what the mathematics asks for, forward and backward, each product once. The share
  of a device's peak that they reach is comparable between programs (PaLM's "MFU").
- *hardware* FLOPs: what the program multiplies on a TPU: also the forward passes that are computed
  again in the backward pass, and the one-hot columns that carry the position biases.

Axes as everywhere: B image, N prompt, T token, h w grid, D channels.
"""

from __future__ import annotations

import dataclasses

from sam_jax.models.config import SamConfig
from sam_jax.models.tiny_vit import DEPTHS, STRIDES, WIDTHS, WINDOWS
from sam_jax.training.config import Stage, TrainConfig


def _product(rows: int, inner: int, columns: int) -> int:
    return 2 * rows * inner * columns


@dataclasses.dataclass(frozen=True)
class _Block:
    """One encoder block's forward products, by what becomes of them in the backward pass."""

    scores: int
    """Attention's two products, queries with keys and weights with values."""
    biases: int
    """Queries with the tables of relative positions."""
    fold: int
    """One-hot columns in the scores: arithmetic of the program, not of the model."""
    again: int
    """What attention computes again in any backward pass: the scores."""
    linear: int
    """qkv, projection and the MLP's first layer."""
    last: int
    """The MLP's second layer, whose result no gradient needs."""

    @property
    def model(self) -> int:
        return self.scores + self.biases + self.linear + self.last

    @property
    def recomputed(self) -> int:
        """The forward products that rematerialisation of the block does again."""
        return self.scores + self.biases + self.fold + self.linear


def _block(c: SamConfig, hw: tuple[int, int], window: int) -> _Block:
    """A block over a map of h x w patches; `window` 0 attends globally."""
    width = c.encoder_width
    side_hw = (window, window) if window else hw
    length = side_hw[0] * side_hw[1]
    count = -(-hw[0] // side_hw[0]) * -(-hw[1] // side_hw[1])
    tokens = count * length  # windows that stick out are padded, and the padding is computed
    hidden = int(width * c.encoder_mlp_ratio)
    scores = 2 * count * _product(length, width, length)
    fold = count * _product(length, c.encoder_heads * sum(side_hw), length)
    return _Block(
        scores=scores,
        biases=_product(tokens, width, sum(side_hw)),
        fold=fold,
        again=scores // 2 + fold,
        linear=_product(tokens, width, 4 * width) + _product(hw[0] * hw[1], width, hidden),
        last=_product(hw[0] * hw[1], hidden, width),
    )


def _encoder_parts(c: SamConfig, image_size: int) -> tuple[int, list[_Block], int]:
    """Forward products of the patch embedding, of each block, and of the neck."""
    if c.encoder == "tiny_vit":
        return _tiny_vit_parts(image_size, c.embed_dim)
    side = image_size // c.patch_size
    length = side * side
    blocks = [_block(c, (side, side), window) for window in c.windows]
    neck = _product(length, c.encoder_width, c.embed_dim)
    neck += _product(length, 9 * c.embed_dim, c.embed_dim)
    return _product(length, 3 * c.patch_size**2, c.encoder_width), blocks, neck


def _tiny_vit_parts(image_size: int, embed_dim: int) -> tuple[int, list[_Block], int]:
    """As `_encoder_parts`, of MobileSAM's encoder: its first convolution, no blocks, all else."""
    stem, side = WIDTHS[0] // 2, image_size // 4
    rest = _product(side * side, 9 * stem, WIDTHS[0])
    for i, (width, depth, window) in enumerate(zip(WIDTHS, DEPTHS, WINDOWS, strict=True)):
        length = side * side
        block = 2 * _product(length, width, 4 * width)
        if window:
            windows = (-(-side // window)) ** 2
            block += 2 * windows * _product(window**2, width, window**2)
            block += _product(windows * window**2, width, 4 * width)
        rest += depth * block
        if i < len(STRIDES):
            after = WIDTHS[i + 1]
            rest += _product(length, width, after)
            side //= STRIDES[i]
            rest += _product(side * side, after, after)
    rest += _product(side * side, WIDTHS[-1], embed_dim)
    rest += _product(side * side, 9 * embed_dim, embed_dim)
    return _product((image_size // 2) ** 2, 27, stem), [], rest


def encoder_flops(config: SamConfig, image_size: int) -> int:
    """Model FLOPs of the image encoder's forward pass for one square image of that side."""
    patch, blocks, neck = _encoder_parts(config, image_size)
    return patch + sum(block.model for block in blocks) + neck


def _mask_prompt_flops(c: SamConfig, length: int) -> int:
    """The embedding of one mask prompt: two 2x2 convolutions and one 1x1."""
    quarter = c.mask_channels // 4
    return (
        _product(4 * length, 4, quarter)
        + _product(length, 4 * quarter, c.mask_channels)
        + _product(length, c.mask_channels, c.embed_dim)
    )


def decoder_flops(
    config: SamConfig,
    grid_hw: tuple[int, int],
    tokens: int,
    prompts: int = 1,
    mask_prompts: bool = False,
) -> int:
    """FLOPs of the mask decoder's forward pass for some prompts of one image.

    Args:
      config: the model's.
      grid_hw: size of the embedding in patches.
      tokens: T, all of them: 1 for the IoU, `config.num_masks`, and the prompt's slots.
      prompts: N. Without mask prompts they share the first layer's projections of the embedding.
      mask_prompts: whether every prompt brings a mask, which is embedded.
    """
    c, n, t, d = config, prompts, tokens, config.embed_dim
    length, inner = grid_hw[0] * grid_hw[1], d // c.attention_downsample
    image_side = _product(length, d, inner)  # one projection of the map

    def cross(queries: int, keys: int) -> int:
        return 2 * _product(queries, inner, keys)

    self_attention = _product(t, d, 4 * d) + 2 * _product(t, d, t)
    # Per prompt: both directions' products, the tokens' four projections, and one of the map
    # (the output of image to tokens); keys and values of the map and its query come after.
    exchange = 2 * cross(t, length) + 4 * _product(t, d, inner) + image_side
    layer = self_attention + exchange + 2 * _product(t, d, c.decoder_mlp_width)
    total = n * c.decoder_depth * layer
    if c.decoder_depth:
        first = n if mask_prompts else 1
        total += 3 * image_side * (first + n * (c.decoder_depth - 1))
    last = cross(t, length) + 2 * _product(t, d, inner)
    last_maps = n if mask_prompts or c.decoder_depth else 1
    total += n * last + 2 * image_side * last_maps
    up = _product(length, d, d) + _product(4 * length, d // 4, d // 2)
    heads = _product(1, d, d) * 2 + _product(1, d, d // 8)
    iou = _mlp_flops(d, c.iou_head_width, c.num_masks, c.iou_head_depth)
    masks = _product(16 * length, d // 8, c.num_masks)
    total += n * (up + masks + c.num_masks * heads + iou)
    return total + (n * _mask_prompt_flops(c, length) if mask_prompts else 0)


def _mlp_flops(inputs: int, width: int, out: int, depth: int) -> int:
    sizes = [inputs, *[width] * (depth - 1), out]
    return sum(_product(1, a, b) for a, b in zip(sizes, sizes[1:], strict=False))


def step_flops(config: TrainConfig, stage: Stage) -> tuple[int, int]:
    """FLOPs (model, hardware) of one optimiser step of the stage, over its whole batch.

    A backward pass costs two products for each of the forward's, except that nothing needs the
    gradient of the pixels. All `max_masks` slots count, also those that an image leaves empty.
    """
    c = config.model
    patch, blocks, neck = _encoder_parts(c, stage.image_size)
    model = 2 * patch + 3 * (sum(block.model for block in blocks) + neck)
    extra = sum(2 * block.fold + block.again for block in blocks)
    if c.remat:
        extra += sum(block.recomputed for block in blocks)

    side = stage.image_size // c.patch_size
    later = stage.corrective_clicks + stage.mask_only_rounds
    tokens = 1 + c.num_masks + 2 + later
    n = stage.max_masks
    rounds = decoder_flops(c, (side, side), tokens, n, mask_prompts=c.draw_boxes)
    rounds += later * decoder_flops(c, (side, side), tokens, n, mask_prompts=True)
    model += 3 * rounds
    if config.prompts.remat:
        extra += rounds
    return stage.batch_size * model, stage.batch_size * (model + extra)
