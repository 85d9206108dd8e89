"""The click simulator: the prompts that a patient user would give (paper section A).

Masks are float [..., H, W] coverages on a grid that covers the model's padded frame [S, S]; points
come out in the frame's pixels, spread evenly within their grid cell.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def content_area(image_hw: jax.Array, side: int, grid: int) -> jax.Array:
    """bool [B, 1, grid, grid]: the cells whose centres lie on the photo, not on the padding."""
    centre = (jnp.arange(grid) + 0.5) * (side / grid)
    rows = centre[None, :, None] < image_hw[:, 0, None, None]
    columns = centre[None, None, :] < image_hw[:, 1, None, None]
    return (rows & columns)[:, None]


def sample_point(key: jax.Array, region: jax.Array, side: int) -> jax.Array:
    """A point (x, y) [..., 2] drawn uniformly from `region` bool [..., G, G].

    An empty region gives the frame's first cell: callers replace it.
    """
    grid = region.shape[-1]
    cell_key, jitter_key = jax.random.split(key)
    flat = region.reshape(*region.shape[:-2], grid * grid)
    rank = jnp.cumsum(flat, -1)
    u = jax.random.uniform(cell_key, (*flat.shape[:-1], 1)) * rank[..., -1:]
    cell = jnp.argmax(rank > u, -1)
    jitter = jax.random.uniform(jitter_key, (*cell.shape, 2))
    place = jnp.stack([cell % grid, cell // grid], -1) + jitter
    return place * (side / grid) - 0.5


def first_point(key: jax.Array, target: jax.Array, side: int) -> jax.Array:
    """A uniform foreground point [..., 2] of each true mask [..., G, G].

    A mask too small to cover half of any cell is clicked where it covers most.
    """
    return sample_point(key, _covered(target), side)


def centre_point(target: jax.Array, side: int) -> jax.Array:
    """The point [..., 2] of each true mask [..., G, G] that lies deepest in it.

    The first click of the paper's evaluation (section D.1): the middle of the cell that is farthest
    (Euclidean) from every cell outside; what lies beyond the grid counts as outside. An empty
    mask counts as a full one.
    """
    region = _covered(target)
    grid = region.shape[-1]
    place = jnp.arange(grid)
    before = jax.lax.cummax(jnp.where(region, -1, place), axis=region.ndim - 1)
    after = jax.lax.cummin(jnp.where(region, grid, place), axis=region.ndim - 1, reverse=True)
    across = jnp.minimum(place - before, after - place)
    # The nearest cell outside lies in some row, or beyond the first or last.
    rows = jnp.square(place[:, None] - place)[..., None]
    squared = (rows + jnp.square(across)[..., None, :, :]).min(-2)
    squared = jnp.minimum(squared, jnp.square(jnp.minimum(place + 1, grid - place))[:, None])
    cell = jnp.argmax(squared.reshape(*squared.shape[:-2], grid * grid), -1)
    return (jnp.stack([cell % grid, cell // grid], -1) + 0.5) * (side / grid) - 0.5


def _covered(target):
    """The cells [..., G, G] at least half covered; of what covers none so far, the fullest."""
    peak = target.max((-2, -1), keepdims=True)
    return target >= jnp.minimum(peak, 0.5)


def noisy_box(
    key: jax.Array, boxes_xyxy: jax.Array, image_hw: jax.Array, fraction: float, most: float
) -> jax.Array:
    """Boxes [B, N, 4] with each coordinate moved by up to `fraction` of its side.

    The paper says "random noise with standard deviation of 10% of the side, maximum 20 pixels";
    SAM 2's training code, followed here, draws uniformly within min(10% of the side, 20 px).
    `most` is in pixels of the frame; the result stays on the photo.
    """
    size = jnp.tile(boxes_xyxy[..., 2:] - boxes_xyxy[..., :2], 2)
    reach = jnp.minimum(fraction * size, most)
    moved = boxes_xyxy + reach * jax.random.uniform(key, boxes_xyxy.shape, minval=-1.0)
    limit = jnp.tile(image_hw[:, None, ::-1].astype(moved.dtype) - 1, 2)
    return jnp.clip(moved, 0.0, limit)


def noisy_text(key: jax.Array, text: jax.Array, most: float) -> jax.Array:
    """Embeddings [B, N, T] of length 1 with noise of a random length up to `most`; of length 1."""
    direction_key, amount_key = jax.random.split(key)
    amount = most * jax.random.uniform(amount_key, (*text.shape[:-1], 1))
    noise = jax.random.normal(direction_key, text.shape) * text.shape[-1] ** -0.5
    moved = text + amount * noise
    return moved * jax.lax.rsqrt((moved * moved).sum(-1, keepdims=True) + 1e-12)


def corrective_click(
    key: jax.Array, logits: jax.Array, target: jax.Array, content: jax.Array, side: int
) -> tuple[jax.Array, jax.Array]:
    """The next click: a uniform point of the error region, labelled by what it should be.

    False negatives and false positives are one pool, as in SAM 2. A perfect mask gets a random
    background point (or, where there is no background, a foreground one).

    Args:
      logits, target: [B, N, G, G]; content: bool [B, 1, G, G].

    Returns:
      Points float32 [B, N, 2] and labels int32 [B, N].
    """
    true = target > 0.5
    error = ((logits > 0) != true) & content
    anywhere = ~true & content
    perfect = ~error.any((-2, -1), keepdims=True)
    region = jnp.where(perfect, anywhere, error)
    region = jnp.where(region.any((-2, -1), keepdims=True), region, content)
    point = sample_point(key, region, side)
    grid = target.shape[-1]
    cell = jnp.clip(jnp.floor((point + 0.5) * (grid / side)).astype(jnp.int32), 0, grid - 1)
    flat = true.reshape(*true.shape[:-2], grid * grid)
    index = cell[..., 1] * grid + cell[..., 0]
    label = jnp.take_along_axis(flat, index[..., None], -1)[..., 0]
    return point, label.astype(jnp.int32)


def click_schedule(key: jax.Array, clicks: int, mask_only: int) -> jax.Array:
    """bool [clicks + mask_only]: which rounds after the first add a click.

    The rounds without one feed only the last mask back: the last round always is such a one, the
    others stand at random places before it (paper: 8 clicks, 2 such rounds, 11 in all).
    """
    rounds = clicks + mask_only
    if mask_only == 0:
        return jnp.ones(rounds, bool)
    order = jax.random.permutation(key, jnp.arange(rounds - 1) >= mask_only - 1)
    return jnp.append(order, False)
