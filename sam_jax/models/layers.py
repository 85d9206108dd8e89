"""Pieces that several modules of the model share: normalisation, dense layers, MLP heads."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from sam_jax.models.config import SamConfig

ENCODER_EPS = 1e-6  # the image encoder and every LayerNorm over channels of a map
DECODER_EPS = 1e-5  # the two-way transformer: PyTorch's default


def norm(epsilon: float, name: str) -> nn.LayerNorm:
    """LayerNorm over the last axis, computed in float32 whatever comes in."""
    return nn.LayerNorm(epsilon=epsilon, dtype=jnp.float32, use_fast_variance=False, name=name)


def precision(config: SamConfig) -> jax.lax.Precision | None:
    """float32 products stay float32 on devices whose default would be lower."""
    return jax.lax.Precision.HIGHEST if config.dtype == "float32" else None


def dense(config: SamConfig, features: int, name: str, **kwargs) -> nn.Dense:
    """A linear layer with float32 parameters, computed in the config's dtype."""
    kwargs.setdefault("kernel_init", nn.initializers.xavier_uniform())
    return nn.Dense(features, dtype=config.dtype, precision=precision(config), name=name, **kwargs)


def gelu(x: jax.Array) -> jax.Array:
    """GELU by the error function, as PyTorch's default."""
    # Not jax.nn.gelu: its erfc form compiles to more elementwise work in the backward pass.
    return x * (0.5 + 0.5 * jax.lax.erf(x * 0.5**0.5))


class MlpHead(nn.Module):
    """`depth` linear layers with ReLU between them: the hypernetworks and the IoU head."""

    config: SamConfig
    width: int
    out: int
    depth: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        fan_in = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
        for i in range(self.depth - 1):
            x = nn.relu(dense(self.config, self.width, f"layer_{i}", kernel_init=fan_in)(x))
        return dense(self.config, self.out, f"layer_{self.depth - 1}", kernel_init=fan_in)(x)
