"""The command: its outputs, and one clear sentence for whatever is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import sam_jax
from sam_jax import cli
from sam_jax.checkpoint.load import load, save
from sam_jax.inference import segment
from sam_jax.inference.predictor import Predictor
from sam_jax.ops import rle
from sam_jax.ops.masks import mask_boxes
from tests.small import photo, reading_sam, small_sam

H, W = 60, 90


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with a photo and a small model."""
    folder = tmp_path_factory.mktemp("cli")
    Image.fromarray(photo((H, W))).save(folder / "photo.png")
    save(small_sam(), folder / "small.safetensors")
    return folder


@pytest.fixture
def call(folder, tmp_path, monkeypatch, capsys):
    """Runs `sam-jax segment ARGUMENTS` in an empty folder: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SAM_JAX_TRACEBACK", raising=False)

    def call(*arguments, model: str = "small.safetensors"):
        arguments = [str(a) for a in arguments]
        if "--model" not in arguments:
            arguments += ["--model", str(folder / model)]
        try:
            code = cli.main(["segment", *arguments])
        except SystemExit as stop:  # argparse
            code = stop.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def read(path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_words(call, tmp_path, folder):
    sam = reading_sam()
    save(sam, folder / "reading.safetensors")
    phrase = "the red circle"
    code, out, _ = call(folder / "photo.png", "--text", phrase, model="reading.safetensors")
    assert code == 0 and '"the red circle": 3 candidates, best first' in out
    (prompt,) = json.loads((tmp_path / "masks.json").read_text())["prompts"]
    assert prompt["text"] == phrase
    predictor = Predictor(sam, cache=False)
    wanted = predictor.predict(predictor.embed(photo((H, W))), text=phrase)
    for record, mask in zip(prompt["masks"], wanted.masks, strict=True):
        np.testing.assert_array_equal(rle.decode(record["segmentation"]), mask)
    two = ("--text", phrase, "--text", "a green square")
    code, out, _ = call(folder / "photo.png", *two, model="reading.safetensors")
    assert code == 0 and 'prompt 2, "a green square": 3 candidates' in out
    clicked = ("--text", phrase, "--not-point", 5, 6)
    code, out, _ = call(folder / "photo.png", *clicked, model="reading.safetensors")
    assert code == 0 and 'point (5, 6) and "the red circle": 1 mask' in out
    Path("prompts.json").write_text(
        '[{"text": "a circle", "points": [[3, 4]]}, {"box": [1, 2, 30, 40]}]'
    )
    code, out, _ = call(
        folder / "photo.png", "--prompts", "prompts.json", model="reading.safetensors"
    )
    assert code == 0 and 'prompt 1, point (3, 4) and "a circle": 1 mask' in out
    for words, message in (
        ((*two, "--point", 3, 4), "--text: 2 phrases are as many prompts"),
        (("--text", "a fluffy circle"), "text: the model does not know 'fluffy'"),
        (("--text", " "), "text: expected a phrase, got ' '"),
    ):
        code, _, err = call(folder / "photo.png", *words, model="reading.safetensors")
        assert code == 2 and message in err and len(err.splitlines()) == 1


def test_a_click(call, folder, tmp_path):
    code, out, err = call(folder / "photo.png", "--point", 40, 30, "--out", "made/here/out.png")
    assert code == 0 and err == ""
    names = {path.name for path in (tmp_path / "made/here").iterdir()}
    assert names == {
        "out.png",
        "out.json",
        "out_candidates.png",
        "out_mask.png",
        "out_mask_1.png",
        "out_mask_2.png",
        "out_mask_3.png",
    }
    assert all(name in out for name in names)
    made = tmp_path / "made" / "here"
    sam = load(folder / "small.safetensors")
    expected = Predictor(sam).predict(Predictor(sam).embed(photo((H, W))), [[40, 30]])
    for k in range(3):
        mask = read(made / f"out_mask_{k + 1}.png")
        np.testing.assert_array_equal(mask, expected.masks[k] * np.uint8(255))
    best = int(expected.scores.argmax())
    np.testing.assert_array_equal(read(made / "out_mask.png") > 0, expected.masks[best])
    assert f"{expected.scores[best]:.3f}" in out
    overlay = read(made / "out.png")
    assert overlay.shape == (H, W, 3) and (overlay != photo((H, W))).any()
    result = json.loads((made / "out.json").read_text())
    assert result["image"] == {"file_name": "photo.png", "width": W, "height": H}
    (prompt,) = result["prompts"]
    assert prompt["points"] == [[40.0, 30.0]] and prompt["labels"] == [1] and prompt["best"] == best
    for k, entry in enumerate(prompt["masks"]):
        np.testing.assert_array_equal(rle.decode(entry["segmentation"]), expected.masks[k])
        assert entry["area"] == expected.masks[k].sum()
        assert entry["predicted_iou"] == pytest.approx(float(expected.scores[k]), abs=1e-5)
        x0, y0, x1, y1 = mask_boxes(expected.masks[k]).tolist()
        assert entry["bbox"] == [x0, y0, x1 - x0, y1 - y0]


def test_points_and_a_box_are_one_prompt(call, folder, tmp_path):
    code, out, _ = call(
        folder / "photo.png",
        "--point",
        40,
        30,
        "--not-point",
        5,
        5,
        "--box",
        10,
        10,
        80,
        50,
    )
    assert code == 0
    (prompt,) = json.loads((tmp_path / "masks.json").read_text())["prompts"]
    assert prompt["labels"] == [1, 0] and prompt["box"] == [10, 10, 80, 50]
    assert len(prompt["masks"]) == 1 and not (tmp_path / "masks_candidates.png").exists()
    code, _, _ = call(folder / "photo.png", "--box", 10, 10, 80, 50, "--single")
    (prompt,) = json.loads((tmp_path / "masks.json").read_text())["prompts"]
    assert code == 0 and len(prompt["masks"]) == 1 and prompt["points"] == []


def test_no_input_and_nothing_of_others_is_written_over(call, folder, tmp_path):
    Image.open(folder / "photo.png").save("cup.png")
    Image.fromarray(np.zeros((H, W), np.uint8)).save("a_mask.png")
    Path("p.json").write_text('[{"box": [10, 10, 80, 50]}]')
    Path("d.json").write_text('{"annotations": []}')
    before = {path: path.read_bytes() for path in Path().iterdir()}
    point = ("--point", 40, 30)
    for arguments, message in (
        (("cup.png", *point, "--out", "cup.png"), "cup.png would write over cup.png"),
        (("cup.png", "--prompts", "p.json", "--out", "p.png"), "would write over p.json"),
        (("cup.png", *point, "--mask", "a_mask.png", "--out", "a.png"), "over a_mask.png"),
        (("cup.png", *point, "--out", "d.png"), "d.json, which would be written, holds something"),
    ):
        code, _, err = call(*arguments)
        assert code == 2 and message in err and len(err.splitlines()) == 1
    assert before == {path: path.read_bytes() for path in Path().iterdir()}
    for _ in range(2):  # its own results may be made anew
        assert call("cup.png", *point, "--out", "e.png")[0] == 0


def test_several_boxes_and_a_file_of_prompts(call, folder, tmp_path):
    boxes = [[10, 10, 80, 50], [3, 4, 30, 30]]
    code, out, _ = call(
        folder / "photo.png", "--box", *boxes[0], "--box", *boxes[1], "--out", "a.png"
    )
    assert code == 0 and "prompt 2, box (3, 4, 30, 30): 3 candidates" in out
    first = json.loads((tmp_path / "a.json").read_text())
    assert [prompt["box"] for prompt in first["prompts"]] == boxes
    labels = read(tmp_path / "a_mask.png")
    best = [rle.decode(p["masks"][p["best"]]["segmentation"]) for p in first["prompts"]]
    np.testing.assert_array_equal(labels > 0, best[0] | best[1])
    smaller = int(best[1].sum() <= best[0].sum())
    assert (labels[best[smaller]] == smaller + 1).all()
    # What was written is a file of prompts itself, and gives the same again.
    code, _, _ = call(folder / "photo.png", "--prompts", "a.json", "--out", "b.png")
    assert code == 0
    assert json.loads((tmp_path / "b.json").read_text()) == first
    Path("p.json").write_text(
        json.dumps([{"points": [[5, 6], [7, 8]], "labels": [1, 0]}, {"box": [1, 2, 30, 40]}])
    )
    assert call(folder / "photo.png", "--prompts", "p.json")[0] == 0


def test_mask_prompts(call, folder, tmp_path):
    assert call(folder / "photo.png", "--point", 40, 30, "--single", "--out", "a.png")[0] == 0
    code, _, err = call(folder / "photo.png", "--mask", "a_mask.png", "--out", "b.png")
    assert code == 0, err
    np.save("logits.npy", np.random.default_rng(0).standard_normal((1, 16, 16)))
    code, _, _ = call(folder / "photo.png", "--mask", "logits.npy", "--point", 4, 5)
    assert code == 0
    np.save("wrong.npy", np.zeros((4, 4)))
    code, _, err = call(folder / "photo.png", "--mask", "wrong.npy")
    assert code == 2 and "expected logits [16, 16] of this model" in err
    Image.fromarray(np.zeros((5, 5), np.uint8)).save("small.png")
    code, _, err = call(folder / "photo.png", "--mask", "small.png")
    assert code == 2 and "expected a mask of the photo's size, 90 x 60 pixels, got 5 x 5" in err


def test_everything_in_a_photo(call, folder, tmp_path, monkeypatch):
    from sam_jax.inference import generator

    init = generator.MaskGenerator.__init__
    monkeypatch.setattr(
        generator.MaskGenerator,
        "__init__",
        lambda self, sam, **kwargs: init(
            self, sam, **{**kwargs, "points_per_side": 3, "box_nms_thresh": 1.0}
        ),
    )
    monkeypatch.setattr(segment, "THRESHOLDS", (-9.0, 0.0))
    code, out, _ = call(folder / "photo.png")
    assert code == 0 and "27 masks that the model is sure of" in out
    records = json.loads((tmp_path / "masks.json").read_text())["annotations"]
    assert len(records) == 27 and isinstance(records[0]["segmentation"]["counts"], str)
    assert set(records[0]) == {
        "segmentation",
        "area",
        "bbox",
        "predicted_iou",
        "point_coords",
        "stability_score",
        "crop_box",
    }
    assert 1 <= read(tmp_path / "masks_mask.png").max() <= 27

    monkeypatch.setattr(segment, "THRESHOLDS", (9.0, 0.95))
    code, out, _ = call(folder / "photo.png")
    found = json.loads((tmp_path / "masks.json").read_text())
    likeliest = found["annotations"]
    assert code == 0 and f"the likeliest {len(likeliest)}: predicted IoU" in out
    assert 1 <= len(likeliest) <= segment.LIKELIEST and set(likeliest[0]) == set(records[0])
    assert found["thresholds"] == {"predicted_iou": 0, "stability_score": 0}
    both = [record["predicted_iou"] + record["stability_score"] for record in likeliest]
    assert both == sorted(both, reverse=True)


def test_without_a_photo_the_bundled_one(call, folder, tmp_path, monkeypatch):
    assets = tmp_path / "assets"
    assets.mkdir()
    Image.fromarray(photo((500, 600))).save(assets / segment.DEMO_PHOTO)
    monkeypatch.setattr(segment.resources, "files", lambda package: tmp_path)
    monkeypatch.setattr(
        segment,
        "DEMO_PROMPTS",
        [
            {"points": [[300, 200]], "labels": [1]},
            {"box": [10, 10, 200, 300]},
        ],
    )
    code, out, _ = call()
    assert code == 0 and out.startswith(segment.DEMO_PHOTO)
    assert len(json.loads((tmp_path / "masks.json").read_text())["prompts"]) == 2
    assert read(tmp_path / "masks.png").shape == (500, 600, 3)


def test_the_demo_s_prompts_lie_in_the_bundled_photo():
    path = Path(sam_jax.__file__).parent / "assets" / segment.DEMO_PHOTO
    from sam_jax.inference.command_prompts import CommandPrompt, check

    with Image.open(path) as image:
        width, height = image.size
    check([CommandPrompt(**prompt) for prompt in segment.DEMO_PROMPTS], (height, width))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["nowhere.jpg"], "nowhere.jpg: no such file"),
        (["."], "is a folder, not a picture"),
        (["text.jpg"], "text.jpg is not a picture"),
        (["cut.png"], "cut.png is truncated or damaged"),
        (
            ["PHOTO", "--point", "90", "5"],
            "--point: the point (90, 5) is outside the photo, which is ",
        ),
        (["PHOTO", "--point", "-1", "5"], "outside the photo"),
        (["PHOTO", "--point", "nan", "5"], "--point: expected finite numbers, got NaN"),
        (["PHOTO", "--not-point", "5", "inf"], "finite"),
        (["PHOTO", "--point", "x", "5"], "argument --point: invalid float value: 'x'"),
        (["PHOTO", "--point", "5"], "argument --point: expected 2 arguments"),
        (["PHOTO", "--box", "5", "5", "5", "50"], "--box: the box (5, 5, 5, 50) has no area"),
        (["PHOTO", "--box", "5", "nan", "9", "50"], "finite"),
        (["PHOTO", "--box", "1", "1", "5", "5", "--box", "1", "1", "1", "5"], "--box 2: the box"),
        (
            [
                "PHOTO",
                "--box",
                "1",
                "1",
                "5",
                "5",
                "--box",
                "1",
                "1",
                "4",
                "5",
                "--point",
                "1",
                "1",
            ],
            "2 boxes are as many prompts",
        ),
        (["PHOTO", "--prompts", "nowhere.json"], "nowhere.json: No such file"),
        (["PHOTO", "--prompts", "text.jpg"], "text.jpg: not a JSON file"),
        (["PHOTO", "--prompts", "empty.json"], "empty.json: expected a list of prompts"),
        (["PHOTO", "--prompts", "keys.json"], "keys.json: prompt 1: expected the keys"),
        (
            ["PHOTO", "--prompts", "labels.json"],
            "labels.json: prompt 1: labels: expected one for each",
        ),
        (["PHOTO", "--prompts", "outside.json"], "outside.json: prompt 2: the point (1, 999) is"),
        (["PHOTO", "--prompts", "keys.json", "--point", "1", "1"], "not beside it"),
        (["PHOTO", "--text", "a cat"], "this model has no text head"),
        (["PHOTO", "--mask", "nowhere.png"], "nowhere.png: no such file"),
        (["PHOTO", "--single", "--multimask"], "not allowed with argument"),
        (["PHOTO", "--out", "masks.txt"], "--out: expected a name that ends in .png"),
        (["PHOTO", "--out", "text.jpg/masks.png"], "text.jpg"),
        (["PHOTO", "--point", "1", "1", "--model", "vit_x"], "vit_x"),
        (["PHOTO", "--point", "1", "1", "--model", "text.jpg"], "text.jpg"),
        (["PHOTO", "--point", "1", "1", "--model", "cut.safetensors"], "cut.safetensors"),
        (["PHOTO", "--point", "1", "1", "--model", "other.pth"], "other.pth"),
        (["PHOTO", "--colour"], "unrecognized arguments: --colour"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(call, folder, arguments, message):
    Path("text.jpg").write_text("no picture")
    Path("cut.png").write_bytes((folder / "photo.png").read_bytes()[:2000])
    Path("cut.safetensors").write_bytes((folder / "small.safetensors").read_bytes()[:5000])
    Path("other.pth").write_bytes(b"PK\x03\x04 and nothing of use")
    Path("empty.json").write_text("[]")
    Path("keys.json").write_text('[{"pionts": [[1, 2]]}]')
    Path("labels.json").write_text('[{"points": [[1, 2]], "labels": [1, 1]}]')
    Path("outside.json").write_text('[{"points": [[1, 2]]}, {"points": [[1, 999]]}]')
    before = set(Path().iterdir())
    code, out, err = call(*[str(folder / "photo.png") if a == "PHOTO" else a for a in arguments])
    assert code == 2
    assert message in err and "Traceback" not in err
    assert err.startswith("sam-jax segment: error: ") and err.count("\n") == 1
    assert set(Path().iterdir()) == before  # nothing was written


def test_nothing_half_written_is_left(tmp_path):
    from sam_jax.inference.files import write_atomically

    target = tmp_path / "out.png"
    target.write_bytes(b"old")

    def write(file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_atomically(target, write)
    assert [path.name for path in tmp_path.iterdir()] == ["out.png"]
    assert target.read_bytes() == b"old"


def test_ctrl_c_is_quiet(call, folder, monkeypatch):
    monkeypatch.setattr(
        segment, "_segment_prompts", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    code, _, err = call(folder / "photo.png", "--point", 1, 1)
    assert code == 130 and err == ""


def test_help_needs_no_jax():
    program = (
        "import sys; from sam_jax import cli; "
        "sys.exit(cli.main(sys.argv[1:]) if 'jax' not in sys.modules else 9)"
    )
    for arguments in (["--help"], ["segment", "--help"], ["--version"]):
        start = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-X", "importtime", "-c", program, *arguments],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0 and time.monotonic() - start < 30
        imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
        assert not imported & {"jax", "flax", "numpy", "PIL", "scipy"}
    assert done.stdout.strip() == f"sam-jax {sam_jax.__version__}"


def test_module_and_unknown_command():
    done = subprocess.run(
        [sys.executable, "-m", "sam_jax", "segmnt"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2 and "segmnt" in done.stderr and done.stderr.count("\n") == 1


def test_import_is_lazy_and_public_names_are_there():
    program = "import sys, sam_jax; assert 'jax' not in sys.modules; print(sam_jax.__version__)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == sam_jax.__version__, done.stderr
    for name in sam_jax.__all__:
        assert getattr(sam_jax, name) is not None
    assert sam_jax.Predictor is Predictor and "load" in dir(sam_jax)
    with pytest.raises(AttributeError, match="nonsense"):
        sam_jax.nonsense  # noqa: B018
