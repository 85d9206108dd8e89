"""The structured start: what the first weights compute, in numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sam_jax.models.config import VIT_TI, SamConfig
from sam_jax.models.image_encoder import Attention
from sam_jax.models.sam import SamModel, init
from sam_jax.training.scratch import frequency_patches, structured_start

SMALL = SamConfig(
    48,
    2,
    3,
    (1,),
    image_size=64,
    patch_size=8,
    window_size=4,
    embed_dim=16,
    decoder_depth=1,
    decoder_heads=2,
    decoder_mlp_width=16,
    iou_head_width=16,
)


@pytest.fixture(scope="module")
def fresh():
    return init(SMALL, jax.random.key(0))


def test_patches_are_orthogonal_frequencies():
    kernel = frequency_patches(192, 16)
    unit = kernel / np.linalg.norm(kernel, axis=0)
    np.testing.assert_allclose(unit.T @ unit, np.eye(192), atol=2e-5)


def test_a_flat_grey_patch_moves_one_channel_by_its_brightness():
    values = np.full((16, 16, 3), 0.7).reshape(-1) @ frequency_patches(192, 16)
    assert values[0] == pytest.approx(0.7, rel=1e-5)
    np.testing.assert_allclose(values[1:], 0, atol=1e-5)


def test_channels_vary_about_equally_over_pictures_whose_spectrum_falls_as_that_of_photographs():
    rng = np.random.default_rng(0)
    f = np.hypot(np.fft.fftfreq(256)[:, None], np.fft.fftfreq(256)[None])
    noise = np.fft.ifft2(np.fft.fft2(rng.normal(size=(256, 256))) / np.maximum(f, 1 / 256)).real
    picture = np.repeat((noise / noise.std())[..., None], 3, -1)
    patches = picture.reshape(16, 16, 16, 16, 3).transpose(0, 2, 1, 3, 4).reshape(256, -1)
    luma = (patches @ frequency_patches(192, 16)).std(0)[:108]
    assert luma.max() / luma.min() < 8  # 60 and more with unscaled cosines
    unscaled = frequency_patches(192, 16)
    unscaled /= np.linalg.norm(unscaled, axis=0)
    raw = (patches @ unscaled).std(0)[:108]
    assert raw.max() / raw.min() > 3 * luma.max() / luma.min()


def test_two_heads_look_near_and_the_rest_everywhere(fresh):
    """What the tables add to a query's scores at each distance (heads share the tables: about)."""
    start = structured_start(fresh, SMALL)
    attention = start["params"]["image_encoder"]["block_0"]["attn"]
    bias = np.asarray(attention["qkv"]["bias"]).reshape(3, SMALL.encoder_heads, SMALL.head_dim)
    narrow, wide = (np.asarray(attention["rel_pos_h"]) @ bias[0, head] for head in (0, 1))
    for scores in (narrow, wide):
        assert scores.argmax() == 3 and np.all(np.diff(scores[3:]) < 0)
        np.testing.assert_allclose(scores, scores[::-1], atol=1e-5)
    assert narrow[0] < wide[0] - 1
    assert not bias[0, 2].any() and not bias[1:].any()


def test_nothing_else_changes_and_the_model_runs(fresh):
    start = structured_start(fresh, SMALL)
    changed = set()

    def compare(path, a, b):
        if not np.array_equal(a, b):
            changed.add("/".join(str(k.key) for k in path))

    jax.tree_util.tree_map_with_path(compare, fresh["params"], start["params"])
    assert changed == {"image_encoder/patch_embed/kernel"} | {
        f"image_encoder/block_{i}/attn/{name}"
        for i in range(2)
        for name in ("qkv/kernel", "qkv/bias", "rel_pos_h", "rel_pos_w")
    } | {f"mask_decoder/hyper_mlp_{k}/layer_2/kernel" for k in range(4)}
    z = SamModel(SMALL).apply(start, jnp.ones((1, 64, 32, 3)), method="encode")
    assert z.shape == (1, 8, 4, 16) and np.isfinite(z).all()


def test_the_attention_of_the_start_averages_neighbours():
    """With equal keys the first head's output is the neighbourhood's mean, not the window's."""
    c = VIT_TI
    module = Attention(c, c.window_size)
    x = jnp.zeros((1, 8, 8, c.encoder_width)).at[0, 4, 4].set(1.0)
    params = module.init(jax.random.key(0), x)["params"]
    block = {"image_encoder": {f"block_{i}": {"attn": params} for i in range(c.encoder_depth)}}
    block["image_encoder"]["patch_embed"] = {"kernel": jnp.zeros((768, 192))}
    block["mask_decoder"] = {
        f"hyper_mlp_{k}": {"layer_2": {"kernel": jnp.zeros((1, 1))}} for k in range(4)
    }
    near = structured_start({"params": block}, c)["params"]["image_encoder"]["block_0"]["attn"]
    near["qkv"]["kernel"] = near["qkv"]["kernel"].at[:, : 2 * 192].set(0)  # no content in scores
    near["proj"] = {"kernel": jnp.eye(192), "bias": jnp.zeros(192)}
    out = np.abs(np.asarray(module.apply({"params": near}, x)))[0, ..., :64].sum(-1)
    assert out[4, 4] > 3 * out[4, 6] > 9 * out[0, 0]
