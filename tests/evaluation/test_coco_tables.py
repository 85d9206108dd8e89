"""proposals, instances and text: with answers that are known, through the libraries that score."""

from __future__ import annotations

import contextlib
import io
import json

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from sam_jax.cli import main
from sam_jax.evaluation import instances, proposals, text
from sam_jax.evaluation.coco_scores import Truth, average_precision, recall_counts
from sam_jax.ops.rle import encode
from tests.evaluation.fakes import HW, Knows, rectangle, small_models, write_sa1b

FREQUENCY = {1: "f", 2: "c", 3: "r"}


def write_coco(folder, lvis=False, seed=0):
    """Three pictures with random rectangles of three categories, one without any; polygons too."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    images, annotations = [], []
    for k, name in enumerate(("a.png", "b.png", "empty.png", "c.png")):
        Image.new("RGB", HW[::-1], (40 * k, 99, 200)).save(folder / name)
        about = {"id": 10 + k, "file_name": name, "height": HW[0], "width": HW[1]}
        images.append(about | {"neg_category_ids": [1, 2, 3], "not_exhaustive_category_ids": []})
        for n in range(0 if name == "empty.png" else 6):
            x, y = rng.integers(0, 50), rng.integers(0, 20)
            w, h = rng.integers(4, 40), rng.integers(4, 40)
            mask = rectangle(x, y, x + w, y + h)
            mask[y + h // 2 :, x + w // 2 :] &= n % 2 == 0
            polygon = [[int(v) for v in (x, y, x + w, y, x + w, y + h, x, y + h)]]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": 10 + k,
                    "category_id": 1 + n % 3,
                    "iscrowd": int(n == 5 and not lvis),
                    "area": int(mask.sum()),
                    "bbox": [int(x), int(y), int(min(w, HW[1] - x)), int(min(h, HW[0] - y))],
                    "segmentation": polygon if n == 4 else encode(mask),
                }
            )
    categories = [{"id": i, "name": f"thing {i}"} for i in (1, 2, 3)]
    if lvis:
        categories = [one | {"frequency": FREQUENCY[one["id"]]} for one in categories]
    document = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "truth.json").write_text(json.dumps(document))
    return folder / "truth.json"


def truth_as_results(truth, shift=0):
    """Every true mask as a result; moved to the right by some pixels."""
    from sam_jax.ops.rle import decode

    found = []
    for record in map(truth.__getitem__, range(len(truth))):
        for k, one in enumerate(record["truth"]):
            if not one["iscrowd"]:
                mask = decode(one["segmentation"])
                moved = np.zeros_like(mask)
                moved[:, shift:] = mask[:, : mask.shape[1] - shift]
                about = {"image_id": record["image_id"], "category_id": one["category_id"]}
                found.append(about | {"segmentation": encode(moved), "score": 0.9 - 0.01 * k})
    return found


def test_recall_of_single_images_adds_up_to_that_of_all(tmp_path):
    truth = Truth(str(write_coco(tmp_path)))
    rng = np.random.default_rng(1)
    results = truth_as_results(truth, 2)
    results = [results[i] | {"score": float(s)} for i, s in enumerate(rng.random(len(results)))]
    for most in (100, 3):
        counts = []
        for record in map(truth.__getitem__, range(len(truth))):
            own = [r for r in results if r["image_id"] == record["image_id"]]
            own = sorted(own, key=lambda r: -r["score"])[:most]
            counts.append(recall_counts(record["truth"], own, most))
        with contextlib.redirect_stdout(io.StringIO()):
            gt = COCO(tmp_path / "truth.json")
            whole = COCOeval(gt, gt.loadRes(json.loads(json.dumps(results))), "segm")
            whole.params.useCats = 0
            whole.params.maxDets = [most]
            whole.evaluate()
            whole.accumulate()
        expected = whole.eval["recall"][:, 0, :, 0].mean(0)  # [IoU, category, size, most]
        found = proposals.average_recall(counts)
        for k, kind in enumerate(("all", "small", "medium", "large")):
            if expected[k] < 0:  # none of this size
                assert found[kind] is None
            else:
                assert found[kind] == pytest.approx(100 * expected[k], abs=1e-9)


@pytest.mark.parametrize("lvis", [False, True])
def test_the_truth_scores_exactly_100_and_is_moved_by_hand(tmp_path, capsys, lvis):
    data = write_coco(tmp_path / "d", lvis)
    truth = Truth(str(data))
    path = tmp_path / "results.json"
    path.write_text(json.dumps(truth_as_results(truth)))
    base = ["--data", str(data), "--results", str(path), "--out"]
    assert main(["evaluate", "instances", *base, str(tmp_path / "i")]) == 0
    assert main(["evaluate", "proposals", *base, str(tmp_path / "p")]) == 0
    capsys.readouterr()
    precision = json.loads((tmp_path / "i" / "scores.json").read_text())["precision"]
    recall = json.loads((tmp_path / "p" / "scores.json").read_text())["recall"]
    for scores in (precision, recall):
        values = [v for v in scores.values() if v is not None]
        assert len(values) >= 3 and values == pytest.approx([100] * len(values), abs=1e-9)
    assert ("rare" in precision) == ("rare" in recall) == lvis


def test_moved_truth_by_hand(tmp_path):
    """One rectangle of 40 pixels moved by 5: IoU 35 / 45 = 0.778, right at .50 to .75 of ten."""
    write_sa1b(tmp_path / "d", ("a",), np.stack([rectangle(10, 10, 50, 50)]))
    truth = Truth(str(tmp_path / "d"))
    record = truth[0]
    moved = [
        {
            "image_id": 0,
            "category_id": 1,
            "segmentation": encode(rectangle(15, 10, 55, 50)),
            "score": 1.0,
        }
    ]
    counts = recall_counts(record["truth"], moved, 1000)
    assert counts["all"] == [1, [1] * 6 + [0] * 4] and counts["medium"] == counts["all"]
    assert counts["small"] == [0, [0] * 10]
    assert proposals.average_recall([counts]) == {
        "all": 60,
        "small": None,
        "medium": 60,
        "large": None,
    }
    precision = average_precision(truth, record["truth"], moved, [0])
    assert precision["AP"] == pytest.approx(60) and precision["AP75"] == pytest.approx(100)


def test_lvis_forgives_what_was_not_looked_for(tmp_path):
    data = write_coco(tmp_path, lvis=True)
    document = json.loads(data.read_text())
    for image in document["images"]:
        image["neg_category_ids"] = []
    data.write_text(json.dumps(document))
    truth = Truth(str(data))
    wrong = {
        "image_id": 12,
        "category_id": 1,
        "score": 1.0,
        "segmentation": encode(rectangle(1, 1, 9, 9)),
    }
    ids = [10, 11, 12, 13]
    results = truth_as_results(truth)
    assert average_precision(truth, None, [wrong, *results], ids)["AP"] == pytest.approx(100)
    document["images"][2]["neg_category_ids"] = [1]
    data.write_text(json.dumps(document))
    assert average_precision(Truth(str(data)), None, [wrong, *results], ids)["AP"] < 97


def test_true_boxes_with_a_model_that_knows_score_100(tmp_path):
    masks = np.stack([rectangle(10, 10, 40, 40), rectangle(50, 20, 80, 50)])
    write_sa1b(tmp_path / "d", ("a", "b"), masks)
    truth = Truth(str(tmp_path / "d"))
    for refine in (True, False):
        of = instances.measure(truth, instances._from_boxes(Knows(masks), None, refine))
        found = [of(truth[i]) for i in range(2)]
        results = [r for one in found for r in one["results"]]
        annotations = [a for one in found for a in one["truth"]]
        precision = average_precision(truth, annotations, results, [0, 1])
        assert precision["AP"] == precision["S"] == pytest.approx(100)


def test_boxes_that_reach_out_or_have_no_area():
    boxes = [[-5, -5, 20, 20], [80, 50, 100, 100], [10, 10, 0, 0], [95, 70, 5, 5]]
    found = instances.boxes_on([{"bbox": box} for box in boxes], HW)
    assert found.tolist() == [[0, 0, 15, 15], [80, 50, 90, 60], [10, 10, 11, 11], [89, 59, 90, 60]]


def test_refinement_feeds_the_best_mask_back():
    class Watch(Knows):
        calls = []

        def predict(self, embedding, **more):
            self.calls.append(more)
            return super().predict(embedding, **more)

    boxes = np.array([[10.0, 10, 40, 40], [50, 20, 80, 50]])
    model = Watch()
    instances.masks_of(model, None, boxes, True)
    first, second = model.calls
    assert first["multimask"] is True and second["multimask"] is False
    np.testing.assert_array_equal(second["boxes_xyxy"], boxes)
    best = model.masks * np.float32(20) - 10  # of the three the second is likeliest
    np.testing.assert_array_equal(second["mask_logits"], best)


@pytest.mark.parametrize("table", ["proposals", "instances"])
def test_the_command_goes_on_and_names_what_is_broken(tmp_path, capsys, table, monkeypatch):
    small_models(monkeypatch)
    data = write_coco(tmp_path / "d", lvis=True)
    (tmp_path / "d" / "b.png").write_bytes(b"no picture")
    out = tmp_path / "out"
    extra = ["--points-per-side", "4"] if table == "proposals" else ["--boxes", "truth"]
    arguments = ["evaluate", table, "--data", str(data), *extra, "--out", str(out)]
    assert main([*arguments, "--images", "1"]) == 0
    journal = out / f"{table}.jsonl"
    first = journal.read_text()
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "skipped b.png" in printed and "tiny (3 images)" in printed
    assert journal.read_text().startswith(first) and len(journal.read_text().splitlines()) == 4
    scores = (out / "scores.json").read_text()
    assert main(arguments) == 0
    assert (out / "scores.json").read_text() == scores
    assert len(journal.read_text().splitlines()) == 4
    other = {"proposals": ["--nms", "0.5"], "instances": ["--no-refine"]}[table]
    assert main([*arguments, *other]) == 2
    assert "holds another evaluation" in capsys.readouterr().err
    if table == "proposals":
        arguments = [*arguments[:-1], str(tmp_path / "single"), "--single"]
        assert main(arguments) == 0
        assert json.loads((tmp_path / "single" / "scores.json").read_text())["masks an image"] > 1


def test_detections_are_used_by_image(tmp_path, capsys):
    data = write_coco(tmp_path / "d")
    boxes = tmp_path / "boxes.json"
    one = {"image_id": 12, "category_id": 2, "bbox": [5, 5, 30, 30], "score": 0.5}
    boxes.write_text(json.dumps([one, one | {"image_id": 10, "score": 0.25}]))
    out = tmp_path / "out"
    assert (
        main(
            ["evaluate", "instances", "--data", str(data), "--boxes", str(boxes), "--out", str(out)]
        )
        == 0
    )
    results = json.loads((out / "results.json").read_text())
    assert [(r["image_id"], r["category_id"], r["score"]) for r in results] == [
        (10, 2, 0.25),
        (12, 2, 0.5),
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["proposals", "--data", "none"], "none does not exist"),
        (["proposals", "--data", "d", "--max", "0"], "--max: expected 1"),
        (["proposals", "--data", "d", "--nms", "7"], "--nms: expected 0 to 1"),
        (["proposals", "--data", "d", "--results", "none"], "--results: can't read none"),
        (["instances", "--data", "d"], "--boxes: expected a file of detections"),
        (["instances", "--data", "d", "--boxes", "d/truth.json"], "expected a list of {image_id"),
        (["instances", "--data", "d", "--boxes", "bad.json"], "entry 0 has no score"),
        (["text", "--data", "d", "--model", "tiny", "--embeddings", "x"], "takes no text"),
    ],
)
def test_bad_input_says_what_is_wrong(arguments, message, tmp_path, monkeypatch, capsys):
    write_coco(tmp_path / "d")
    entry = {"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4]}
    (tmp_path / "bad.json").write_text(json.dumps([entry]))
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", *arguments]) == 2
    assert message in capsys.readouterr().err


class Reads(Knows):
    """Takes text: an embedding's first number says which mask."""

    def predict(self, embedding, text=None, multimask=True):
        return super().predict(embedding, boxes_xyxy=self.boxes[int(text[0])], multimask=multimask)


def test_text_is_scored_against_the_union_of_a_category():
    one, two = rectangle(10, 10, 40, 40), rectangle(50, 20, 80, 50)
    truth = [
        {"category_id": 1, "segmentation": encode(one), "iscrowd": 0},
        {"category_id": 2, "segmentation": encode(two), "iscrowd": 0},
        {"category_id": 1, "segmentation": encode(rectangle(40, 10, 45, 40)), "iscrowd": 1},
    ]
    model = Reads(np.stack([one, two]))
    model.boxes = [[10, 10, 40, 40], [50, 20, 80, 50]]
    of = text.measure(model, {1: "cup", 2: "dog"}, {"cup": np.array([0.0]), "dog": np.array([1.0])})
    rows = of({"image": None, "name": "a", "truth": truth})
    assert [(r["category"], r["iou"], r["oracle"]) for r in rows] == [
        ("cup", pytest.approx(30 / 35), pytest.approx(30 / 35)),
        ("dog", 1.0, 1.0),
    ]
    figures = text.summarise([*rows, rows[1] | {"image": "b"}])
    assert figures["iou"] == pytest.approx((30 / 35 + 2) / 3)
    assert figures["over categories"] == pytest.approx((30 / 35 + 1) / 2)
    assert figures["pairs"] == 3 and "cup 0.86" in text.table("x", figures)


def test_the_text_command_with_a_small_model(tmp_path, monkeypatch, capsys):
    from sam_jax.evaluation import models
    from sam_jax.inference.predictor import Predictor
    from tests.small import CONFIG, small_sam

    data = write_coco(tmp_path / "d")
    (tmp_path / "d" / "b.png").write_bytes(b"no picture")
    config = CONFIG.replace(text_width=8)
    predictor = Predictor(small_sam(config))
    monkeypatch.setattr(models, "open_model", lambda name: (predictor, {"model": name}))
    rng = np.random.default_rng(0)
    arrays = {f"thing {k}": rng.normal(size=8).astype(np.float32) for k in (1, 2, 3)}
    np.savez(tmp_path / "e.npz", **arrays)
    out = tmp_path / "out"
    arguments = ["evaluate", "text", "--data", str(data), "--model", "small", "--out", str(out)]
    assert main([*arguments, "--embeddings", str(tmp_path / "e.npz")]) == 0
    printed = capsys.readouterr().out
    assert "skipped b.png" in printed and "| small | 2 | 6 |" in printed
    scores = json.loads((out / "scores.json").read_text())
    assert scores["oracle"] >= scores["iou"] > 0
    before = (out / "text.jsonl").read_text()
    assert main([*arguments, "--embeddings", str(tmp_path / "e.npz")]) == 0
    assert (out / "text.jsonl").read_text() == before
    from safetensors.numpy import save_file

    save_file(arrays, tmp_path / "e.safetensors")
    found = text.embed_names(list(arrays), str(tmp_path / "e.safetensors"), config)
    np.testing.assert_array_equal(found["thing 2"], arrays["thing 2"])
    np.savez(tmp_path / "less.npz", **{"thing 1": arrays["thing 1"]})
    np.savez(tmp_path / "wide.npz", **{k: v[:3] for k, v in arrays.items()})
    for name, message in (
        ("less.npz", "no embedding of thing 2, thing 3"),
        ("wide.npz", "thing 1: expected 8 numbers"),
        ("none.npz", "can't read"),
    ):
        assert main([*arguments, "--embeddings", str(tmp_path / name)]) == 2
        assert message in capsys.readouterr().err
