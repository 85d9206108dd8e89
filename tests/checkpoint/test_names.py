"""The table of names: round trips, orders of axes, inference of configs, strictness."""

import numpy as np
import pytest

from sam_jax.checkpoint import names, table
from sam_jax.checkpoint.infer import describe, infer_own, model_name, same_shapes
from sam_jax.checkpoint.names import (
    from_hf,
    from_own,
    from_torch,
    infer_config,
    shapes,
    to_hf,
    to_torch,
)
from sam_jax.checkpoint.strict import CheckpointError
from sam_jax.models.config import CONFIGS, VIT_B, VIT_L, VIT_TI
from tests.checkpoint.common import ODD, assert_same_bits, random_variables


@pytest.fixture(scope="module")
def variables():
    return random_variables(ODD)


def zeros(config, naming="released"):
    """Tensors of the right shapes that take no memory."""
    return {k: np.broadcast_to(np.float32(0), s) for k, s in shapes(config, naming).items()}


@pytest.mark.parametrize("to, back", [(to_torch, from_torch), (to_hf, from_hf)])
def test_round_trips_are_bit_equal(variables, to, back):
    assert_same_bits(back(to(variables), ODD), variables)


def test_the_table_has_every_array_once_and_every_foreign_name_once():
    for config in (ODD, VIT_TI, VIT_B):
        rows = table.rows(table.counts_of(config))
        assert {row.own for row in rows} == set(names.own_shapes(config))
        for column in ("released", "hf"):
            found = [name for row in rows for name in getattr(row, column)]
            assert len(found) == len(set(found))


def test_orders_of_axes(variables):
    flat, torch = names.flatten(variables), to_torch(variables)
    p = ODD.patch_size
    kernel = flat["params/image_encoder/patch_embed/kernel"].reshape(p, p, 3, -1)
    assert torch["image_encoder.patch_embed.proj.weight"][5, 2, 3, 1] == kernel[3, 1, 2, 5]
    kernel = flat["params/prompt_encoder/mask_conv2/kernel"].reshape(2, 2, 3, -1)
    assert torch["prompt_encoder.mask_downscaling.3.weight"][4, 2, 1, 0] == kernel[1, 0, 2, 4]
    kernel = flat["params/mask_decoder/upscale_conv1/kernel"].reshape(24, 2, 2, -1)
    assert torch["mask_decoder.output_upscaling.0.weight"][7, 3, 1, 0] == kernel[7, 1, 0, 3]
    kernel = flat["params/image_encoder/neck_conv2/kernel"]
    assert torch["image_encoder.neck.2.weight"][5, 4, 2, 0] == kernel[2, 0, 4, 5]
    kernel = flat["params/image_encoder/block_1/attn/qkv/kernel"]
    assert torch["image_encoder.blocks.1.attn.qkv.weight"][80, 7] == kernel[7, 80]
    assert torch["prompt_encoder.point_embeddings.2.weight"].shape == (1, 24)
    embeddings = flat["params/prompt_encoder/point_embeddings"]
    assert torch["prompt_encoder.point_embeddings.2.weight"][0, 9] == embeddings[2, 9]


@pytest.mark.parametrize("naming, parameters", [("released", 314), ("hf", 315)])
def test_vit_b_has_the_released_number_of_tensors(naming, parameters):
    assert len(shapes(VIT_B, naming)) == parameters


@pytest.mark.parametrize("name", sorted(CONFIGS.keys() - {"mobile_sam", "tiny"}))
@pytest.mark.parametrize("naming", ["released", "hf"])
def test_known_configs_are_inferred(name, naming):
    found = infer_config(zeros(CONFIGS[name], naming))
    assert found == CONFIGS[name]
    assert model_name(found) == name


def test_the_odd_config_is_inferred_but_for_the_decoders_heads():
    assert infer_config(zeros(ODD)) == ODD  # 12 channels divide into 4 heads, not into 8
    other = ODD.replace(decoder_heads=2, dtype="bfloat16", drop_path=0.1, remat=True)
    assert infer_config(zeros(other)) == ODD
    assert same_shapes(ODD, other)
    assert infer_own(zeros(ODD, "own")) == ODD


def test_windows_as_large_as_the_map_and_maps_without_global_blocks():
    whole = ODD.replace(window_size=ODD.grid)
    found = infer_config(zeros(whole))
    assert found.global_blocks == (0, 1, 2) and same_shapes(found, whole)
    windows_only = ODD.replace(global_blocks=())
    assert infer_config(zeros(windows_only)) == windows_only
    wide = ODD.replace(window_size=14)  # larger than the map of 11
    assert infer_config(zeros(wide)) == wide


def test_tables_of_three_lengths_are_no_model():
    tensors = zeros(ODD)
    tensors["image_encoder.blocks.2.attn.rel_pos_h"] = np.zeros((9, 12), np.float32)
    with pytest.raises(CheckpointError, match=r"lengths \[7, 9, 21\]"):
        infer_config(tensors)


def test_every_missing_unused_and_misshapen_tensor_is_named(variables):
    tensors = to_torch(variables)
    missing = [k for k in tensors if "blocks.0.mlp" in k] + ["mask_decoder.iou_token.weight"]
    for name in missing:
        del tensors[name]
    tensors |= {"image_encoder.norm.weight": np.ones(36), "extra": np.ones(3)}
    tensors["image_encoder.neck.0.weight"] = np.zeros((24, 36, 1, 2), np.float32)
    tensors["prompt_encoder.no_mask_embed.weight"] = np.zeros((1, 24), np.int64)
    with pytest.raises(CheckpointError) as caught:
        from_torch(tensors, ODD, "a.pth")
    error = caught.value
    assert sorted(error.missing) == sorted(missing)
    assert sorted(error.unused) == ["extra", "image_encoder.norm.weight"]
    assert [row[0] for row in error.misshapen] == [
        "image_encoder.neck.0.weight",
        "prompt_encoder.no_mask_embed.weight",
    ]
    text = str(error)
    for name in (*missing, *error.unused):
        assert f"  {name}\n" in text + "\n"
    assert "neck.0.weight: expected (24, 36, 1, 1), got (24, 36, 1, 2)" in text
    assert "no_mask_embed.weight: expected floating-point numbers, got int64" in text
    assert "5 missing, 2 unused, 2 misshapen" in error.summary and "\n" not in error.summary
    assert "missing (5: image_encoder 4, mask_decoder 1):" in text


@pytest.mark.parametrize(
    "naming, read",
    [
        ("released", from_torch),
        ("hf", from_hf),
        ("own", from_own),
    ],
)
def test_a_file_of_another_model_is_recognised(naming, read):
    with pytest.raises(CheckpointError, match="as vit_b: .*tensors look like vit_l") as caught:
        read(zeros(VIT_L, naming), VIT_B, "b.pth")
    assert len(caught.value.misshapen) > 100 and len(caught.value.unused) == 12 * 14
    with pytest.raises(CheckpointError, match="look like a model of width 36, depth 3, heads 3"):
        read(zeros(ODD, naming), VIT_B, "b.pth")


def test_float16_bfloat16_and_float64_become_float32(variables):
    import ml_dtypes

    for dtype in (np.float16, ml_dtypes.bfloat16, np.float64):
        tensors = {k: v.astype(dtype) for k, v in to_torch(variables).items()}
        back = names.flatten(from_torch(tensors, ODD))
        want = names.flatten(variables)
        for name, array in back.items():
            assert array.dtype == np.float32
            np.testing.assert_array_equal(array, want[name].astype(dtype).astype(np.float32))


def test_hugging_faces_twin_names(variables):
    tensors = to_hf(variables)
    assert tensors[table.HF_TWIN] is tensors[table.HF_GAUSSIAN]
    for left_out in (table.HF_TWIN, table.HF_GAUSSIAN):
        one = {k: v for k, v in tensors.items() if k != left_out}
        assert_same_bits(from_hf(one, ODD), variables)
        assert infer_config(one) == ODD
    tensors[table.HF_TWIN] = tensors[table.HF_TWIN] + 1
    with pytest.raises(CheckpointError, match="same matrix in every SAM, but differ"):
        from_hf(tensors, ODD)
    del tensors[table.HF_TWIN], tensors[table.HF_GAUSSIAN]
    with pytest.raises(CheckpointError) as caught:
        from_hf(tensors, ODD)
    assert caught.value.missing == (table.HF_GAUSSIAN,)


def test_a_text_head_has_no_name_elsewhere():
    config = ODD.replace(text_width=5)
    variables = random_variables(config)
    for to in (to_torch, to_hf):
        with pytest.raises(CheckpointError, match="text head has no PyTorch or Hugging Face form"):
            to(variables)
    assert_same_bits(from_own(names.flatten(variables), config), variables)
    assert infer_own(names.flatten(variables)) == config


def test_what_hugging_faces_class_lacks_is_refused():
    for change in ({"iou_head_depth": 1}, {"attention_downsample": 1, "embed_dim": 24}):
        with pytest.raises(CheckpointError, match=f"^{list(change)[0]}: Hugging Face"):
            to_hf(random_variables(ODD.replace(**change)))


def test_variables_that_are_no_whole_model():
    with pytest.raises(CheckpointError, match="expected {'params': ..., 'buffers': ...}"):
        to_torch({"encoder": {"kernel": np.zeros(3)}})
    variables = random_variables(ODD)
    del variables["params"]["image_encoder"]["block_1"]["lin1"]["bias"]
    with pytest.raises(CheckpointError) as caught:
        to_torch(variables)
    assert caught.value.missing == ("params/image_encoder/block_1/lin1/bias",)


def test_what_is_no_sam():
    for tensors in ({}, {"fc.weight": np.zeros((3, 3))}):
        with pytest.raises(CheckpointError, match="no Segment Anything checkpoint: it lacks"):
            infer_config(tensors)


def test_absurd_sizes_are_refused_before_anything_is_built():
    tensors = zeros(ODD)
    huge = np.broadcast_to(np.float32(0), (1 << 40, 36))
    tensors["image_encoder.blocks.0.mlp.lin1.weight"] = huge
    with pytest.raises(CheckpointError, match="encoder_mlp_ratio"):
        infer_config(tensors)


def test_a_config_is_described_in_words():
    assert describe(VIT_B) == "vit_b" and describe(VIT_B.replace(remat=True)) == "vit_b"
    assert "width 36, depth 3, heads 3, image size 77" in describe(ODD)
