"""The ONNX files, run by onnxruntime, against the model. Needs jax2onnx: pip install '.[onnx]'."""

import functools

import jax
import numpy as np
import pytest

from sam_jax import cli
from sam_jax.inference.export import onnx_files
from sam_jax.inference.export.signatures import signatures
from sam_jax.inference.predictor import Predictor, frames
from sam_jax.models.quantise import quantise_encoder
from tests.small import CONFIG, photo, small_sam

pytestmark = [pytest.mark.onnx, pytest.mark.optimised]
onnxruntime = pytest.importorskip("onnxruntime", reason="needs onnxruntime and jax2onnx")
pytest.importorskip("jax2onnx", reason="needs jax2onnx: pip install 'sam_jax[onnx]'")


@functools.cache
def sam():
    return small_sam(CONFIG.replace(image_size=128))


def feeds(one, seed=0):
    """Random arrays for a Signature of one image and one prompt."""
    rng = np.random.default_rng(seed)
    found = {}
    for table in one.inputs:
        name, shape = table["name"], table["shape"]
        if name == "images":
            found[name] = frames([photo((100, 120))], shape[1])[0]
        elif name == "input_hw":
            found[name] = np.array([[107, 128]], np.int32)
        elif name == "labels":
            found[name] = np.array([[[1, 0, 2, 3, *[-2] * (shape[2] - 4)]]], np.int32)
        elif name == "points":
            found[name] = rng.uniform(0, 100, shape).astype(np.float32)
        elif name == "has_mask":
            found[name] = np.ones(shape, bool)
        else:
            found[name] = rng.normal(size=shape).astype(np.float32)
    return found


@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
def test_onnxruntime_computes_what_the_model_does(precision, tmp_path):
    params = sam().params
    if precision == "int8":
        params = quantise_encoder(params)
    if precision == "float16":
        params = jax.tree.map(
            lambda x: x.astype(np.float16).astype(np.float32) if x.size >= 256 else x, params
        )
    written = onnx_files.write(tmp_path, sam(), precision=precision)
    assert set(written) == {"encoder.onnx", "decoder.onnx", "decoder-mask.onnx"}
    for file, one in written.items():
        session = onnxruntime.InferenceSession(tmp_path / file)
        assert [x.name for x in session.get_inputs()] == [x["name"] for x in one.inputs]
        assert [x.name for x in session.get_outputs()] == [x["name"] for x in one.outputs]
        fed = feeds(one)
        wanted = jax.jit(one.function)(params, *fed.values())
        found = session.run(None, fed)
        for table, x, y in zip(one.outputs, found, wanted, strict=True):
            assert list(x.shape) == table["shape"]
            np.testing.assert_allclose(x, y, atol=2e-4, err_msg=f"{file} {table['name']}")


def test_narrow_weights_make_small_files(tmp_path):
    sizes = {}
    for precision in ("float32", "float16", "int8"):
        folder = tmp_path / precision
        folder.mkdir()
        onnx_files.write(folder, sam(), precision=precision)
        sizes[precision] = (folder / "encoder.onnx").stat().st_size
    assert sizes["float16"] < 0.85 * sizes["float32"] and sizes["int8"] < 0.95 * sizes["float32"]


def test_a_large_models_weights_lie_beside_it(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_files, "APART", 1000)
    written = onnx_files.write(tmp_path, sam())
    assert (tmp_path / "encoder.onnx.data").exists()
    one = written["encoder.onnx"]
    fed = feeds(one)
    found = onnxruntime.InferenceSession(tmp_path / "encoder.onnx").run(None, fed)
    wanted = jax.jit(one.function)(sam().params, *fed.values())
    np.testing.assert_allclose(found[0], wanted[0], atol=1e-4)


def test_the_bundled_models_masks_on_a_photo(tmp_path):
    assert cli.main(["export", "--out", str(tmp_path / "out"), "--onnx"]) == 0
    import sam_jax

    predictor = Predictor(sam_jax.load("tiny"), cache=False)
    side = predictor.image_size
    image = photo((300, 400))
    session = {
        name: onnxruntime.InferenceSession(tmp_path / "out" / f"{name}.onnx")
        for name in ("encoder", "decoder")
    }
    pixels, hw = frames([image], side)
    names = [x.name for x in session["encoder"].get_outputs()]
    parts = dict(
        zip(names, session["encoder"].run(None, {"images": pixels, "input_hw": hw}), strict=True)
    )
    points = np.zeros((1, 1, onnx_files.SLOTS, 2), np.float32)
    points[0, 0, 0] = np.array([200, 150]) * (hw[0, 1] / 400, hw[0, 0] / 300)
    labels = np.array([[[1, -1, *[-2] * (onnx_files.SLOTS - 2)]]], np.int32)
    fed = {"points": points, "labels": labels, **parts}
    logits, iou = session["decoder"].run(None, fed)
    out = predictor.predict(predictor.embed(image), [[200, 150]])
    np.testing.assert_allclose(logits[0, 0, 1:], out.logits, atol=2e-3)
    np.testing.assert_allclose(iou[0, 0, 1:], out.scores, atol=1e-4)


def test_the_signatures_are_those_of_any_model():
    found = signatures(CONFIG, sam().params, 64, 3)
    assert found["decoder"].inputs[3:] == found["encoder"].outputs[1:]
