"""MAE checkpoints as the encoder's beginning."""

import dataclasses

import jax
import numpy as np
import pytest

from sam_jax.checkpoint.mae import load_mae
from sam_jax.checkpoint.names import flatten, own_shapes
from sam_jax.checkpoint.pth import write_pth
from sam_jax.checkpoint.strict import CheckpointError
from sam_jax.training.config import Stage, TrainConfig
from tests.checkpoint.common import ODD, assert_same_bits
from train.start import starting_point

SMALL = ODD.replace(encoder_depth=2, decoder_depth=1, num_multimask=1, iou_head_depth=2)
C, HIDDEN = SMALL.encoder_width, 90


def key(seed=0):
    """A key of the kind that compiles fastest."""
    return jax.random.key(seed, impl="rbg")


def mae_tensors(patch=5, grid=4, depth=2, width=C, decoder=True):
    """Random tensors with the names and shapes of facebookresearch/mae's models_mae.py."""
    rng = np.random.default_rng(0)
    shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 1 + grid * grid, width),
        "patch_embed.proj.weight": (width, 3, patch, patch),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    for i in range(depth):
        for name, shape in {
            "norm1.weight": (width,),
            "norm1.bias": (width,),
            "norm2.weight": (width,),
            "norm2.bias": (width,),
            "attn.qkv.weight": (3 * width, width),
            "attn.qkv.bias": (3 * width,),
            "attn.proj.weight": (width, width),
            "attn.proj.bias": (width,),
            "mlp.fc1.weight": (HIDDEN, width),
            "mlp.fc1.bias": (HIDDEN,),
            "mlp.fc2.weight": (width, HIDDEN),
            "mlp.fc2.bias": (width,),
        }.items():
            shapes[f"blocks.{i}.{name}"] = shape
    if decoder:
        shapes |= {
            "mask_token": (1, 1, 8),
            "decoder_pos_embed": (1, 17, 8),
            "decoder_norm.weight": (8,),
            "decoder_blocks.0.attn.qkv.weight": (24, 8),
            "decoder_pred.bias": (75,),
        }
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def written(tmp_path, tensors):
    write_pth(tmp_path / "mae.pth", tensors)
    return tmp_path / "mae.pth"


@pytest.mark.parametrize("decoder", [False, True])
def test_the_encoder_is_taken_over_and_the_rest_is_fresh(tmp_path, decoder):
    tensors = mae_tensors(patch=SMALL.patch_size, grid=SMALL.grid, decoder=decoder)
    flat = flatten(load_mae(written(tmp_path, tensors), SMALL, key(3)))
    assert {name: x.shape for name, x in flat.items()} == own_shapes(SMALL)
    assert all(x.dtype == np.float32 for x in flat.values())
    encoder = "params/image_encoder"
    taken = {
        name
        for name in flat
        if name.startswith(encoder) and "rel_pos" not in name and "neck" not in name
    }
    assert len(taken) == 3 + 12 * 2
    for name in flat.keys() - taken:
        x, last = np.asarray(flat[name]), name.rsplit("/")[-1]
        if last in ("scale", "bias", "rel_pos_h", "rel_pos_w") or "upscale_bias" in last:
            assert (x == (last == "scale")).all(), name
        else:
            assert 0.001 < x.std() < 2, name
    t = tensors
    np.testing.assert_array_equal(
        flat[f"{encoder}/pos_embed"][0], t["pos_embed"][0, 1:].reshape(11, 11, C)
    )
    kernel = np.asarray(flat[f"{encoder}/patch_embed/kernel"]).reshape(7, 7, 3, C)
    np.testing.assert_array_equal(kernel.transpose(3, 2, 0, 1), t["patch_embed.proj.weight"])
    block = f"{encoder}/block_1"
    np.testing.assert_array_equal(flat[f"{block}/lin1/kernel"], t["blocks.1.mlp.fc1.weight"].T)
    np.testing.assert_array_equal(flat[f"{block}/norm2/scale"], t["blocks.1.norm2.weight"])
    np.testing.assert_array_equal(flat[f"{block}/attn/qkv/bias"], t["blocks.1.attn.qkv.bias"])


def test_positions_and_kernels_of_other_sizes_are_resized(tmp_path):
    tensors = mae_tensors(patch=5, grid=4)
    ramp = np.linspace(0, 1, 4, dtype=np.float32)
    tensors["pos_embed"][0, 1:, 0] = np.repeat(ramp, 4)  # rises downwards
    tensors["pos_embed"][0, 1:, 1] = 7.0
    tensors["patch_embed.proj.weight"][0, 1] = 3.0
    flat = flatten(load_mae(written(tmp_path, tensors), SMALL, key()))
    positions = np.asarray(flat["params/image_encoder/pos_embed"])[0]
    assert positions.shape == (11, 11, C)
    assert (np.diff(positions[2:-2, :, 0], axis=0) > 0).all()
    np.testing.assert_allclose(positions[:, 3, 0], positions[:, 9, 0], atol=1e-6)
    np.testing.assert_allclose(positions[..., 1], 7.0, rtol=1e-6)
    kernel = np.asarray(flat["params/image_encoder/patch_embed/kernel"]).reshape(7, 7, 3, C)
    np.testing.assert_allclose(kernel[:, :, 1, 0], 3.0, rtol=1e-6)


@pytest.mark.torch
def test_resizing_is_pytorchs(tmp_path):
    import torch

    tensors = mae_tensors(patch=5, grid=4)
    flat = flatten(load_mae(written(tmp_path, tensors), SMALL, key()))

    def resized(x, size):
        return torch.nn.functional.interpolate(
            torch.from_numpy(x), (size, size), mode="bicubic", align_corners=False
        ).numpy()

    want = resized(tensors["patch_embed.proj.weight"], 7).transpose(2, 3, 1, 0).reshape(-1, C)
    np.testing.assert_allclose(flat["params/image_encoder/patch_embed/kernel"], want, atol=1e-5)
    table = tensors["pos_embed"][:, 1:].reshape(1, 4, 4, C).transpose(0, 3, 1, 2)
    want = resized(np.ascontiguousarray(table), 11).transpose(0, 2, 3, 1)
    np.testing.assert_allclose(flat["params/image_encoder/pos_embed"], want, atol=1e-5)


def test_it_is_strict(tmp_path):
    tensors = mae_tensors()
    tensors["blocks.1.attn.qkv.bias"] = np.zeros(5, np.float32)
    tensors["head.weight"] = np.zeros((10, C), np.float32)
    tensors["blocks.2.norm1.bias"] = np.zeros(C, np.float32)
    del tensors["blocks.0.norm1.weight"]
    with pytest.raises(CheckpointError) as caught:
        load_mae(written(tmp_path, tensors), SMALL, key())
    error = caught.value
    assert error.missing == ("blocks.0.norm1.weight",)
    assert set(error.unused) == {"head.weight", "blocks.2.norm1.bias"}
    assert error.misshapen == (("blocks.1.attn.qkv.bias", "(108,)", "(5,)"),)
    with pytest.raises(CheckpointError) as caught:  # an encoder of another width
        load_mae(written(tmp_path, mae_tensors(width=12)), SMALL, key())
    assert len(caught.value.misshapen) == 3 + 12 * 2 - 2


@pytest.mark.parametrize(
    "tensors, match",
    [
        (
            {"fc.weight": np.zeros(3, np.float32)},
            "is no MAE encoder: expected patch_embed.proj.weight",
        ),
        (mae_tensors() | {"pos_embed": np.zeros((1, 16, C), np.float32)}, r"pos_embed: expected"),
    ],
)
def test_other_files(tmp_path, tensors, match):
    with pytest.raises(CheckpointError, match=match):
        load_mae(written(tmp_path, tensors), SMALL, key())
    with pytest.raises(ValueError, match="path: can't read .*none.pth: No such file"):
        load_mae(tmp_path / "none.pth", SMALL, key())


def test_the_same_key_gives_the_same_model(tmp_path):
    path = written(tmp_path, mae_tensors())
    first, second = (load_mae(path, SMALL, key(5)) for _ in range(2))
    assert_same_bits(first, second)


def test_a_training_run_begins_with_it(tmp_path):
    path = written(tmp_path, mae_tensors(patch=SMALL.patch_size, grid=SMALL.grid))
    stages = (Stage(1, 0, 1, 1),)
    config = TrainConfig(model=SMALL, stages=stages, init_encoder=str(path), seed=3)
    begun = flatten(starting_point(config)[1])
    expected = mae_tensors(patch=SMALL.patch_size, grid=SMALL.grid)["blocks.1.mlp.fc1.weight"].T
    np.testing.assert_array_equal(begun["params/image_encoder/block_1/lin1/kernel"], expected)
    both = dataclasses.replace(config, init_from="tiny")
    with pytest.raises(ValueError, match="init_encoder: expected alone"):
        starting_point(both)
