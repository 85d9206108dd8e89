"""Exported programs: the predictor's numbers where neither this package nor its others are."""

import dataclasses
import functools
import hashlib
import json
import os
import subprocess
import sys
import textwrap

import jax
import numpy as np
import pytest
from jax import export

from sam_jax import cli
from sam_jax.checkpoint.names import flatten
from sam_jax.inference.export import programs
from sam_jax.inference.predictor import Predictor
from sam_jax.models.prompt_encoder import Prompts
from sam_jax.models.quantise import quantise_encoder
from sam_jax.models.sam import SamModel, normalise
from tests.small import CONFIG, photo, small_sam

pytestmark = pytest.mark.optimised

pytest.importorskip("flatbuffers", reason="exported programs are written with flatbuffers")

ALONE = """
import importlib.machinery, importlib.metadata, sys
KNOWN = {"jax", "jaxlib", "numpy", "ml_dtypes", "opt_einsum", "scipy"}
OTHERS = {"sam_jax", *importlib.metadata.packages_distributions()} - KNOWN
class Closed:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in OTHERS:
            vendor = [place for place in sys.path if place.endswith("vendor")]
            if name.split(".")[0] != "flatbuffers" or not vendor:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)
            return importlib.machinery.PathFinder.find_spec(name, path or vendor)
sys.meta_path.insert(0, Closed())
"""
"""An environment that has jax, what jax needs, and numpy."""


def alone(folder, script, **options):
    """Runs a script where nothing but jax and numpy can be imported; what it printed."""
    found = subprocess.run(
        [sys.executable, "-c", ALONE + textwrap.dedent(script)],
        cwd=folder,
        text=True,
        capture_output=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        **options,
    )
    assert found.returncode == 0, found.stderr[-3000:]
    return found.stdout


@functools.cache
def sam(draws):
    return small_sam(CONFIG.replace(draw_boxes=draws))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A folder of programs, and the model in it, which draws boxes."""
    folder = tmp_path_factory.mktemp("exported")
    programs.write(folder, sam(True))
    return folder, sam(True)


PROMPTS = [
    {"points_xy": [[30, 20]]},
    {"points_xy": [[30, 20], [70, 40], [9.5, 11.25]], "labels": [1, 0, 1]},
    {"points_xy": [[3 * i, 2 * i] for i in range(9)]},
    {"box_xyxy": [10, 12.5, 60, 50]},
    {"box_xyxy": [10, 12.5, 60, 50], "points_xy": [[30, 20]], "labels": [0]},
]


@pytest.mark.parametrize(("hw", "draws"), [((64, 100), True), ((90, 47), False)])
def test_masks_are_the_predictors_bit_for_bit_without_this_package(exported, hw, draws, tmp_path):
    folder, model = exported
    if not draws:
        folder, model = tmp_path, sam(False)
        programs.write(folder, model)
    image = photo(hw)
    np.savez(tmp_path / "asked.npz", image=image)
    script = f"""
    import json, sys, numpy as np
    sys.path.insert(0, ".")
    from sam import Sam
    sam, found = Sam(), {{}}
    image = sam.embed(np.load({str(tmp_path / "asked.npz")!r})["image"])
    height, width = image["hw"]
    for k, prompt in enumerate(json.loads({json.dumps(PROMPTS)!r})):
        if "points_xy" in prompt:
            prompt["points_xy"] = np.minimum(prompt["points_xy"], [width - 1, height - 1])
        for name, x in zip(("masks", "scores", "logits"), sam.predict(image, **prompt)):
            found[f"{{name}}{{k}}"] = x
    again = sam.predict(image, [[5, 6]], mask_logits=found["logits4"][0])
    found |= zip(("masks5", "scores5", "logits5"), again)
    np.savez({str(tmp_path / "found.npz")!r}, **found)
    assert not [name for name in sys.modules if name.startswith(("flax", "sam_jax", "PIL"))]
    """
    alone(folder, script)
    found = np.load(tmp_path / "found.npz")
    predictor = Predictor(model, cache=False)
    embedding = predictor.embed(image)
    for k, prompt in enumerate(PROMPTS):
        own = dict(prompt)
        if "points_xy" in own:
            own["points_xy"] = np.minimum(own["points_xy"], [hw[1] - 1, hw[0] - 1])
        if "box_xyxy" in own:
            own["boxes_xyxy"] = own.pop("box_xyxy")
        out = predictor.predict(embedding, **own)
        assert len(out.masks) == (3 if k in (0, 3) else 1)
        for name in ("masks", "scores", "logits"):
            np.testing.assert_array_equal(found[f"{name}{k}"], getattr(out, name), f"{name} {k}")
    again = predictor.predict(embedding, [[5, 6]], mask_logits=out.logits[0])
    np.testing.assert_array_equal(found["masks5"], again.masks)
    np.testing.assert_array_equal(found["logits5"], again.logits)


def run(folder, name, *args):
    manifest = json.loads((folder / "manifest.json").read_text())
    data = (folder / manifest["programs"][name]["file"]).read_bytes()
    return jax.jit(export.deserialize(bytearray(data)).call)(*args)


def test_any_numbers_of_images_and_prompts(exported):
    folder, model = exported
    weights = dict(np.load(folder / "weights.npz"))
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 64, 64, 3)).astype(np.uint8)
    hw = np.array([[64, 50], [33, 64]], np.int32)
    features, *parts = run(folder, "encoder", weights, images, hw)
    expected = SamModel(model.config).apply(model.params, normalise(images, hw), method="encode")
    np.testing.assert_allclose(features, expected, atol=1e-4)
    points = rng.uniform(0, 64, (2, 3, 7, 2)).astype(np.float32)
    labels = rng.choice([0, 1, -1, -2], (2, 3, 7)).astype(np.int32)
    labels[..., 0] = 1
    masks = rng.normal(0, 5, (2, 3, 16, 16)).astype(np.float32)
    has = np.array([[True, False, True], [False, True, True]])
    for name, prompts, more in (
        ("decoder-7", Prompts(points, labels), parts),
        ("decoder-mask-7", Prompts(points, labels, masks, has), (masks, has)),
    ):
        out = run(folder, name, weights, points, labels, features, *more)
        wanted = SamModel(model.config).apply(model.params, expected, prompts, method="decode")
        for x, y in zip(out, wanted, strict=True):
            np.testing.assert_allclose(x, y, atol=2e-4)


def test_the_manifest_names_every_file_with_its_hash_and_every_array(exported):
    folder, model = exported
    manifest = json.loads((folder / "manifest.json").read_text())
    files = {one["file"]: one for one in (*manifest["programs"].values(), manifest["weights"])}
    assert set(files) == {p.name for p in folder.iterdir()} - {
        *("manifest.json", "README.md", "sam.py", "vendor")
    }
    for name, one in files.items():
        data = (folder / name).read_bytes()
        assert one["sha256"] == hashlib.sha256(data).hexdigest() and one["bytes"] == len(data)
    for name, one in manifest["programs"].items():
        made = export.deserialize(bytearray((folder / one["file"]).read_bytes()))
        assert made.platforms == ("cpu", "cuda", "tpu")
        arrays = [str(x.dtype) for x in made.in_avals[-len(one["inputs"]) :]]
        assert arrays == [x["dtype"] for x in one["inputs"]], name
        for table, aval in zip(one["outputs"], made.out_avals, strict=True):
            assert table["shape"] == [n if isinstance(n, int) else str(n) for n in aval.shape]
            assert table["dtype"] == str(aval.dtype)
    flat = flatten(model.params)
    assert manifest["weights"]["arrays"] == {
        name: ["float32", list(x.shape)] for name, x in flat.items()
    }
    assert bool(manifest["draw_boxes"]) == model.config.draw_boxes


def test_the_twenty_lines_of_the_readme_run(exported):
    folder, _ = exported
    blocks = (folder / "README.md").read_text().split("```python\n")[1:]
    lines = blocks[1].split("```")[0]
    assert len([line for line in lines.splitlines() if line.strip()]) <= 20
    out = alone(folder, lines + "\nprint(logits.shape, iou.shape)")
    assert out.strip() == "(1, 1, 4, 16, 16) (1, 1, 4)"


@pytest.mark.parametrize(
    ("weights", "precision"),
    [("inside", "float32"), ("inside", "int8"), ("beside", "float16"), ("beside", "int8")],
)
def test_other_ways_to_keep_weights(weights, precision, tmp_path, monkeypatch):
    monkeypatch.setattr(programs, "SLOTS", (3,))
    model = sam(True)
    plain = Predictor(model, cache=False)
    if precision == "int8":
        changed = dataclasses.replace(model, params=quantise_encoder(model.params))
    elif precision == "float16":
        narrow = jax.tree.map(lambda x: np.asarray(x, np.float16).astype(np.float32), model.params)
        changed = dataclasses.replace(model, params=narrow)
    else:
        changed = model
    programs.write(tmp_path, model, weights=weights, precision=precision)
    assert (tmp_path / "weights.npz").exists() == (weights == "beside")
    sys.path.insert(0, str(tmp_path))
    try:
        sys.modules.pop("sam", None)
        from sam import Sam
    finally:
        sys.path.remove(str(tmp_path))
    found, image = Sam(tmp_path), photo((50, 64))
    _, scores, logits = found.predict(found.embed(image), [[20, 30]])
    out = Predictor(changed, cache=False)
    out = out.predict(out.embed(image), [[20, 30]])
    np.testing.assert_allclose(logits, out.logits, atol=1e-4)
    np.testing.assert_allclose(scores, out.scores, atol=1e-4)
    same = np.array_equal(logits, plain.predict(plain.embed(image), [[20, 30]]).logits)
    assert same == (precision == "float32") or weights == "inside"


def test_without_weights_they_come_from_the_caller(tmp_path, monkeypatch):
    monkeypatch.setattr(programs, "SLOTS", (3,))
    model = sam(False)
    manifest = programs.write(tmp_path, model, weights="none")
    assert not (tmp_path / "weights.npz").exists() and manifest["weights"]["file"] is None
    weights = flatten(model.params)
    assert {k: list(x.shape) for k, x in weights.items()} == {
        k: shape for k, (_, shape) in manifest["weights"]["arrays"].items()
    }
    features, *_ = run(
        tmp_path,
        "encoder",
        weights,
        np.zeros((1, 64, 64, 3), np.uint8),
        np.full((1, 2), 64, np.int32),
    )
    assert features.shape == (1, 4, 4, 32)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("sam", None)
    from sam import Sam

    with pytest.raises(ValueError, match="weights: the folder has none"):
        Sam(tmp_path)
    image = Sam(tmp_path, weights).embed(photo((50, 64)))
    assert image["features"].shape == (1, 4, 4, 32)


def test_wrong_input_is_one_sentence(tmp_path, capsys, monkeypatch):
    def said(*arguments):
        assert cli.main(["export", *arguments]) == 2
        return capsys.readouterr().err

    out = str(tmp_path / "out")
    assert "--out: expected a folder" in said()
    assert "image_size: expected a positive multiple of the patch size 16, got 100" in said(
        "--out", out, "--image-size", "100"
    )
    assert "precision: float16 is how a file is stored" in said(
        "--out", out, "--weights", "inside", "--precision", "float16"
    )
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").touch()
    assert "is a folder that is not empty" in said("--out", str(tmp_path / "full"))
    monkeypatch.setattr(programs.importlib.util, "find_spec", lambda name: None)
    assert "needs the package flatbuffers: pip install 'sam_jax[export]'" in said("--out", out)
    assert not os.path.exists(out)
