"""`python -m train.check_data`: every kind of problem is found, named, counted and shown."""

import base64
import csv
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from sam_jax.data.sources import Sa1bFolder
from sam_jax.ops import rle
from train.check_data import check, main
from train.data_problems import KINDS, Problem
from train.data_report import draw_record

HW = (60, 90)


def filled(x0, y0, x1, y1):
    mask = np.zeros(HW, bool)
    mask[y0:y1, x0:x1] = True
    return mask


def write(folder, name, masks, hw=HW, **says):
    """A record whose annotations say what `says` maps mask numbers to."""
    folder.mkdir(exist_ok=True, parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (*hw, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / f"{name}.png")
    annotations = [
        {"segmentation": rle.encode(mask)} | says.get(f"mask{k}", {})
        for k, mask in enumerate(masks)
    ]
    document = {"image": {"width": hw[1], "height": hw[0]}, "annotations": annotations}
    (folder / f"{name}.json").write_text(json.dumps(document))


GOOD = filled(10, 5, 40, 30)  # box [10, 5, 30, 25], area 750
CASES = {
    "empty": ([GOOD, filled(0, 0, 0, 0)], {}, "mask 1: no pixel"),
    "large": ([filled(0, 0, 90, 55), GOOD], {}, "mask 0: 91.7% of the picture"),
    "tiny": ([filled(3, 3, 6, 6), GOOD], {}, "mask 0: 9 pixels"),
    "duplicate": ([GOOD, filled(1, 1, 9, 9), GOOD], {}, "mask 2 is mask 0"),
    "box": (
        [GOOD],
        {"mask0": {"bbox": [10, 5, 40, 30]}},
        "mask 0: [10, 5, 40, 30] is stated, [10, 5, 30, 25] is true; it looks like [x0, y0,",
    ),
    "outside": (
        [filled(60, 5, 90, 30)],
        {"mask0": {"bbox": [60, 5, 32, 25]}},
        "mask 0: its box reaches from x, y to x, y [60, 5, 92, 30]; the picture is 90 x 60",
    ),
    "area": ([GOOD], {"mask0": {"area": 75}}, "mask 0: 75 is stated, 750 pixels are true"),
    "no masks": ([], {}, "no masks"),
}


@pytest.mark.parametrize("kind", CASES)
def test_each_kind_is_found_and_nothing_else(tmp_path, kind):
    masks, says, detail = CASES[kind]
    write(tmp_path, "a", masks, **says)
    findings, finished = check(Sa1bFolder(tmp_path), np.arange(1))
    assert finished and findings.counts == {kind: 1}
    (problem,) = findings.kept[kind]
    assert problem[:2] == (kind, "a.json") and problem.detail.startswith(detail)
    assert findings.grave == KINDS[kind].grave


def test_pictures_that_nothing_is_trained_on(tmp_path):
    write(tmp_path, "a", [filled(3, 3, 6, 6), filled(0, 0, 90, 55)])
    findings, _ = check(Sa1bFolder(tmp_path), np.arange(1))
    assert findings.counts == {"tiny": 1, "large": 1, "no usable mask": 1} and findings.grave == 1
    (problem,) = findings.kept["no usable mask"]
    assert problem.detail == "2 masks, none of 16 to 4860 pixels"


def test_what_is_stated_as_in_sa_1b_and_coco_is_right(tmp_path):
    says = {
        "mask0": {"bbox": [10, 5, 29, 24], "area": 750},  # SA-1B: a pixel less
        "mask1": {"bbox": [1.3, 0.6, 8.1, 8.2], "area": 66.4},
    }
    write(tmp_path, "a", [GOOD, filled(1, 1, 9, 9)], **says)
    findings, _ = check(Sa1bFolder(tmp_path), np.arange(1))
    assert findings.counts == {} and findings.masks == 2
    write(tmp_path, "b", [GOOD], mask0={"bbox": ["x", 5, 29, 24], "area": None})
    findings, _ = check(Sa1bFolder(tmp_path), np.arange(2))
    assert findings.kept["box"][0].detail.endswith("is no [x, y, width, height]")


def damaged(folder):
    """A folder with unreadable things of every kind and two good records."""
    for name in ("good", "image", "record", "mask", "size", "lonely"):
        write(folder, name, [GOOD])
    write(folder, "tiny", [filled(3, 3, 6, 6), GOOD])
    picture = folder / "image.png"
    picture.write_bytes(picture.read_bytes()[:300])
    (folder / "record.json").write_text("{")
    document = json.loads((folder / "mask.json").read_text())
    document["annotations"][0]["segmentation"]["counts"] += "5"
    (folder / "mask.json").write_text(json.dumps(document))
    Image.new("RGB", (10, 10)).save(folder / "size.png")
    (folder / "lonely.json").unlink()


def test_the_command_in_words_pictures_and_a_table(tmp_path, capsys):
    damaged(tmp_path / "data <b>")
    out, table = tmp_path / "report.html", tmp_path / "all.csv"
    options = ["--out", str(out), "--csv", str(table), "--threads", "2"]
    assert main([str(tmp_path / "data <b>"), *options]) == 1
    text = capsys.readouterr().out
    for line in (
        "images  3 and 3 unreadable",
        "masks   3, 1.0 an image",
        "image: 1. Pictures that cannot be read",
        "record.json: not readable as JSON",
        "size: 1. ",
        "lonely.png: no JSON with its name",
        "tiny: 1 (no problem)",
        "5 problems",
    ):
        assert line in text, text
    assert re.search(r"mask.json: mask 0: rle counts", text)
    assert re.search(r"0.20 - 0.40 +2  #{40}\n", text) and re.search(r"1 - 10 +2  #{40}\n", text)
    with open(table, newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["kind", "name", "detail"]
    kinds = ["image", "incomplete", "mask", "record", "size", "tiny"]
    assert sorted(row[0] for row in rows[1:]) == kinds
    page = out.read_text()
    assert "data &lt;b&gt;" in page and "<b>/" not in page and "http" not in page
    for kind in kinds:
        assert f">{kind}: 1</h2>" in page
    pictures = re.findall(r"base64,([^']+)'", page)
    assert len(pictures) == 1 + 2  # of the tiny mask; of good and tiny: mask.json's cannot be drawn
    shown = Image.open(io.BytesIO(base64.b64decode(pictures[0])))
    assert shown.size == (90, 60)


def test_good_data_and_wrong_arguments(tmp_path, capsys):
    for k in range(5):
        write(tmp_path / "data", f"{k}", [GOOD])
    out = ["--out", str(tmp_path / "r.html")]
    assert main([str(tmp_path / "data"), "--images", "2", "--samples", "1", *out]) == 0
    text = capsys.readouterr().out
    assert "5 records, 2 of them read" in text and "nothing is wrong" in text
    assert main([str(tmp_path / "absent"), *out]) == 2
    assert "does not exist" in capsys.readouterr().err
    for wrong in (["--threads", "0"], ["--out", "/absent/x.html"], ["--images", "x"]):
        with pytest.raises(SystemExit) as caught:
            main([str(tmp_path / "data"), *wrong])
        assert caught.value.code == 2


class Interrupted:
    """A source at whose fourth record somebody presses Ctrl-C."""

    def __init__(self, source):
        self.source = source

    def __len__(self):
        return 6

    def __getitem__(self, index):
        if index == 3:
            raise KeyboardInterrupt
        return self.source[index]


@pytest.mark.parametrize("threads", [1, 3])
def test_what_was_seen_before_ctrl_c_is_kept(tmp_path, monkeypatch, capsys, threads):
    for k in range(6):
        write(tmp_path / "data", f"{k}", [GOOD])
    source = Interrupted(Sa1bFolder(tmp_path / "data"))
    findings, finished = check(source, np.arange(6), threads)
    assert not finished and findings.images == 3
    monkeypatch.setattr("train.check_data.open_source", lambda _: source)
    arguments = [
        "x",
        "--threads",
        str(threads),
        "--samples",
        "1",
        "--out",
        str(tmp_path / "r.html"),
    ]
    assert main(arguments) == 130
    assert "images  3\n" in (out := capsys.readouterr().out) and "stopped" in out
    assert (tmp_path / "r.html").exists()


def test_notes_crowds_and_what_a_source_left_out(tmp_path):
    from sam_jax.data.coco import CROWD

    class Noted(list):
        left_out = {"a: annotation 1": CROWD, "b.jpg": "no masks"}
        damage = {"x.tar": "cut off"}

    image = np.zeros((*HW, 3), np.uint8)
    record = {"image": image, "rles": [rle.encode(GOOD)], "name": "a", "notes": ["a.png: soft"]}
    findings, _ = check(Noted([record]), np.arange(1))
    assert findings.counts == {"crowd": 1, "no masks": 1, "incomplete": 1, "damaged map": 1}
    assert findings.grave == 2
    assert findings.kept["damaged map"] == [Problem("damaged map", "a", "a.png: soft", 0)]


def test_many_problems_are_counted_and_few_kept(tmp_path, monkeypatch):
    monkeypatch.setattr("train.data_problems.KEPT", 3)
    for k in range(5):
        write(tmp_path, f"{k}", [filled(3, 3, 6, 6), GOOD])
    table = io.StringIO()
    findings, _ = check(Sa1bFolder(tmp_path), np.arange(5), 2, table)
    assert findings.counts == {"tiny": 5} and len(findings.kept["tiny"]) == 3
    assert len(table.getvalue().splitlines()) == 6


def test_masks_are_drawn_where_they_are():
    image = np.zeros((600, 900, 3), np.uint8)
    mask = np.zeros((600, 900), bool)
    mask[100:300, 450:900] = True
    record = {"image": image, "rles": [rle.encode(mask), rle.encode(mask & False)], "name": "a"}
    picture = np.asarray(draw_record(record, []))
    assert picture.shape == (320, 480, 3)
    lit = picture.max(2) > 60
    assert lit[56:157, 243:].all() and not lit[:50].any() and not lit[:, :236].any()
    ringed = np.asarray(draw_record(record, [0]))
    assert (ringed == picture).all() and (np.asarray(draw_record(record, [1])) == 0).all()
    mask[:, :860] = False
    record["rles"][0] = rle.encode(mask)
    ringed = np.asarray(draw_record(record, [0]))
    assert (ringed != np.asarray(draw_record(record, []))).any()
