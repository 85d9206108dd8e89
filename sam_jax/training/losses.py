"""The losses of the paper (section A, "Losses"), with the choices it leaves open as arguments.

Axes: ... any, H W pixels. Logits and losses are float32; targets are coverages in 0..1.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

PIXELS = (-2, -1)


def focal_loss(
    logits: jax.Array, target: jax.Array, alpha: float = 0.25, gamma: float = 2.0
) -> jax.Array:
    """Sigmoid focal loss [...], a mean over the pixels of [..., H, W].

    The paper names the loss and no constants: alpha and gamma are those of the focal loss's own
    paper (Lin et al. 2017), which SAM 2's training code uses too. `alpha` < 0: no class weights.
    """
    cross_entropy = jnp.maximum(logits, 0) - logits * target + jnp.log1p(jnp.exp(-jnp.abs(logits)))
    p = jax.nn.sigmoid(logits)
    wrong = p * (1 - target) + (1 - p) * target
    loss = cross_entropy * wrong**gamma
    if alpha >= 0:
        loss = loss * (alpha * target + (1 - alpha) * (1 - target))
    return loss.mean(PIXELS)


def dice_loss(logits: jax.Array, target: jax.Array) -> jax.Array:
    """1 - Dice coefficient [...] of [..., H, W], with 1 added above and below as in SAM 2."""
    p = jax.nn.sigmoid(logits)
    overlap = (p * target).sum(PIXELS)
    return 1 - (2 * overlap + 1) / (p.sum(PIXELS) + target.sum(PIXELS) + 1)


def mask_iou(logits: jax.Array, target: jax.Array) -> jax.Array:
    """IoU [...] of the thresholded masks of [..., H, W]; 1 where both are empty. No gradient."""
    predicted, true = logits > 0, target > 0.5
    union = (predicted | true).sum(PIXELS)
    return jnp.where(union == 0, 1.0, (predicted & true).sum(PIXELS) / jnp.maximum(union, 1))


def prompt_losses(
    logits: jax.Array,
    iou: jax.Array,
    target: jax.Array,
    *,
    focal_weight: float = 20.0,
    dice_weight: float = 1.0,
    iou_weight: float = 1.0,
    iou_on_all: bool = False,
    on_all: jax.Array | None = None,
) -> dict[str, jax.Array]:
    """The losses of K candidate masks for one prompt: the least mask loss counts.

    Args:
      logits: [..., K, H, W], iou: predicted [..., K], target: [..., H, W] in 0..1.
      iou_on_all: train the predicted IoU of every candidate, not of the least-loss one alone.
      on_all: bool [...], where the mean over the candidates counts instead; None: nowhere.

    Returns:
      "total", "focal", "dice", "iou_error" and the chosen mask's "iou", each [...].
    """
    target = target[..., None, :, :]
    focal, dice = focal_loss(logits, target), dice_loss(logits, target)
    mask_loss = focal_weight * focal + dice_weight * dice
    best = jnp.argmin(mask_loss, -1, keepdims=True)

    def chosen(x):
        least = jnp.take_along_axis(x, best, -1)[..., 0]
        return least if on_all is None else jnp.where(on_all, x.mean(-1), least)

    true_iou = jax.lax.stop_gradient(mask_iou(logits, target))
    error = (iou - true_iou) ** 2
    iou_error = error.mean(-1) if iou_on_all else chosen(error)
    return {
        "total": chosen(mask_loss) + iou_weight * iou_error,
        "focal": chosen(focal),
        "dice": chosen(dice),
        "iou_error": iou_error,
        "iou": chosen(true_iou),
    }


def answers_loss(
    logits: jax.Array,
    iou: jax.Array,
    answers: jax.Array,
    answers_iou: jax.Array,
    content: jax.Array,
    focal_weight: float = 20.0,
    dice_weight: float = 1.0,
    iou_weight: float = 1.0,
) -> jax.Array:
    """How badly K masks for a prompt are a teacher's for the same prompt, each its own: [B, N].

    A mask of the teacher's counts by the IoU that it predicts, at least 0.3. A predicted IoU is
    asked to be the teacher's, less so the further the mask is from the teacher's. Learning to
    answer prompts as a teacher does, beside its embeddings, is EdgeSAM's (Zhou et al. 2023); its
    terms are cross-entropy and Dice, on one mask.

    Args:
      logits, answers: [B, N, K, G, G]; iou, answers_iou: [B, N, K].
      content: bool [B, 1, G, G], where the photos are; the rest does not count.
    """
    inside = content[:, :, None]
    logits = jnp.where(inside, logits, -20.0)
    target = jnp.where(inside, jax.nn.sigmoid(answers), 0.0)
    mask_loss = focal_weight * focal_loss(logits, target) + dice_weight * dice_loss(logits, target)
    weight = jnp.clip(answers_iou, 0.3, 1.0)
    like = jax.lax.stop_gradient(mask_iou(logits, target))
    error = (iou - answers_iou * jnp.sqrt(like)) ** 2
    return (mask_loss * weight).sum(-1) / weight.sum(-1) + iou_weight * error.mean(-1)


def grouping_loss(
    embedding: jax.Array, target: jax.Array, content: jax.Array, directions: jax.Array | None = None
) -> jax.Array:
    """How badly the pixels of a mask are alike in an embedding and unlike the rest: [B, N].

    Each mask's mean direction is compared with every pixel (cosine, after the image's mean is taken
    away); balanced cross-entropy asks that the mask's pixels be near it and others not. It trains
    an encoder that starts from nothing; the paper has no such term, its encoders come from MAE.
    With `directions` it asks that the pixels be near those, as a text's token: what an embedding
    means is learned sooner than through attention alone.

    Args:
      embedding: [B, h, w, D], target: [B, N, M, M] in 0..1 with M a multiple of h = w.
      content: bool [B, 1, M, M], where the photo is.
      directions: [B, N, D] in the place of the masks' own.
    """
    x, w = _pixels(embedding, content), embedding.shape[2]
    inside, outside = _pooled(target, w), _pooled((1 - target) * content, w)
    centre = jnp.einsum("bnp,bpd->bnd", inside, x) if directions is None else directions
    centre = _unit(centre)
    logits = (jnp.einsum("bnd,bpd->bnp", centre, x) - 0.3) * 10

    def mean(x, weight):
        return (x * weight).sum(-1) / (weight.sum(-1) + 0.5)

    return mean(jax.nn.softplus(-logits), inside) + mean(jax.nn.softplus(logits), outside)


def matching_loss(
    embedding: jax.Array,
    target: jax.Array,
    content: jax.Array,
    tokens: jax.Array,
    valid: jax.Array,
) -> jax.Array:
    """How badly each mask's token is told from those of all other masks of a batch: [B, N].

    CLIP's loss (Radford et al. 2021) between the masks' mean pixels and the tokens of their crops:
    an embedding in which every object lies where CLIP sees it can be asked for by whatever CLIP
    reads. The paper has no such term.

    Args:
      embedding: [B, h, w, D]; target: [B, N, M, M] in 0..1; content: bool [B, 1, M, M].
      tokens: [B, N, D] of each mask's own look.
      valid: bool [B, N], where there is a mask.
    """
    x, inside = _pixels(embedding, content), _pooled(target, embedding.shape[2])
    objects = _unit(jnp.einsum("bnp,bpd->bnd", inside, x)).reshape(-1, x.shape[-1])
    tokens, there = _unit(tokens).reshape(objects.shape), valid.reshape(-1)
    logits = 20 * objects @ tokens.T
    logits = jnp.where(there[:, None] & there, logits, -1e9)
    right = jnp.diagonal(logits)
    loss = (jax.nn.logsumexp(logits, 0) + jax.nn.logsumexp(logits, 1)) / 2 - right
    return jnp.where(there, loss, 0.0).reshape(valid.shape)


def teacher_loss(embedding: jax.Array, teacher: jax.Array, content: jax.Array) -> jax.Array:
    """The share of a teacher's embedding that is missed where the photos are; a scalar.

    The squared error over the teacher's variance over all pixels of the batch: 1 for its mean.
    MobileSAM (Zhang et al. 2023) learns its encoder by the squared error alone.

    Args:
      embedding, teacher: [B, h, w, D].
      content: bool [B, 1, M, M] with M a multiple of h = w, where the photos are.
    """
    b, h, w, _ = embedding.shape
    inside = _pooled(content, w).reshape(b, h, w, 1)
    mean = (teacher * inside).sum((0, 1, 2)) / jnp.maximum(inside.sum(), 1)
    variance = (jnp.square(teacher - mean) * inside).sum()
    return (jnp.square(embedding - teacher) * inside).sum() / jnp.maximum(variance, 1e-6)


def _pixels(embedding, content):
    """Unit vectors [B, h * w, D], the photo's mean taken away."""
    b, h, w, d = embedding.shape
    photo = _pooled(content, w)[:, 0, :, None]
    x = embedding.reshape(b, h * w, d)
    return _unit(
        x - (x * photo).sum(1, keepdims=True) / jnp.maximum(photo.sum(1, keepdims=True), 1)
    )


def _pooled(x, side):
    """[B, N, M, M] -> float32 means [B, N, side * side]."""
    b, n, size, _ = x.shape
    k = size // side
    return x.astype(jnp.float32).reshape(b, n, side, k, side, k).mean((3, 5)).reshape(b, n, -1)


def _unit(x):
    return x * jax.lax.rsqrt((x * x).sum(-1, keepdims=True) + 1e-3)
