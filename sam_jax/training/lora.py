"""Low-rank adapters (Hu et al. 2021, arXiv 2106.09685): W + (alpha / rank) A B, with W frozen.

Adapters live in the parameter tree under "lora", one {"a", "b"} for each kernel that they adapt,
so that optimiser and checkpoints treat them as any other parameter.
"""

from __future__ import annotations

from fnmatch import fnmatchcase

import jax
import jax.numpy as jnp

from sam_jax.training.config import LoraConfig

KEY = "lora"


def adapted_paths(params: dict, config: LoraConfig) -> list[str]:
    """Paths "a/b/kernel" of the matrices that the config's patterns name, in sorted order.

    Raises:
      ValueError: a pattern that names no matrix of the model.
    """
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    shapes = {"/".join(str(k.key) for k in path): leaf.shape for path, leaf in leaves}
    matrices = [path for path, shape in shapes.items() if path.endswith("/kernel")]
    matrices = [path for path in matrices if len(shapes[path]) == 2]
    for pattern in config.on:
        if not any(fnmatchcase(path, pattern) for path in matrices):
            raise ValueError(
                f"lora.on: expected patterns of paths of matrices, such as "
                f"'image_encoder/*/attn/qkv/kernel', got {pattern!r}, which names none"
            )
    return sorted(p for p in matrices if any(fnmatchcase(p, pattern) for pattern in config.on))


def add_adapters(params: dict, config: LoraConfig, key: jax.Array) -> dict:
    """The parameters with adapters that change nothing yet: A is drawn, B is zero."""
    adapters = {}
    for number, path in enumerate(adapted_paths(params, config)):
        kernel = _leaf(params, path)
        a = jax.random.normal(jax.random.fold_in(key, number), (kernel.shape[0], config.rank))
        adapters[path.replace("/", ".")] = {
            "a": a * kernel.shape[0] ** -0.5,
            "b": jnp.zeros((config.rank, kernel.shape[1])),
        }
    return params | {KEY: adapters}


def merged(params: dict, config: LoraConfig) -> dict:
    """The plain parameters that compute the same: every A B added to its kernel; no adapters."""
    if KEY not in params:
        return params
    plain = jax.tree.map(lambda x: x, {k: v for k, v in params.items() if k != KEY})
    for name, adapter in params[KEY].items():
        *parents, leaf = name.split(".")
        owner = plain
        for part in parents:
            owner = owner[part]
        change = jnp.matmul(adapter["a"], adapter["b"], precision=jax.lax.Precision.HIGHEST)
        owner[leaf] = owner[leaf] + (config.alpha / config.rank) * change
    return plain


def _leaf(tree: dict, path: str):
    for part in path.split("/"):
        tree = tree[part]
    return tree
