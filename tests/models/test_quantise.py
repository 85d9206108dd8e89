"""Encoder weights in eight bits."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sam_jax
from sam_jax.checkpoint.load import save
from sam_jax.evaluation.models import open_model
from sam_jax.inference.compiled import _encode
from sam_jax.inference.predictor import Predictor
from sam_jax.models.quantise import is_quantised, quantise_encoder
from tests.benchmarks.options import photo_of
from tests.weights import unrounded

pytestmark = pytest.mark.optimised


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """The bundled model before its kernels were rounded, or what could have been it."""
    sam, path = sam_jax.load("tiny"), tmp_path_factory.mktemp("exact") / "exact.safetensors"
    save(dataclasses.replace(sam, params=unrounded(sam.params)), path)
    return path


@pytest.fixture(scope="module")
def rounded(path):
    return sam_jax.load(path, encoder_weights="int8")


def bytes_of(variables) -> int:
    return sum(x.nbytes for x in jax.tree.leaves(variables))


def test_kernels_are_rounded_by_column(path, rounded):
    exact = sam_jax.load(path)
    assert is_quantised(rounded.params) and not is_quantised(exact.params)
    blocks = [x.params["params"]["image_encoder"]["stage_2"]["block_3"] for x in (rounded, exact)]
    for layer in ("qkv", "proj", "lin1", "lin2"):
        ours, theirs = (b["attn"][layer] if layer in b["attn"] else b[layer] for b in blocks)
        assert ours["kernel"].dtype == jnp.int8
        np.testing.assert_array_equal(np.abs(ours["kernel"]).max(0), 127)
        error = np.abs(ours["kernel"] * ours["scale"] - theirs["kernel"])
        assert (error <= 0.51 * np.asarray(ours["scale"])).all()
        assert (error > 0.4 * np.asarray(ours["scale"])).any()
        np.testing.assert_array_equal(ours["bias"], theirs["bias"])
    whole, encoder = (
        [bytes_of(part(x.params)) for x in (rounded, exact)]
        for part in (lambda p: p, lambda p: p["params"]["image_encoder"])
    )
    # The neck is not rounded, nor are convolutions.
    assert encoder[0] < 0.38 * encoder[1] and whole[0] < whole[1]
    decoder = "mask_decoder"
    assert bytes_of(rounded.params["params"][decoder]) == bytes_of(exact.params["params"][decoder])


def test_a_column_of_zeros_stays_zero(rounded):
    variables = sam_jax.load("tiny").params
    changed = jax.tree.map(lambda x: x, variables)
    lin1 = changed["params"]["image_encoder"]["stage_1"]["block_0"]["lin1"]
    lin1["kernel"] = lin1["kernel"].at[:, 3].set(0)
    layer = quantise_encoder(changed)["params"]["image_encoder"]["stage_1"]["block_0"]["lin1"]
    assert not layer["kernel"][:, 3].any() and np.isfinite(layer["scale"]).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_masks_stay_nearly_the_same(path, dtype):
    photo, boxes = photo_of((600, 400)), [[150, 60, 450, 350], [20, 20, 300, 380]]
    masks = []
    for sam in (
        sam_jax.load(path),
        sam_jax.load(path, dtype=dtype, encoder_weights="int8"),
    ):
        predictor = Predictor(sam, cache=False)
        masks.append(np.asarray(predictor.predict(predictor.embed(photo), boxes_xyxy=boxes).masks))
    union, both = (masks[0] | masks[1]).sum(), (masks[0] & masks[1]).sum()
    assert union > 1000 and both / union > 0.97
    assert (masks[0] != masks[1]).any()  # the rounding is there


def test_wrong_uses_are_told(rounded, tmp_path):
    with pytest.raises(ValueError, match="encoder_weights: expected 'float32' or 'int8', got 8"):
        sam_jax.load("tiny", encoder_weights=8)
    for name in ("m.safetensors", "m.pth", "folder"):
        with pytest.raises(ValueError, match="its encoder is in int8"):
            save(rounded, tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_evaluation_opens_it_by_a_suffix():
    predictor, about = open_model("tiny@int8")
    assert is_quantised(predictor.compiled.variables) and about["model"] == "tiny@int8"
    assert about["weights"] != open_model("tiny")[1]["weights"]


def test_a_model_in_bfloat16_rounds_its_kernels_once(path):
    sam = sam_jax.load(path)
    sam = dataclasses.replace(sam, config=sam.config.replace(dtype="bfloat16"))
    compiled = Predictor(sam, cache=False).compiled
    held = compiled._encoder[0]["params"]["image_encoder"]["stage_2"]["block_3"]
    assert held["attn"]["qkv"]["kernel"].dtype == jnp.bfloat16
    assert held["local"]["kernel"].dtype == held["lin1"]["bias"].dtype == jnp.float32
    assert {x.dtype for x in jax.tree.leaves(compiled.variables)} == {jnp.dtype("float32")}
    photo = photo_of((512, 512))[None], np.array([[512, 512]], np.int32)
    expected = jax.jit(functools.partial(_encode, sam.config))(sam.params, *photo)
    np.testing.assert_array_equal(compiled.encode(*photo), expected)
