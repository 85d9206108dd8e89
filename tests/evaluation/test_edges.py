"""The edges table: the map from masks, and the command on files in BSDS500's layout."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from sam_jax import Predictor
from sam_jax.cli import main
from sam_jax.evaluation.edges import boundary_map
from sam_jax.ops.edges import edge_nms, sobel_magnitude
from tests.data.test_bsds import HW, write_bsds
from tests.small import photo, small_sam


def slow_map(predictor, image, side, threshold):
    """Everything at the photo's size, one mask after another, no window."""
    height, width = image.shape[:2]
    embedding = predictor.embed(image)
    candidates = []
    for j in range(side):
        for i in range(side):
            xy = [(i + 0.5) / side * width, (j + 0.5) / side * height]
            out = predictor.predict(embedding, [xy], [1], multimask=True)
            candidates += list(zip(out.masks, out.scores, out.logits, strict=True))
    candidates = [c for c in candidates if c[0].any()]
    kept, edges = [], np.zeros((height, width))
    from sam_jax.ops.masks import mask_boxes, upscale_logits

    for mask, _, logits in sorted(candidates, key=lambda c: -c[1]):
        x0, y0, x1, y1 = (float(v) for v in mask_boxes(mask))
        for u0, v0, u1, v1 in kept:
            w, h = max(min(x1, u1) - max(x0, u0), 0), max(min(y1, v1) - max(y0, v0), 0)
            union = (x1 - x0) * (y1 - y0) + (u1 - u0) * (v1 - v0) - w * h
            if union and w * h / union > threshold:
                break
        else:
            kept.append((x0, y0, x1, y1))
            full = upscale_logits(logits, embedding.input_hw[0], (height, width), 64)
            ring = ndimage.grey_dilation(mask.astype(int), (3, 3)).astype(bool) & ~mask
            edges = np.maximum(edges, np.where(ring, sobel_magnitude(1 / (1 + np.exp(-full))), 0))
    return edge_nms(edges)


def test_the_map_is_that_of_the_masks():
    predictor, image = Predictor(small_sam()), photo((47, 61))
    found = boundary_map(predictor, image, 4, 0.7)
    assert found.shape == (47, 61) and found.max() == 1 and 20 < (found > 0).sum() < 1500
    expected = slow_map(predictor, image, 4, 0.7)
    assert np.mean(np.abs(found - expected) > 1e-3) < 0.002


def test_the_truth_as_results_scores_exactly_one(tmp_path, capsys):
    lines = write_bsds(tmp_path)
    from scipy.io import savemat

    from tests.data.test_bsds import truth

    results = tmp_path / "results"
    results.mkdir()
    for name, (one, _) in lines.items():  # with a single annotator that can be
        savemat(tmp_path / "groundTruth" / "test" / f"{name}.mat", truth([one]))
        Image.fromarray(np.uint8(255 * one)).save(results / f"{name}.png")
    out = tmp_path / "out"
    arguments = ["evaluate", "edges", "--data", str(tmp_path), "--results", str(results)]
    assert main([*arguments, "--out", str(out)]) == 0
    assert "| results (2 images) | 1.000 | 1.000 | 1.000 | 1.000 |" in capsys.readouterr().out
    scores = json.loads((out / "scores.json").read_text())
    assert scores["ods"] == scores["ois"] == scores["r50"] == 1.0
    assert (out / "curve.png").stat().st_size > 5000
    (tmp_path / "up").mkdir()
    results.rename(tmp_path / "up" / "test")  # or in a folder of the split
    assert main([*arguments[:-1], str(tmp_path / "up")]) == 0
    assert "| up (2 images) | 1.000 |" in capsys.readouterr().out


def test_the_command_goes_on_and_reports_what_is_broken(tmp_path, capsys):
    write_bsds(tmp_path, ("1", "2", "3"))
    (tmp_path / "groundTruth" / "test" / "2.mat").write_bytes(b"nothing")
    out = tmp_path / "out"
    arguments = ["evaluate", "edges", "--data", str(tmp_path), "--points-per-side", "2"]
    arguments += ["--out", str(out)]
    assert main([*arguments, "--images", "1"]) == 0
    assert "tiny (1 images)" in capsys.readouterr().out
    first = (out / "edges.jsonl").read_text()
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "skipped 2: 2.mat" in printed and "tiny (2 images)" in printed
    assert (out / "edges.jsonl").read_text().startswith(first)
    with Image.open(out / "maps" / "3.png") as file:
        assert file.size == HW[::-1] and file.mode == "L"
    assert (out / "sheet.jpg").stat().st_size > 1000
    assert len((out / "images.csv").read_text().splitlines()) == 3
    # The maps that were written score what the model did.
    assert main([*arguments[:4], "--results", str(out / "maps")]) == 0
    again = capsys.readouterr().out
    assert printed.split("\n\n")[-1].splitlines()[0] == again.split("\n\n")[-1].splitlines()[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nowhere"], "groundTruth/test/NAME.mat"),
        (["--data", "bsds", "--results", "bsds"], "folder of NAME.png or NAME.mat"),
        (["--data", "bsds", "--split", "val"], "groundTruth/val/NAME.mat"),
        (["--data", "bsds", "--nms", "2"], "--nms: expected 0 to 1, got 2.0"),
        (["--data", "bsds", "--points-per-side", "0"], "at least 1, got 0"),
    ],
)
def test_bad_input_says_what_is_wrong(arguments, message, tmp_path, capsys, monkeypatch):
    write_bsds(tmp_path / "bsds")
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", "edges", *arguments]) == 2
    assert message in capsys.readouterr().err
