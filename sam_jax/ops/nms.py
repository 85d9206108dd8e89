"""Non-maximum suppression of boxes on the device, for any number of them, without loops over boxes.

Greedy suppression has one answer: a box is kept when no kept box before it overlaps too much. That
is a fixed point, and repeating the rule for all boxes at once, from "all are kept" on, reaches it
after as many rounds as the longest chain of boxes that suppress each other. Boxes are taken in
blocks by descending score, so that no matrix is larger than a block times all boxes.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

CAPACITIES = (64, 256, 1024, 4096, 16384)
"""Numbers of boxes that are compiled for; larger ones are multiples of the last."""
BLOCK = 1024


def nms(boxes_xyxy: np.ndarray, scores: np.ndarray, iou_threshold: float) -> np.ndarray:
    """Greedy non-maximum suppression.

    Boxes are visited by descending score, ties in the order given; each that is kept suppresses
    the later ones whose IoU with it is strictly above the threshold. Two boxes without area do
    not suppress each other. Computed in float32, as by torchvision.

    Args:
      boxes_xyxy: [N, 4].
      scores: [N].
      iou_threshold: in 0..1.

    Returns:
      int64 indices of the boxes kept, by descending score.
    """
    order = np.argsort(-np.asarray(scores, np.float32), kind="stable")
    count = len(order)
    if count < 2:
        return order
    capacity = next((c for c in CAPACITIES if count <= c), -count % CAPACITIES[-1] + count)
    boxes = np.zeros((capacity, 4), np.float32)
    boxes[:count] = np.asarray(boxes_xyxy, np.float32)[order]
    kept = keep_sorted(boxes, np.arange(capacity) < count, np.float32(iou_threshold))
    return order[np.asarray(kept)[:count]]


@functools.partial(jax.jit, static_argnames="block")
def keep_sorted(
    boxes_xyxy: jax.Array, valid: jax.Array, iou_threshold: jax.Array, block: int = BLOCK
) -> jax.Array:
    """Which boxes greedy suppression keeps.

    Args:
      boxes_xyxy: float32 [N, 4] by descending score; N at most a block or a multiple of it.
      valid: bool [N]; the others are neither kept nor suppress.
      iou_threshold: float32 [].
      block: boxes that are compared with all others at a time.

    Returns:
      bool [N].
    """
    count = len(boxes_xyxy)
    block = min(block, count)
    places = jnp.arange(count)

    def step(kept, start):
        own = jax.lax.dynamic_slice_in_dim(boxes_xyxy, start, block)
        index = start + jnp.arange(block)
        over = (_iou(own, boxes_xyxy) > iou_threshold) & (index[:, None] < places)
        within = jax.lax.dynamic_slice_in_dim(over, start, block, 1)
        first = jax.lax.dynamic_slice_in_dim(kept, start, block)

        def again(carry):
            now, _ = carry
            following = first & ~(within & now[:, None]).any(0)
            return following, (following != now).any()

        final, _ = jax.lax.while_loop(lambda carry: carry[1], again, (first, jnp.array(True)))
        return kept & ~(over & final[:, None]).any(0), None

    return jax.lax.scan(step, valid, jnp.arange(0, count, block))[0]


def _iou(a: jax.Array, b: jax.Array) -> jax.Array:
    """float32 [A, B] of boxes [A, 4] and [B, 4]; 0 where both have no area."""
    low = jnp.maximum(a[:, None, :2], b[:, :2])
    high = jnp.minimum(a[:, None, 2:], b[:, 2:])
    shared = jnp.prod(jnp.maximum(high - low, 0), axis=-1)
    area_a, area_b = ((x[:, 2] - x[:, 0]) * (x[:, 3] - x[:, 1]) for x in (a, b))
    union = area_a[:, None] + area_b - shared
    return jnp.where(union != 0, shared / jnp.where(union != 0, union, 1), 0)
