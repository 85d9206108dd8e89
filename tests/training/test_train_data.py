"""What a run trains on: any form of data, damaged records, shares of several processes."""

import json

import numpy as np
import pytest
from PIL import Image

import train.data
from sam_jax.data.cut_paste import CutPaste
from sam_jax.data.mask_folders import MaskFolder
from sam_jax.data.scenes import ProceduralScenes
from sam_jax.data.sources import Sa1bFolder
from sam_jax.ops import rle
from sam_jax.training.config import Stage, TrainConfig
from train.data import read_sources, stage_batches, texture_photos

HW = (60, 90)


def pixels(seed):
    return np.random.default_rng(seed).integers(0, 256, (*HW, 3), dtype=np.uint8)


def mask(seed):
    filled = np.zeros(HW, bool)
    filled[5 : 30 + seed, 10:50] = True
    return filled


@pytest.fixture
def data(tmp_path):
    """Records in two forms; one picture, one JSON and one mask are damaged."""
    (tmp_path / "sa").mkdir()
    for k in range(5):
        Image.fromarray(pixels(k)).save(tmp_path / "sa" / f"{k}.png")
        document = {"image": {}, "annotations": [{"segmentation": rle.encode(mask(k))}]}
        (tmp_path / "sa" / f"{k}.json").write_text(json.dumps(document))
    (tmp_path / "sa" / "1.png").write_bytes((tmp_path / "sa" / "1.png").read_bytes()[:500])
    (tmp_path / "sa" / "2.json").write_text("{")
    for k in range(3):
        for folder in ("images", "masks"):
            (tmp_path / "own" / folder).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(k)).save(tmp_path / "own" / "images" / f"{k}.jpg")
        Image.fromarray(mask(k)).save(tmp_path / "own" / "masks" / f"{k}.png")
    (tmp_path / "own" / "masks" / "0.png").write_bytes(b"no picture")
    return tmp_path


def config(data, **changes):
    options = {
        "stages": (Stage(10, 64, 4, 2),),
        "data_root": str(data),
        "photos": (("sa", 1.0), ("own", 2.0)),
    }
    return TrainConfig(**(options | changes))


def test_photos_name_any_form_of_data(data):
    sources = read_sources(config(data, cut_paste=0.6, scenes=1.0), 64)
    kinds = [type(source) for source, _ in sources]
    assert kinds == [Sa1bFolder, MaskFolder, CutPaste, CutPaste, ProceduralScenes]
    assert [weight for _, weight in sources] == pytest.approx([1.0, 2.0, 0.2, 0.4, 1.0])
    assert len(texture_photos(sources[0][0])) == 3  # the two damaged ones are passed over
    assert [type(s) for s, _ in read_sources(config("none", scenes=1.0), 64)] == [ProceduralScenes]


def test_half_of_the_objects_come_from_the_same_folder(data, monkeypatch):
    seen = []

    class Pasted(CutPaste):
        def __init__(self, source, size, seed, length, donors):
            seen.append((source, donors))
            super().__init__(source, size, seed, length, donors)

    monkeypatch.setattr(train.data, "CutPaste", Pasted)
    read_sources(config(data, cut_paste=1.0), 64)
    (one, donors), (other, _) = seen
    assert donors == [(one, 3.0), (one, 1.0), (other, 2.0)]


def test_cut_outs_are_pasted_and_not_trained_on(data):
    run = config(data, photos=(("sa", 1.0),), cut_paste=0.5, cut_outs=(("own", 3.0),))
    (photos, _), (composites, weight) = read_sources(run, 64)
    assert (type(photos), type(composites), weight) == (Sa1bFolder, CutPaste, 0.5)
    donors = [(type(donor), share) for donor, share in composites.donors]
    assert donors == [(Sa1bFolder, 1.0), (Sa1bFolder, 1.0), (MaskFolder, 3.0)]
    with pytest.raises(ValueError, match=r"cut_outs: path: .*nowhere does not exist"):
        read_sources(config(data, cut_paste=0.5, cut_outs=(("nowhere", 1.0),)), 64)


def test_there_are_many_composites_on_each_photo(data, monkeypatch):
    """Unless something is computed once for each of them and kept."""
    seen = []

    def first(sources, *args, **options):
        seen.append([len(source) for source, _ in sources])
        return iter(())

    monkeypatch.setattr(train.data, "batches", first)
    run = config(data, cut_paste=1.0)
    stage_batches(run, 0, 0)
    photos = seen[0][:2]
    assert seen[0][2:] == [train.data.PASTINGS * count for count in photos]
    for kept in ("cache", "crops"):
        stage_batches(run, 0, 0, **{kept: lambda source, *rest: source})
        assert seen.pop() == [*photos, *photos]


def test_damage_is_skipped_named_and_counted(data):
    skipped = {}
    reader = stage_batches(config(data), 0, 0, skipped=skipped, threads=0)
    for _ in range(12):
        batch = next(reader)
        assert batch["image"].shape == (4, 64, 64, 3) and batch["mask_valid"].any(1).all()
    reader.close()
    assert sorted(skipped) == ["0:1", "0:2", "1:0"]
    for key, text in [
        ("0:1", "1.png is trunc"),
        ("0:2", "2.json: not read"),
        ("1:0", "mask 0.png"),
    ]:
        assert text in skipped[key]


def test_processes_share_the_same_global_batches(data):
    whole = stage_batches(config(data), 0, 3, threads=0)
    expected = next(whole)
    whole.close()
    for count in (2, 4):
        for index in range(count):
            part = stage_batches(
                config(data), 0, 3, process_index=index, process_count=count, threads=2
            )
            got = next(part)
            part.close()
            for key, value in expected.items():
                size = len(value) // count
                np.testing.assert_array_equal(got[key], value[index * size : (index + 1) * size])


def test_without_augmentation_nothing_changes_the_picture(data):
    reader = stage_batches(config(data, photos=(("sa", 1.0),), augment=False), 0, 0, threads=0)
    for _ in range(10):
        for image in next(reader)["image"]:
            resized = [np.asarray(Image.fromarray(pixels(k)).resize((64, 43), 2)) for k in range(5)]
            assert min(np.abs(image[:43].astype(int) - r).max() for r in resized) <= 1
    reader.close()


def test_missing_data_is_said_with_the_argument(data):
    with pytest.raises(ValueError, match="data_root, photos: .*absent does not exist"):
        read_sources(config(data, photos=(("absent", 1.0),)), 64)
