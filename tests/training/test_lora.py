"""Adapters: nothing at first, then exactly what merging says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sam_jax.models.sam import SamModel, init
from sam_jax.training.config import LoraConfig
from sam_jax.training.lora import adapted_paths, add_adapters, merged
from tests.training.test_optim import SMALL

CONFIG = LoraConfig(rank=2, alpha=4.0)


@pytest.fixture(scope="module")
def params():
    return init(SMALL, jax.random.key(0))["params"]


def test_the_default_adapts_attention_of_encoder_and_decoder(params):
    paths = adapted_paths(params, CONFIG)
    assert "image_encoder/block_1/attn/qkv/kernel" in paths
    assert "mask_decoder/transformer/layer_0/token_to_image/v_proj/kernel" in paths
    assert "mask_decoder/transformer/final_attn/out_proj/kernel" in paths
    assert all("/attn" in path or "_proj/" in path for path in paths)
    # 2 blocks of 2; layers of 3 attentions of 4, and the final one's 4
    assert len(paths) == 2 * 2 + SMALL.decoder_depth * 3 * 4 + 4


def test_fresh_adapters_change_nothing(params):
    plain = merged(add_adapters(params, CONFIG, jax.random.key(1)), CONFIG)
    assert jax.tree.structure(plain) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, plain, params)


def test_merging_adds_the_scaled_product_and_leaves_the_rest(params):
    adapted = add_adapters(params, CONFIG, jax.random.key(1))
    name = "image_encoder.block_0.attn.qkv.kernel"
    adapter = adapted["lora"][name]
    adapter["b"] = jnp.ones_like(adapter["b"])
    before = np.asarray(params["image_encoder"]["block_0"]["attn"]["qkv"]["kernel"])
    plain = merged(adapted, CONFIG)
    after = plain["image_encoder"]["block_0"]["attn"]["qkv"]["kernel"]
    expected = before + 2.0 * np.asarray(adapter["a"]) @ np.ones((2, before.shape[1]))
    np.testing.assert_allclose(after, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(  # the argument is as it was
        adapted["image_encoder"]["block_0"]["attn"]["qkv"]["kernel"], before
    )
    same = jax.tree.map(lambda a, b: bool((a == b).all()), plain, params)
    assert sum(not x for x in jax.tree.leaves(same)) == 1


def test_gradients_reach_both_factors(params):
    adapted = add_adapters(params, CONFIG, jax.random.key(1))
    images = jax.random.normal(jax.random.key(2), (1, 32, 32, 3))
    buffers = init(SMALL, jax.random.key(0))["buffers"]

    @jax.jit
    @jax.grad
    def gradient(lora):
        full = {"params": merged(adapted | {"lora": lora}, CONFIG), "buffers": buffers}
        return (SamModel(SMALL).apply(full, images, method="encode")[..., :3] ** 3).sum()

    lora = jax.tree.map(lambda x: x + 0.1, adapted["lora"])
    grads = gradient(lora)["image_encoder.block_0.attn.qkv.kernel"]
    assert float(jnp.abs(grads["a"]).max()) > 0 and float(jnp.abs(grads["b"]).max()) > 0


def test_a_pattern_that_names_nothing(params):
    with pytest.raises(ValueError, match=r"lora.on: .*'image_encoder/\*/q/kernel'"):
        adapted_paths(params, LoraConfig(rank=2, on=("image_encoder/*/q/kernel",)))
