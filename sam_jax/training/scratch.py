"""First weights for a small model that is trained from scratch, without a pretrained encoder.

The encoder sees frequencies and looks at neighbours from the start; nothing in it is learned from
data. Ours; the paper starts from MAE.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from sam_jax.models.config import SamConfig

# Luma and two colour differences out of normalised RGB, and how strong each is in photographs.
_COLOURS = np.array([[1, 1, 1], [1, 0, -1], [-0.5, 1, -0.5]]) / np.sqrt([[3], [2], [1.5]])
_STRENGTH = (1.0, 0.35, 0.2)
_SHARE = (18 / 32, 7 / 32, 7 / 32)
_HYPER_SCALE = 0.1
_BIAS_GAIN = 3.0


def frequency_patches(width: int, side: int) -> np.ndarray:
    """A patch embedding float32 [side * side * 3, width] of the lowest frequencies of a patch.

    Columns are cosine basis functions (DCT-II) of luma and of two colour differences, each divided
    by the strength that photographs typically have at it (amplitudes fall with the frequency), so
    that every channel varies about equally.

    Raises:
      ValueError: a patch has fewer frequencies than the width needs.
    """
    cosines = np.cos(np.pi / side * (np.arange(side)[None] + 0.5) * np.arange(side)[:, None])
    cosines *= np.sqrt(2 / side)
    cosines[0] *= np.sqrt(0.5)
    order = sorted((u * u + v * v, u, v) for u in range(side) for v in range(side))
    counts = [int(width * share) for share in _SHARE]
    counts[0] += width - sum(counts)
    if counts[0] > side * side:
        raise ValueError(
            f"structured_start: expected a model of at most {side * side * 16 // 9} "
            f"encoder channels for patches of {side} pixels, got {width}"
        )
    columns = []
    for colour, strength, count in zip(_COLOURS, _STRENGTH, counts, strict=True):
        for squared, u, v in order[:count]:
            basis = np.outer(cosines[u], cosines[v])[:, :, None] * colour
            falls = (1 + 2 * np.sqrt(squared)) ** 1.2
            columns.append(basis.reshape(-1) * falls / (strength * side * np.sqrt(3)))
    return np.stack(columns, 1).astype(np.float32)


def _look_near(attention: dict, heads: int, radii: list[float], rng) -> dict:
    """An attention whose first heads weigh places by a Gaussian of their distance.

    A score is q.k + q.R[dy] + q.R[dx]: with q = c u + (what the patch says) and
    R[d] = -d^2 / (2 r^2 c) u the two tables add up to that Gaussian. Heads share the tables, so
    each has a direction u of its own; radii are in units of the tables' grid.
    """
    kernel = np.array(attention["qkv"]["kernel"])
    width = kernel.shape[1] // 3
    bias = np.zeros(3 * width, np.float32)
    kernel[:, : 2 * width] *= 0.5
    tables = {name: np.array(attention[name]) for name in ("rel_pos_h", "rel_pos_w")}
    size = width // heads
    for head, radius in enumerate(radii[:heads]):
        u = rng.choice([-1.0, 1.0], size) / np.sqrt(size)
        bias[head * size : (head + 1) * size] = _BIAS_GAIN * u
        for table in tables.values():
            d = np.arange(len(table)) - len(table) // 2
            table += (np.maximum(-(d**2) / (2 * radius**2), -8) / _BIAS_GAIN)[:, None] * u
    qkv = attention["qkv"] | {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)}
    return attention | {"qkv": qkv} | {name: jnp.asarray(t) for name, t in tables.items()}


def structured_start(variables: dict, config: SamConfig, seed: int = 0) -> dict:
    """Fresh variables with an encoder that sees frequencies and looks near.

    Patches start as frequencies (`frequency_patches`); in each block two heads weigh places by
    their distance and the rest look everywhere; the hypernetworks' outputs start small, so that
    all pixels start undecided.

    Args:
      variables: {"params", "buffers"} of `sam_jax.models.sam.init`; not changed.
      config: the model's.
      seed: of the heads' directions.

    Raises:
      ValueError: the model's encoder is MobileSAM's.
    """
    if config.encoder != "vit":
        raise ValueError(
            "structured_start: expected a model whose encoder is a ViT, got MobileSAM's; leave it "
            "out (--no-structured-start)"
        )
    rng = np.random.default_rng(seed)
    params = jax.tree.map(lambda x: x, variables["params"])
    encoder, decoder = params["image_encoder"], params["mask_decoder"]
    patches = frequency_patches(config.encoder_width, config.patch_size)
    encoder["patch_embed"]["kernel"] = jnp.asarray(patches)
    for i in range(config.encoder_depth):
        block = encoder[f"block_{i}"]
        near = [2.0, 4.0] if i in config.global_blocks else [1.0, 2.0]
        block["attn"] = _look_near(block["attn"], config.encoder_heads, near, rng)
    for k in range(config.num_masks):
        last = decoder[f"hyper_mlp_{k}"]["layer_2"]
        last["kernel"] = last["kernel"] * _HYPER_SCALE
    return variables | {"params": params}
