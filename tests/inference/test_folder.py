"""`sam-jax generate`: what is written, resumed, shared out and skipped."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

import sam_jax
from sam_jax.cli import main
from sam_jax.data.open_source import open_source
from sam_jax.inference import folder, generate
from sam_jax.ops import rle
from tests.small import photo, small_sam

LOOSE = ["--points-per-side", "3", "--pred-iou-thresh", "0", "--stability-score-thresh", "0"]
LOOSE += ["--box-nms-thresh", "1"]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("model") / "small.safetensors"
    sam_jax.save(small_sam(), path)
    return str(path)


@pytest.fixture
def photos(tmp_path):
    """Seven pictures, one with a namesake, one turned by its EXIF entry, and two that are none."""
    place = tmp_path / "photos"
    (place / "sub").mkdir(parents=True)
    for i in range(4):
        Image.fromarray(photo((40 + i, 60), i)).save(place / f"{i}.jpg")
    Image.fromarray(photo((30, 50), 4)).save(place / "sub" / "a.jpg")
    Image.fromarray(photo((30, 50), 5)).save(place / "sub" / "a.png")
    turned = Image.fromarray(photo((30, 50), 6))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(place / "sub" / "turned.jpg", exif=exif)
    (place / "bad.jpg").write_text("no picture")
    (place / "cut.jpg").write_bytes((place / "0.jpg").read_bytes()[:900])
    return place


def tree(place) -> dict[str, bytes]:
    return {
        str(path.relative_to(place)): path.read_bytes()
        for path in sorted(place.rglob("*"))
        if path.is_file()
    }


def test_sa1b(photos, tmp_path, model, capsys):
    out = tmp_path / "out"
    command = ["generate", str(photos), "--out", str(out), "--model", model, *LOOSE]
    assert main(command) == 0
    said = capsys.readouterr()
    assert "9 photos" in said.out and "7 photos, " in said.out and "2 skipped" in said.out
    assert "bad.jpg" in said.err
    skipped = (out / "skipped.txt").read_text().splitlines()
    assert [line.split(":")[0] for line in skipped] == ["bad.jpg", "cut.jpg"]
    assert str(photos) not in "".join(skipped)
    names = {"0", "1", "2", "3", "sub/a", "sub/a_png", "sub/turned"}
    assert {p[:-5] for p in tree(out) if p.endswith(".json")} == names | {".settings"}
    assert (out / "0.jpg").read_bytes() == (photos / "0.jpg").read_bytes()
    source = open_source(out)  # what training reads
    assert len(source) == 7 and not source.damage
    sizes = {record["image"].shape[:2] for record in map(source.__getitem__, range(7))}
    assert (50, 30) in sizes  # turned as it is seen
    document = json.loads((out / "2.json").read_text())
    assert document["image"]["file_name"] == "2.jpg" and document["image"]["height"] == 42
    generator = sam_jax.MaskGenerator(
        sam_jax.load(model),
        points_per_side=3,
        pred_iou_thresh=0,
        stability_score_thresh=0,
        box_nms_thresh=1,
        output_mode="coco_rle",
    )
    records = generator.generate(photos / "2.jpg")
    assert len(records) > 1
    assert [{k: v for k, v in one.items() if k != "id"} for one in document["annotations"]] == [
        json.loads(json.dumps(record)) for record in records
    ]
    page = (out / "index.html").read_text()
    assert page.count("<figure>") == 7 and "sub/a_png.jpg" in page and "bad.jpg" in page
    with Image.open(out / ".overlays" / "sub" / "turned.jpg") as overlay:
        assert overlay.size == (30, 50)
    # A second run has nothing to do and changes nothing; other settings are refused.
    before = tree(out)
    assert main(command) == 0 and "7 done before" in capsys.readouterr().out
    assert tree(out) == before
    assert main([*command, "--crop-n-layers", "1"]) == 2
    assert "crop_n_layers 0, now 1" in capsys.readouterr().err


def test_stopped_anywhere_it_ends_with_the_same_files(photos, tmp_path, model, monkeypatch):
    def run(out, form):
        more = ["--form", form, "--overlays", "3"]
        return main(["generate", str(photos), "--out", str(out), "--model", model, *LOOSE, *more])

    for form in folder.FORMS:
        whole, broken = tmp_path / f"whole_{form}", tmp_path / f"broken_{form}"
        assert run(whole, form) == 0
        replace, budget = os.replace, [0]

        def failing(source, target, replace=replace, budget=budget):
            budget[0] -= 1
            if budget[0] < 0:
                raise KeyboardInterrupt
            replace(source, target)

        monkeypatch.setattr(os, "replace", failing)
        codes = []
        for files_written in (0, 1, 2, 4, 3, 1):
            budget[0] = files_written
            codes.append(run(broken, form))
        monkeypatch.setattr(os, "replace", replace)
        assert codes[0] == 130 and run(broken, form) == 0
        assert tree(broken) == tree(whole)


@pytest.mark.parametrize(
    "before, skipped, said",
    [
        (0, 0, "no photo was finished"),
        (2, 0, "no photo was finished"),
        (1, 2, "no masks\n2 skipped, listed in skipped.txt"),
        (3, 0, "nothing was left to do"),
    ],
)
def test_what_is_said_where_no_photo_was_done(before, skipped, said):
    watch = generate.Watch(3, before)
    for i in range(skipped):
        watch.skip(f"{i}.jpg", "is damaged")
    assert watch.summary("skipped.txt") == said
    watch.close()


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools
def test_coco_and_shards(photos, tmp_path, model):
    from pycocotools.coco import COCO

    def run(out, *more):
        command = ["generate", str(photos), "--out", str(out), "--model", model, *LOOSE]
        assert main([*command, "--form", "coco", *more]) == 0

    run(tmp_path / "all")
    data = COCO(str(tmp_path / "all" / "instances.json"))
    assert len(data.imgs) == 7 and len(data.anns) == len(set(data.anns)) > 7
    for annotation in data.anns.values():
        mask = data.annToMask(annotation).astype(bool)
        assert mask.sum() == annotation["area"]
        x, y, w, h = annotation["bbox"]
        assert mask[y : y + h, x : x + w].sum() == annotation["area"]
    assert {entry["file_name"] for entry in data.imgs.values()} >= {"sub/a.png", "sub/a.jpg"}
    assert len(open_source(f"{tmp_path}/all/instances.json:{photos}")) == 7
    parts = tmp_path / "parts"
    run(parts, "--shard", "1/3"), run(parts, "--shard", "3/3"), run(parts, "--shard", "2/3")
    found: dict = {"images": [], "annotations": []}
    for i in (1, 2, 3):
        one = json.loads((parts / f"instances_{i}_of_3.json").read_text())
        for key, entries in found.items():
            entries += one[key]
    whole = json.loads((tmp_path / "all" / "instances.json").read_text())
    for key, entries in found.items():
        assert sorted(entries, key=lambda e: e["id"]) == whole[key]


def test_label_maps(photos, tmp_path, model):
    out = tmp_path / "out"
    more = ["--form", "labels", "--policy", "large", "--overlays", "0"]
    assert main(["generate", str(photos), "--out", str(out), "--model", model, *LOOSE, *more]) == 0
    assert not (out / "index.html").exists() and not (out / ".overlays").exists()
    with Image.open(out / "sub" / "turned.png") as image:
        labels = np.asarray(image)
    assert labels.shape == (50, 30) and labels.max() >= 1


def test_photos_may_be_linked_or_left(photos, tmp_path, model):
    for how in ("link", "none"):
        out = tmp_path / how
        more = ["--photos", how, "--model", model, *LOOSE]
        assert main(["generate", str(photos), "--out", str(out), *more]) == 0
        assert (out / "0.jpg").is_symlink() == (how == "link")
        assert (out / "sub" / "turned.jpg").exists() == (how == "link")
        assert (out / "0.json").exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["nowhere"], "nowhere"),
        (["."], "no photos"),
        (["photos", "--shard", "4/3"], "1 <= I <= N"),
        (["photos", "--shard", "one"], "expected I/N"),
        (["photos", "--batch", "0"], "--batch"),
        (["photos", "--overlays", "-1"], "overlays"),
        (["photos", "--points-per-side", "0"], "points_per_side"),
    ],
)
def test_wrong_input(photos, tmp_path, monkeypatch, capsys, arguments, message):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path if arguments != ["."] else tmp_path / "empty")
    assert main(["generate", *arguments, "--out", "out"]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


def test_no_photo_that_can_be_read(tmp_path, model, capsys):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "bad.jpg").write_text("no picture")
    command = ["generate", str(tmp_path / "photos"), "--out", str(tmp_path / "out")]
    assert main([*command, "--model", model]) == 2
    assert "none of the photos could be read" in capsys.readouterr().err


def test_names_and_overlays_are_spread(photos):
    found = folder.Folder(photos, photos / "out", overlays=4)
    assert [job.name for job in found.jobs if "a" in job.name][1:] == ["sub/a", "sub/a_png"]
    assert sum(job.shown for job in found.jobs) == 4 and found.jobs[-1].shown
    (photos / "out").mkdir()
    Image.fromarray(photo((9, 9))).save(photos / "out" / "not_mine.jpg")
    assert len(folder.Folder(photos, photos / "out").jobs) == len(found.jobs)
    with pytest.raises(ValueError, match="form"):
        folder.Folder(photos, photos / "out", form="png")


def test_odd_pictures_and_names_stop_nothing(tmp_path, model):
    place, out = tmp_path / "photos", tmp_path / "out"
    place.mkdir()
    for size in ((1, 1), (5, 5), (60, 40)):
        Image.fromarray(photo(size)).save(place / f"{size[0]}.png")
    long = "x" * 245 + ".jpg"
    Image.fromarray(photo((30, 40))).save(place / long)
    raw = os.fsencode(place) + b"/a\xff.jpg"
    Image.fromarray(photo((30, 40), 1)).save(os.fsdecode(raw), "JPEG")
    (place / "\udcfe.jpg").write_text("no picture")
    command = ["generate", str(place), "--out", str(out), "--model", model, *LOOSE]
    assert main([*command, "--crop-n-layers", "2"]) == 0
    names = {os.fsencode(path.name) for path in out.glob("*.json")}
    assert names >= {b"1_png.json", b"5_png.json", b"60_png.json", b"a\xff.json"}
    assert len([name for name in names if name.startswith(b"xxx")]) == 1
    for path in out.glob("*.json"):
        if not path.name.startswith("."):
            annotations = json.loads(path.read_text())["annotations"]
            assert all(one["area"] > 0 for one in annotations)


def test_another_folder_is_not_taken_for_done(photos, tmp_path, model, capsys):
    other = tmp_path / "other"
    other.mkdir()
    Image.fromarray(photo((20, 20), 9)).save(other / "0.jpg")
    command = ["--out", str(tmp_path / "out"), "--model", model, *LOOSE]
    assert main(["generate", str(photos), *command]) == 0
    assert main(["generate", str(other), *command]) == 2
    assert "folder" in capsys.readouterr().err
    inside = ["--out", str(photos / "out"), "--model", model, "--photos", "link", *LOOSE]
    for _ in range(2):
        assert main(["generate", str(photos), *inside]) == 0
    assert "7 done before" in capsys.readouterr().out and not (photos / "out" / "out").exists()
    assert main(["generate", str(photos), "--out", str(tmp_path), "--model", model]) == 2
    assert "holds the photos" in capsys.readouterr().err


def test_settings_may_change_until_there_are_results(photos, tmp_path):
    found = folder.Folder(photos, tmp_path / "out")
    found.open({"a": 1})
    assert len(found.open({"a": 2})) == 9
    (tmp_path / "out" / "0.json").write_text("{}")
    with pytest.raises(ValueError, match="a 2, now 1"):
        found.open({"a": 1})
    (tmp_path / "out" / ".settings.json").write_text("")
    with pytest.raises(ValueError, match=r"no \.settings\.json that says"):
        found.open({"a": 2})


def test_a_folder_that_another_run_began_is_refused(photos, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    Image.fromarray(photo((20, 20), 9)).save(other / "z.jpg")
    first = folder.Folder(other, tmp_path / "out")
    (job,) = first.open({"a": 1})
    first.write(job, photo((20, 20), 9), [])
    with pytest.raises(ValueError, match="that were made otherwise"):
        folder.Folder(photos, tmp_path / "out").open({"a": 1})
    assert first.open({"a": 1}) == []


def test_pictures_of_others_are_not_written_over(photos, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    Image.fromarray(photo((20, 20), 9)).save(out / "0.jpg")
    before = (out / "0.jpg").read_bytes()
    with pytest.raises(ValueError, match="holds files of these names"):
        folder.Folder(photos, out).open({})
    assert (out / "0.jpg").read_bytes() == before


def test_what_an_encoder_cannot_write_is_named_and_skipped(tmp_path, model, capsys):
    (tmp_path / "wide").mkdir()
    Image.new("RGB", (66_000, 4)).save(tmp_path / "wide" / "pano.png")
    Image.fromarray(photo((20, 20), 9)).save(tmp_path / "wide" / "b.jpg")
    command = ["generate", str(tmp_path / "wide"), "--out", str(tmp_path / "out"), *LOOSE]
    assert main([*command, "--model", model, "--overlays", "0"]) == 0
    assert "1 skipped, listed in skipped.txt" in capsys.readouterr().out
    listed = (tmp_path / "out" / "skipped.txt").read_text()
    assert listed.startswith("pano.png: ") and "None" not in listed
    assert (tmp_path / "out" / "b.json").exists()


def test_a_page_of_several_parts_lists_what_each_skipped(photos, tmp_path):
    for i, name in ((1, "bad.jpg"), (2, "cut.jpg")):
        part = folder.Folder(photos, tmp_path / "out", shard=(i, 2))
        part.open({})
        part.close({name: "torn"})
    page = (tmp_path / "out" / "index.html").read_text()
    assert "bad.jpg" in page and "cut.jpg" in page
    whole = folder.Folder(photos, tmp_path / "out")
    whole.open({})
    whole.close({})
    assert not list((tmp_path / "out").glob("skipped_*"))


def test_ids_do_not_depend_on_other_photos():
    about = folder.document([{}, {}], "sa_7.jpg", "x/sa_7", (2, 3))
    assert about["image"] == {"image_id": 7, "width": 3, "height": 2, "file_name": "sa_7.jpg"}
    a, b = (folder.document([{}], "a.jpg", name, (2, 3)) for name in ("x/a", "y/a"))
    assert a["image"]["image_id"] != b["image"]["image_id"] < 2**36
    assert a["annotations"][0]["id"] < 2**53


def test_fingerprints_tell_weights_apart():
    one, other = small_sam(), small_sam(seed=1)
    assert generate.fingerprint(one.params) == generate.fingerprint(small_sam().params)
    assert generate.fingerprint(one.params) != generate.fingerprint(other.params)


@pytest.mark.slow
def test_killed_at_random_it_ends_with_the_same_files(photos, tmp_path, model):
    for i in range(7, 40):
        Image.fromarray(photo((40 + i, 60), i)).save(photos / f"{i}.jpg")

    def start(out):
        command = [sys.executable, "-m", "sam_jax", "generate", str(photos), "--out", str(out)]
        environment = {**os.environ, "SAM_JAX_CACHE": str(tmp_path / "cache")}
        return subprocess.Popen(
            [*command, "--model", model, *LOOSE],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    assert start(tmp_path / "whole").wait() == 0
    whole = tree(tmp_path / "whole")
    broken, rng, kills = tmp_path / "broken", random.Random(0), 0
    while True:
        process = start(broken)
        before = len(list(broken.glob("*.json")))
        while process.poll() is None and len(list(broken.glob("*.json"))) < before + 4:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.2))
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
    assert process.returncode == 0 and kills >= 3
    assert tree(broken) == whole
    assert rle.decode(json.loads(whole["7.json"])["annotations"][0]["segmentation"]).any()
