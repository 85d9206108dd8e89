"""Truth in COCO's form from files as people write them, and results files that are wrong."""

from __future__ import annotations

import json

import pytest

from sam_jax.evaluation.coco_scores import (
    Truth,
    average_precision,
    read_results,
    recall_counts,
    stored_masks,
)
from sam_jax.ops.rle import decode, encode
from tests.evaluation.fakes import HW, rectangle, write_sa1b
from tests.evaluation.test_coco_tables import truth_as_results, write_coco


def changed(folder, change, lvis=False):
    """The Truth of `write_coco` after a change of its document."""
    path = write_coco(folder, lvis)
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    return Truth(str(path))


def of_each(key, value=None):
    """Changes all annotations: sets a field to value(number), or takes it away."""

    def change(document):
        for k, one in enumerate(document["annotations"]):
            if value is None:
                one.pop(key)
            else:
                one[key] = value(k)

    return change


def stray(document):
    outline = [[0, 0, 5, 0, 5, 5]]
    document["annotations"] += [{"id": 7, "image_id": 777, "segmentation": outline}, "x"]


@pytest.mark.parametrize("lvis", [False, True])
@pytest.mark.parametrize(
    "change",
    [
        of_each("id", lambda k: k),  # the libraries take a match with number 0 for none
        of_each("id", lambda k: 1),
        of_each("id"),
        of_each("area"),
        of_each("bbox"),
        of_each("iscrowd"),
        stray,
    ],
    ids=["from 0", "all 1", "no id", "no area", "no bbox", "no iscrowd", "stray"],
)
def test_the_truth_scores_100_however_it_is_written(tmp_path, change, lvis):
    truth = changed(tmp_path, change, lvis)
    if change is not stray and not lvis:  # there the sixth is a crowd
        assert len(truth.document["annotations"]) == 18
    results = truth_as_results(truth)
    precision = average_precision(truth, None, results, truth.image_ids)
    assert precision["AP"] == precision["AP75"] == pytest.approx(100, abs=1e-9)
    for record in map(truth.__getitem__, range(len(truth))):
        own = [one for one in results if one["image_id"] == record["image_id"]]
        masks, found = recall_counts(record["truth"], own, 1000)["all"]
        assert found == [masks] * 10 and masks == len(own)


def test_categories_that_are_not_listed_or_not_there(tmp_path):
    truth = changed(tmp_path / "a", lambda document: document.pop("categories"))
    assert truth.categories == {1: "1", 2: "2", 3: "3"} and not truth.is_lvis
    truth = changed(tmp_path / "b", of_each("category_id"))
    assert truth.categories == {1: "object"}
    results = truth_as_results(truth)
    assert average_precision(truth, None, results, truth.image_ids)["AP"] == pytest.approx(100)
    with pytest.raises(ValueError, match="annotation of image 10 has no category_id"):
        changed(tmp_path / "c", lambda document: document["annotations"][2].pop("category_id"))


def test_lvis_counts_300_results_of_an_image_before_any_is_left_out(tmp_path):
    """A right result behind N better ones of a category that was not looked for."""

    def only_one(document):
        del document["images"][1:], document["annotations"][1:]
        document["images"][0]["neg_category_ids"] = []

    truth = changed(tmp_path, only_one, lvis=True)
    (right,) = truth_as_results(truth)
    wrong = right | {"category_id": 2, "score": 0.99}
    for count, expected in ((299, 100), (300, 0)):
        precision = average_precision(truth, None, [*[wrong] * count, right], [10])
        assert precision["AP"] == pytest.approx(expected, abs=1e-9)


def test_only_measured_images_count(tmp_path):
    truth = Truth(str(write_coco(tmp_path)))
    results = [one for one in truth_as_results(truth) if one["image_id"] == 10]
    assert average_precision(truth, None, results, [10])["AP"] == pytest.approx(100)
    assert average_precision(truth, None, results, [10, 11])["AP"] < 60


def entry(**changes):
    mask = encode(rectangle(1, 1, 9, 9))
    return {"image_id": 10, "category_id": 1, "segmentation": mask, "score": 0.5} | changes


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({}, r"expected a list of \{image_id, category_id, segmentation, score\}"),
        ([entry(), 3], "entry 1 has no image_id, category_id"),
        ([entry(score=None)], "entry 0: expected a number as score"),
        ([entry(image_id=[1])], "entry 0: expected numbers or names as ids"),
        ([entry(image_id="10")], "no image_id of its 1 entries .* like 10, these like '10'"),
        ([entry(category_id=9)], "no category_id of its 1 entries"),
    ],
)
def test_results_of_another_form_or_of_other_data(entries, message, tmp_path):
    truth, path = Truth(str(write_coco(tmp_path / "d"))), tmp_path / "results.json"
    path.write_text(json.dumps(entries))
    with pytest.raises(ValueError, match=message):
        read_results(path, ("category_id", "segmentation"), truth)
    with pytest.raises(ValueError, match="--results: .*" + message):
        stored_masks(str(path), ("category_id",), truth)


def test_stored_masks_in_every_form_and_of_the_wrong_size(tmp_path):
    truth, path = Truth(str(write_coco(tmp_path / "d"))), tmp_path / "results.json"
    mask = rectangle(1, 1, 9, 9)
    runs = [61, 8, *[52, 8] * 7, HW[0] * HW[1] - 61 - 8 - 60 * 7]
    forms = [encode(mask), [[1, 1, 9, 1, 9, 9, 1, 9]], {"size": HW, "counts": runs}]
    path.write_text(json.dumps([entry(segmentation=form) for form in forms]))
    found = stored_masks(str(path), (), truth)(truth[0])
    assert len(found) == 3 and all((decode(one["segmentation"]) == mask).all() for one in found)
    for wrong, message in (
        (encode(mask[:-1]), r"image 10: a mask of \[59, 90\] for a picture of \[60, 90\]"),
        ({"size": HW, "counts": runs[:-1]}, "image 10: "),
        ([[1, 1, 9]], "image 10: segmentation must be"),
    ):
        path.write_text(json.dumps([entry(segmentation=wrong)]))
        with pytest.raises(ValueError, match=message):
            stored_masks(str(path), (), truth)(truth[0])


def test_ids_of_data_that_is_no_coco_file(tmp_path):
    truth = Truth(str(write_sa1b(tmp_path / "d", ("a", "b"))))
    assert truth.image_ids == [0, 1] and truth.categories == {1: "object"} and not truth.is_lvis
    assert [one["image_id"] for record in (truth[0], truth[1]) for one in record["truth"]] == [
        *[0] * 2,
        *[1] * 2,
    ]
