"""MobileSAM's file: its encoder beside PyTorch's layers, its decoder, what is refused."""

import jax
import numpy as np
import pytest

from sam_jax.checkpoint.load import load
from sam_jax.checkpoint.mobile_sam import DECODER, is_mobile_sam_file, read_mobile_sam
from sam_jax.checkpoint.names import to_torch
from sam_jax.checkpoint.pth import write_pth
from sam_jax.checkpoint.strict import CheckpointError
from sam_jax.models.tiny_vit import tiny_vit
from tests.mobile_sam import embed, tensors
from tests.small import variables


@pytest.fixture(scope="module")
def made():
    return tensors()


@pytest.fixture(scope="module")
def file(made, tmp_path_factory):
    path = tmp_path_factory.mktemp("mobile") / "mobile_sam.pt"
    write_pth(path, made)
    return path


@pytest.mark.torch
def test_the_encoder_gives_what_pytorchs_layers_give(made, file):
    params, _ = read_mobile_sam(file)
    # 10 x 13 cells: windows of 7 and 14 stick out on both sides.
    images = np.random.default_rng(1).standard_normal((2, 160, 208, 3)).astype(np.float32)
    want = embed(made, images)
    got = np.asarray(jax.jit(tiny_vit)(params, images))
    assert got.shape == (2, 10, 13, 256)
    assert np.abs(got - want).max() < 1e-4 * np.abs(want).max()
    rough = np.asarray(jax.jit(lambda p, x: tiny_vit(p, x, "bfloat16"))(params, images))
    assert 0 < np.abs(rough - want).mean() < 0.03 * np.abs(want).mean()


def test_the_decoder_is_a_sams(made, file):
    _, decoder = read_mobile_sam(file)
    assert set(decoder["params"]) == {"prompt_encoder", "mask_decoder"}
    whole = variables(DECODER)
    encoder = {"image_encoder": whole["params"]["image_encoder"]}
    again = to_torch(decoder | {"params": decoder["params"] | encoder})
    for name, tensor in made.items():
        if not name.startswith("image_encoder."):
            np.testing.assert_array_equal(again[name], tensor)


def test_other_files_are_told_apart_and_refused(made, file, tmp_path):
    assert is_mobile_sam_file(file)
    assert not is_mobile_sam_file(tmp_path / "none.pt")
    other = tmp_path / "other.pth"
    write_pth(other, to_torch(variables()))
    assert not is_mobile_sam_file(other)
    with pytest.raises(CheckpointError, match="is no MobileSAM"):
        read_mobile_sam(other)
    strange = tmp_path / "strange.pt"
    write_pth(strange, made | {"image_encoder.layers.9.weight": np.ones(3, np.float32)})
    with pytest.raises(CheckpointError, match=r"layers\.9"):
        read_mobile_sam(strange)
    less = {n: x for n, x in made.items() if "layers.2.blocks.5" not in n and "qkv.bias" not in n}
    less["image_encoder.neck.1.weight"] = np.ones(255, np.float32)
    write_pth(strange, less)
    with pytest.raises(CheckpointError, match="MobileSAM's encoder") as caught:
        read_mobile_sam(strange)
    assert "neck.1.weight" in caught.value.misshapen[0]
    assert "layers.2.blocks.5.mlp.fc1.weight" in caught.value.missing
    assert "layers.1.blocks.0.attn.qkv.bias" in caught.value.missing
    write_pth(strange, {n: x for n, x in made.items() if "iou_prediction_head" not in n})
    with pytest.raises(CheckpointError, match="iou_prediction_head"):
        read_mobile_sam(strange)
    with pytest.raises(CheckpointError, match="MobileSAM"):
        load(file)
