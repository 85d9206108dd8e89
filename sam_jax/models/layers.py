"""Pieces that several modules of the model share: normalisation, dense layers, MLP heads."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from sam_jax.models.config import SamConfig

ENCODER_EPS = 1e-6  # the image encoder and every LayerNorm over channels of a map
DECODER_EPS = 1e-5  # the two-way transformer: PyTorch's default


class ChannelNorm(nn.Module):
    """LayerNorm over `axis`, in float32 whatever comes in; `centred` inputs have a mean of 0."""

    epsilon: float
    axis: int
    centred: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Any shape -> float32 of that shape."""
        shape = [1] * x.ndim
        shape[self.axis] = x.shape[self.axis]
        scale = self.param("scale", nn.initializers.ones, (x.shape[self.axis],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[self.axis],))
        after = math.prod(x.shape[x.ndim + self.axis + 1 :])
        columns = x.astype(jnp.float32).reshape(-1, x.shape[self.axis], after)
        y = _normalised(columns, self.epsilon, self.centred)
        return y.reshape(x.shape) * scale.reshape(shape) + bias.reshape(shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _normalised(x: jax.Array, epsilon: float, centred: bool) -> jax.Array:
    """[B, C, L] less its mean over C (or `centred` already), divided by its deviation.

    Its gradient is written out: the one that is derived takes several times as long on a CPU, and
    compiled by itself it can be wrong there, by any amount, at a batch of one (jaxlib 0.10.2).
    """
    return _normalised_forward(x, epsilon, centred)[0]


def _normalised_forward(x, epsilon, centred):
    if not centred:
        x = x - x.mean(1, keepdims=True)
    scale = jax.lax.rsqrt(jnp.square(x).mean(1, keepdims=True) + epsilon)
    y = x * scale
    return y, (y, scale)


def _normalised_backward(epsilon, centred, saved, g):
    del epsilon
    y, scale = saved
    dx = g - y * _mean(g * y)
    return ((dx if centred else dx - _mean(g)) * scale,)


def _mean(x: jax.Array) -> jax.Array:
    """Over C of [B, C, L], [B, 1, L]: as a matrix product on CPUs, whose sums can be slow."""

    def by_product(x):
        weights = jnp.full((len(x), 1, x.shape[1]), 1 / x.shape[1], x.dtype)
        return jnp.matmul(weights, x, precision=jax.lax.Precision.HIGHEST)

    return jax.lax.platform_dependent(x, cpu=by_product, default=lambda x: x.mean(1, keepdims=True))


_normalised.defvjp(_normalised_forward, _normalised_backward)


def norm(epsilon: float, name: str) -> nn.LayerNorm:
    """LayerNorm over the last axis, computed in float32 whatever comes in."""
    return nn.LayerNorm(epsilon=epsilon, dtype=jnp.float32, use_fast_variance=False, name=name)


def precision(config: SamConfig) -> jax.lax.Precision | None:
    """float32 products stay float32 on devices whose default would be lower."""
    return jax.lax.Precision.HIGHEST if config.dtype == "float32" else None


class Weights(NamedTuple):
    """A linear layer's parameters.

    Attributes:
      kernel: [C, D] in float32, bfloat16 or int8.
      bias: float32 [D] or None.
      scale: float32 [D], what an int8 kernel's columns are multiplied by, or None.
    """

    kernel: jax.Array
    bias: jax.Array | None = None
    scale: jax.Array | None = None


class Dense(nn.Module):
    """A linear layer, computed in `dtype`; its parameters are float32 unless stored otherwise."""

    features: int
    dtype: str
    use_bias: bool = True
    kernel_init: nn.initializers.Initializer = nn.initializers.xavier_uniform()

    @nn.compact
    def weights(self, width: int) -> Weights:
        """The parameters for inputs of `width` channels, for products taken in another order."""
        kernel = self.param("kernel", self.kernel_init, (width, self.features))
        bias = scale = None
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
        if kernel.dtype == jnp.int8:
            scale = self.get_variable("params", "scale")
        return Weights(kernel, bias, scale)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., C] -> [..., features] in `dtype`."""
        return linear(x, self.weights(x.shape[-1]), self.dtype).astype(self.dtype)


def dense(config: SamConfig, features: int, name: str, **kwargs) -> Dense:
    """A linear layer computed in the config's dtype."""
    return Dense(features, config.dtype, name=name, **kwargs)


def linear(x: jax.Array, weights: Weights, dtype: str) -> jax.Array:
    """[..., C] -> float32 [..., D], the factors of the product rounded to `dtype`."""
    x = x.astype(dtype)
    if dtype == "float32":
        kernel = weights.kernel.astype(dtype)
        y = jnp.matmul(x, kernel, precision=jax.lax.Precision.HIGHEST)
    else:
        y = low_product(x, weights.kernel)
    if weights.scale is not None:
        y *= weights.scale
    return y if weights.bias is None else y + weights.bias


@jax.custom_vjp
def low_product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """bfloat16 [..., C] times float32 [C, D]: bfloat16 factors, float32 sums and result.

    Products of bfloat16 to bfloat16 miss a CPU's matrix units (AMX). The kernel's gradient is
    float32 too.
    """
    return _wide(x, kernel.astype(x.dtype))


def _wide(x, kernel):
    return jnp.matmul(x, kernel, preferred_element_type=jnp.float32)


def _low_product_forward(x, kernel):
    return low_product(x, kernel), (x, kernel)


def _low_product_backward(saved, g):
    x, kernel = saved
    g = g.astype(x.dtype)
    rows, columns = x.reshape(-1, x.shape[-1]), g.reshape(-1, g.shape[-1])

    def products(turn, rows, columns, kernel):
        return _wide(columns, turn(kernel)).astype(x.dtype), _wide(turn(rows), columns)

    def on_cpu(rows, columns, kernel):
        # Or all that led to the rows would be computed while they are turned, one by one.
        return products(turned, jax.lax.optimization_barrier(rows), columns, kernel)

    drows, dkernel = jax.lax.platform_dependent(
        *(rows, columns, kernel.astype(x.dtype)),
        cpu=on_cpu,
        default=functools.partial(products, jnp.transpose),
    )
    return drows.reshape(x.shape), dkernel


low_product.defvjp(_low_product_forward, _low_product_backward)


def turned(x: jax.Array) -> jax.Array:
    """x.T of [L, D] in memory: XLA:CPU folds a plain one into the product, which is slow then."""
    n = next(n for n in (32, 16, 8, 4, 2, 1) if x.shape[0] % n == 0)
    return x.reshape(-1, n, x.shape[1]).transpose(2, 0, 1).reshape(x.shape[1], x.shape[0])


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
