"""AdamW with layer-wise decay, warmup and the paper's schedule (paper section A); Muon."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase

import jax
import jax.numpy as jnp
import optax

from sam_jax.models.config import SamConfig
from sam_jax.training.config import OptimConfig


def learning_rate(config: OptimConfig, total_steps: int) -> optax.Schedule:
    """Linear warmup, then steps of 1/10 at the milestones, or a cosine to zero."""
    warmup = min(config.warmup, total_steps)
    ramp = optax.linear_schedule(config.lr / max(warmup, 1), config.lr, max(warmup - 1, 1))
    if config.schedule == "cosine":
        after = optax.cosine_decay_schedule(config.lr, max(total_steps - warmup, 1))
    else:
        after = optax.piecewise_constant_schedule(
            config.lr, {int(m * total_steps) - warmup: 0.1 for m in config.milestones}
        )
    return optax.join_schedules([ramp, after], [warmup])


def layer_scale(path: str, model: SamConfig, decay: float) -> float:
    """The factor on a parameter's learning rate: decay ** (layers above it in the encoder).

    Patch and position embeddings are layer 0, block i is i + 1, everything else is not scaled
    (ViTDet's rule; the paper gives only the factor). Nor is anything in MobileSAM's encoder.
    """
    if "image_encoder" not in path or model.encoder != "vit":
        return 1.0
    top = model.encoder_depth + 1
    block = re.search(r"block_(\d+)", path)
    if block:
        return decay ** (top - 1 - int(block.group(1)))
    return decay**top if "patch_embed" in path or "pos_embed" in path else 1.0


def is_decayed(path: str, shape: tuple[int, ...]) -> bool:
    """Weight decay is for matrices: not for norms, biases, tokens, embeddings, position tables.

    The paper is silent; this is ViTDet's and SAM 2's practice.
    """
    return len(shape) >= 2 and path.endswith("kernel")


def is_frozen(path: str, config: OptimConfig) -> bool:
    """Whether a pattern of `config.frozen` matches the whole path (`*` crosses slashes)."""
    return any(fnmatchcase(path, pattern) for pattern in config.frozen)


def _check_patterns(patterns: tuple[str, ...], params) -> None:
    paths: list[str] = []
    path_tree(params, lambda path, p: paths.append(path))
    for pattern in patterns:
        if not any(fnmatchcase(path, pattern) for path in paths):
            raise ValueError(
                f"optim.frozen: expected patterns of parameters' paths, such as "
                f"'image_encoder/*', got {pattern!r}, which matches none"
            )


def path_tree(params, rule):
    """`rule(path "a/b/c", leaf)` for every leaf of the parameters."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: rule("/".join(str(k.key) for k in path), leaf), params
    )


def make_optimizer(
    config: OptimConfig, model: SamConfig, total_steps: int
) -> optax.GradientTransformation:
    """The optimiser over the "params" tree of a model.

    Muon (https://kellerjordan.github.io/posts/muon) steps along the orthogonalised momentum of each
    kernel; whatever is no kernel gets Adam. Layer decay scales the steps of either.
    """

    def scale_layers(updates, state, params=None):
        del params
        scaled = path_tree(
            updates, lambda path, u: u * layer_scale(path, model, config.layer_decay)
        )
        return scaled, state

    parts = [optax.clip_by_global_norm(config.clip)] if config.clip else []
    if config.name == "muon":
        parts.append(_scale_by_muon_or_adam(config))
    else:
        parts.append(optax.scale_by_adam(*config.betas, eps=1e-8))
    parts += [
        optax.add_decayed_weights(
            config.weight_decay,
            mask=lambda params: path_tree(params, lambda path, p: is_decayed(path, p.shape)),
        ),
        optax.GradientTransformation(lambda params: optax.EmptyState(), scale_layers),
        optax.scale_by_learning_rate(learning_rate(config, total_steps)),
    ]
    optimizer = optax.chain(*parts)
    if not config.frozen:
        return optimizer

    def labels(params):
        _check_patterns(config.frozen, params)
        return path_tree(params, lambda path, p: "frozen" if is_frozen(path, config) else "free")

    return optax.multi_transform({"free": optimizer, "frozen": optax.set_to_zero()}, labels)


def _scale_by_muon_or_adam(config: OptimConfig) -> optax.GradientTransformation:
    """Muon's direction for kernels, times muon_lr / lr; Adam's for the rest."""

    def kernels(params):
        def dimensions(path, p):
            if not is_decayed(path, p.shape):
                return None
            return optax.contrib.MuonDimensionNumbers(tuple(range(p.ndim - 1)), (p.ndim - 1,))

        return path_tree(params, dimensions)

    muon = optax.contrib.muon(
        1.0,
        adam_b1=config.betas[0],
        adam_b2=config.betas[1],
        muon_weight_dimension_numbers=kernels,
        consistent_rms=0.2,
    )
    ratio = config.muon_lr / config.lr

    def update(updates, state, params=None):
        updates, state = muon.update(updates, state, params)
        # optax.contrib.muon descends by itself: back to a direction, as scale_by_adam gives
        signed = path_tree(
            updates, lambda path, u: -u * (ratio if is_decayed(path, u.shape) else 1.0)
        )
        return signed, state

    return optax.GradientTransformation(muon.init, update)


def average(old, new, decay: float, step: jax.Array):
    """Exponential moving average of trees; young averages forget faster."""
    decay = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda a, b: a + (1 - decay) * (b - a), old, new)
