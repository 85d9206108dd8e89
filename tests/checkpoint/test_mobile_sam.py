"""MobileSAM's file: its encoder beside PyTorch's layers, its decoder, what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sam_jax.checkpoint.fetch import RELEASED, Released, sha256
from sam_jax.checkpoint.infer import describe
from sam_jax.checkpoint.load import load, save
from sam_jax.checkpoint.mae import from_mae
from sam_jax.checkpoint.names import shapes, to_torch
from sam_jax.checkpoint.pth import read_pth, write_pth
from sam_jax.checkpoint.strict import CheckpointError
from sam_jax.compat import sam_model_registry
from sam_jax.inference.generator import MaskGenerator
from sam_jax.inference.predictor import Predictor
from sam_jax.models.config import MOBILE_SAM, TINY, VIT_B
from sam_jax.models.sam import SamModel, init
from sam_jax.training.config import LoraConfig
from sam_jax.training.flops import encoder_flops
from sam_jax.training.lora import adapted_paths
from sam_jax.training.optim import make_optimizer
from sam_jax.training.scratch import structured_start
from sam_jax.training.sharding import make_mesh, state_shardings
from sam_jax.training.step import init_state, make_step
from tests.mobile_sam import embed, tensors
from tests.small import variables
from tests.training.test_step import CONFIG, SMALL, STAGE, make_batch
from train.compile_check import resolved
from train.start import starting_point, with_image_sizes


@pytest.fixture(scope="module")
def made():
    return tensors()


@pytest.fixture(scope="module")
def file(made, tmp_path_factory):
    path = tmp_path_factory.mktemp("mobile") / "mobile_sam.pt"
    write_pth(path, made)
    return path


@pytest.fixture(scope="module")
def sam(file):
    return load(file)


def encoded(sam, images):
    return np.asarray(
        jax.jit(lambda v, x: sam.model.apply(v, x, method="encode"))(sam.params, images)
    )


@pytest.mark.torch
def test_the_encoder_gives_what_pytorchs_layers_give(made, file, sam):
    # 10 x 13 cells: windows of 7 and 14 stick out on both sides.
    images = np.random.default_rng(1).standard_normal((2, 160, 208, 3)).astype(np.float32)
    want = embed(made, images)
    got = encoded(sam, images)
    assert got.shape == (2, 10, 13, 256)
    assert np.abs(got - want).max() < 1e-4 * np.abs(want).max()
    rough = encoded(load(file, dtype="bfloat16"), images)
    assert 0 < np.abs(rough - want).mean() < 0.03 * np.abs(want).mean()


def test_nothing_but_what_is_folded_in_is_lost(made, sam):
    folded = ("norm_head", "head.", "running_", "num_batches", "bn.weight")
    kept = [
        x.size
        for name, x in made.items()
        if name.startswith("image_encoder.") and not any(part in name for part in folded)
    ]
    assert sum(x.size for x in jax.tree.leaves(sam.params["params"]["image_encoder"])) == sum(kept)


def test_the_decoder_is_a_sams(made, sam):
    assert sam.config == MOBILE_SAM
    whole = variables(VIT_B.replace(encoder_depth=1, global_blocks=(0,)))
    decoder = {k: x for k, x in sam.params["params"].items() if k != "image_encoder"}
    again = to_torch(sam.params | {"params": whole["params"] | decoder})
    for name, tensor in made.items():
        if not name.startswith("image_encoder."):
            np.testing.assert_array_equal(again[name], tensor)


def test_it_is_a_model_like_any_other(sam, file, tmp_path):
    """Masks of a prompt and of everything, own files, the released names of its package."""
    photo = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    predictor = Predictor(sam, image_size=64)
    found = predictor.predict(predictor.embed(photo), points_xy=[[20, 20]])
    assert found.masks.shape == (3, 48, 64) and found.scores.shape == (3,)
    generator = MaskGenerator(
        predictor, points_per_side=2, pred_iou_thresh=-10.0, stability_score_thresh=0.0
    )
    assert generator.generate(photo)
    save(sam, tmp_path / "own.safetensors")
    save(sam, tmp_path / "orbax")
    for path in (tmp_path / "own.safetensors", tmp_path / "orbax"):
        again = load(path)
        assert again.config == MOBILE_SAM and again.name == "mobile_sam"
        jax.tree.map(np.testing.assert_array_equal, again.params, dict(sam.params))
    assert sam_model_registry["vit_t"](file).config == MOBILE_SAM


def test_its_encoder_is_exported_for_any_number_of_photos(sam):
    encode = jax.jit(lambda v, x: sam.model.apply(v, x, method="encode"))
    some = jax.export.symbolic_shape("photos, 64, 64, 3")
    exported = jax.export.export(encode)(sam.params, jax.ShapeDtypeStruct(some, np.float32))
    photos = np.random.default_rng(0).standard_normal((2, 64, 64, 3)).astype(np.float32)
    got = jax.jit(exported.call)(sam.params, photos)
    np.testing.assert_allclose(got, encode(sam.params, photos), atol=1e-5)


def test_fresh_ones_keep_what_they_see():
    params = init(MOBILE_SAM, jax.random.key(0))["params"]["image_encoder"]
    for kernel in (params["stage_1"]["block_0"]["local"], params["stage_0"]["merge"]["depthwise"]):
        assert kernel["kernel"].std() == pytest.approx((2 / 9) ** 0.5, rel=0.1)


def test_it_is_fetched_and_found_by_name(file, sam, monkeypatch, tmp_path):
    monkeypatch.setenv("SAM_JAX_CACHE", str(tmp_path))
    known = Released(RELEASED["mobile_sam"].url, sha256(file))
    monkeypatch.setitem(RELEASED, "mobile_sam", known)
    (tmp_path / "mobile_sam.pt").write_bytes(file.read_bytes())
    found = load("mobile_sam")
    assert found.config == MOBILE_SAM and (tmp_path / "mobile_sam.safetensors").is_file()
    jax.tree.map(np.testing.assert_array_equal, dict(found.params), dict(sam.params))


def test_adapters_and_devices_find_their_places(sam):
    adapters = LoraConfig(rank=2)
    paths = adapted_paths(sam.params["params"], adapters)
    assert sum("image_encoder" in path for path in paths) == 2 * (2 + 6 + 2)
    mesh = make_mesh(2, jax.devices()[:2])
    encoder = sam.params["params"]["image_encoder"]
    whole = [
        x.size
        for x, placed in zip(
            jax.tree.leaves(encoder),
            jax.tree.leaves(state_shardings(mesh, {"params": {"image_encoder": encoder}})),
            strict=True,
        )
        if placed.is_fully_replicated
    ]
    assert sum(whole) < 0.03 * sum(x.size for x in jax.tree.leaves(encoder))


def test_a_run_can_begin_with_it(file):
    config = dataclasses.replace(
        CONFIG, init_from=str(file), optim=dataclasses.replace(CONFIG.optim, layer_decay=0.8)
    )
    sized = resolved(config).model
    config, start, _ = starting_point(config)
    assert config.model == sized
    assert config.model.encoder == "tiny_vit" and config.model.image_size == STAGE.image_size
    left_out = dataclasses.replace(STAGE, steps=0, image_size=96)
    resized = with_image_sizes(dataclasses.replace(config, stages=(STAGE, left_out)))
    assert resized.model == config.model
    stage = dataclasses.replace(STAGE, corrective_clicks=0, mask_only_rounds=0)
    optimizer = make_optimizer(config.optim, config.model, 10)
    state = init_state(jax.tree.map(jnp.copy, start), optimizer, True)
    state, metrics = make_step(config, stage, optimizer)(state, make_batch(), jax.random.key(1))
    assert np.isfinite(metrics["loss"])
    before, after = (p["image_encoder"] for p in (start["params"], state.params))
    for part in ("stem_0", "stage_0", "stage_3", "neck_conv2"):
        moved = jax.tree.map(lambda a, b: bool((a != b).any()), before[part], after[part])
        assert all(jax.tree.leaves(moved)), moved


def test_other_files_are_told_apart_and_refused(made, file, tmp_path):
    other = tmp_path / "other.pth"
    write_pth(other, to_torch(variables()))
    assert load(other).config.encoder == "vit"
    with pytest.raises(CheckpointError, match="expected mobile_sam, got a model of width"):
        load(other, config=MOBILE_SAM)
    with pytest.raises(CheckpointError, match="expected vit_b, got mobile_sam"):
        load(file, config=VIT_B)
    # No parameter depends on these.
    assert load(file, config=MOBILE_SAM.replace(image_size=512)).config.image_size == 512
    narrow = MOBILE_SAM.replace(embed_dim=128)
    with pytest.raises(CheckpointError, match="MobileSAM's encoder, embedding width 128"):
        load(file, config=narrow)
    strange = tmp_path / "strange.pt"
    write_pth(strange, made | {"image_encoder.layers.9.weight": np.ones(3, np.float32)})
    with pytest.raises(CheckpointError, match=r"layers\.9"):
        load(strange)
    less = {n: x for n, x in made.items() if "layers.2.blocks.5" not in n and "qkv.bias" not in n}
    less["image_encoder.neck.1.weight"] = np.ones(255, np.float32)
    write_pth(strange, less)
    with pytest.raises(CheckpointError, match="MobileSAM's encoder") as caught:
        load(strange)
    assert "neck.1.weight" in caught.value.misshapen[0]
    assert "layers.2.blocks.5.mlp.fc1.weight" in caught.value.missing
    assert "layers.1.blocks.0.attn.qkv.bias" in caught.value.missing
    write_pth(strange, {n: x for n, x in made.items() if "iou_prediction_head" not in n})
    with pytest.raises(CheckpointError, match="iou_prediction_head"):
        load(strange)


def test_mobile_sams_own_form_gives_the_same_bits_again(made, sam, tmp_path):
    save(sam, tmp_path / "again.pth")
    again = load(tmp_path / "again.pth")
    assert again.config == MOBILE_SAM
    jax.tree.map(np.testing.assert_array_equal, again.params, dict(sam.params))
    written = read_pth(tmp_path / "again.pth")
    assert {k: x.shape for k, x in written.items()} == {k: x.shape for k, x in made.items()}
    assert (written["image_encoder.layers.0.blocks.0.conv1.bn.running_mean"] == 0).all()
    narrow = init(MOBILE_SAM.replace(decoder_mlp_width=64), jax.random.key(0))
    with pytest.raises(CheckpointError, match="lin1/kernel"):
        to_torch(narrow)
    encoder = sam.params["params"]["image_encoder"]
    for other, named in (
        ({k: x for k, x in encoder.items() if k != "neck_norm2"}, "neck_norm2/scale"),
        (encoder | {"stage_9": {"kernel": np.ones(3)}}, "stage_9/kernel"),
    ):
        params = sam.params | {"params": sam.params["params"] | {"image_encoder": other}}
        with pytest.raises(CheckpointError, match=named):
            to_torch(params)


@pytest.mark.torch
def test_pytorchs_layers_give_the_same_of_what_was_written(sam):
    images = np.random.default_rng(2).standard_normal((1, 64, 96, 3)).astype(np.float32)
    want = encoded(sam, images)
    assert np.abs(embed(to_torch(sam.params), images) - want).max() < 1e-4 * np.abs(want).max()


def test_its_linear_layers_can_have_eight_bits(file, sam):
    images = np.random.default_rng(3).standard_normal((1, 64, 64, 3)).astype(np.float32)
    want, got = encoded(sam, images), encoded(load(file, encoder_weights="int8"), images)
    assert 0 < np.abs(got - want).mean() < 0.05 * np.abs(want).mean()


def test_an_own_file_says_its_image_size_to_the_registry_too(sam, tmp_path):
    config = sam.config.replace(image_size=512)
    save(
        dataclasses.replace(sam, config=config, model=SamModel(config)), tmp_path / "m.safetensors"
    )
    for name in ("vit_t", "tiny"):
        assert sam_model_registry[name](tmp_path / "m.safetensors").config == config
    save(sam, tmp_path / "n.safetensors")
    assert sam_model_registry["tiny"](tmp_path / "n.safetensors").config == sam.config


def test_which_of_the_two_it_is_shows_in_the_image_size():
    assert describe(MOBILE_SAM) == "mobile_sam" and describe(TINY) == "tiny"
    assert describe(TINY.replace(image_size=768)) == "mobile_sam"


def test_what_only_a_vit_has_is_refused(sam, file, tmp_path):
    with pytest.raises(CheckpointError, match="MobileSAM's encoder is another"):
        save(sam, tmp_path / "hf", "hf")
    with pytest.raises(CheckpointError, match="MobileSAM's encoder is another"):
        shapes(MOBILE_SAM)
    with pytest.raises(CheckpointError, match="MAE"):
        from_mae({}, MOBILE_SAM, jax.random.key(0))
    with pytest.raises(ValueError, match="structured_start"):
        structured_start(sam.params, MOBILE_SAM)
    asked = {"patch_size": 8, "drop_path": 0.1, "remat": True, "scan_blocks": True}
    for field, value in asked.items():
        with pytest.raises(ValueError, match=field):
            MOBILE_SAM.replace(**{field: value})
    small = dataclasses.replace(CONFIG, init_from=str(file), model=SMALL.replace(drop_path=0.1))
    with pytest.raises(ValueError, match="init_from: drop_path.*--model.drop-path 0"):
        starting_point(small)
    with pytest.raises(ValueError, match="encoder: expected"):
        TINY.replace(encoder="resnet")
    with pytest.raises(ValueError, match="multiples of 16"):
        encoded(sam, np.zeros((1, 40, 48, 3), np.float32))


def test_the_arithmetic_is_what_xla_counts(sam):
    """But for depthwise convolutions and everything elementwise."""
    small = jax.ShapeDtypeStruct((1, 224, 224, 3), np.float32)
    encode = jax.jit(lambda v, x: sam.model.apply(v, x, method="encode"))
    counted = encode.lower(sam.params, small).compile().cost_analysis()["flops"]
    assert 0.75 < encoder_flops(sam.config, 224) / counted <= 1
