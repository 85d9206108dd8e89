"""SA-1B as TFDS prepares it: a mini data set written by TFDS's own builder."""

import importlib
import io
import json
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from sam_jax.data.sources import RecordError
from sam_jax.data.tfds import TfdsSegmentAnything, is_tfds_folder
from sam_jax.ops import rle

BUILDER = "tensorflow_datasets.datasets.segment_anything.segment_anything_dataset_builder"


def jpeg(seed, hw=(24, 36)):
    file = io.BytesIO()
    noise = np.random.default_rng(seed).integers(0, 256, (*hw, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file, "JPEG")
    return file.getvalue()


def mask(number):
    filled = np.zeros((24, 36), bool)
    filled[2 : 8 + number, 9:18] = True
    return filled


def examples():
    """Record i has i masks; record 3 a picture of another size."""
    for i in range(4):
        annotations = [
            {
                "area": int(mask(k).sum()),
                "bbox": np.array([2 / 24, 0.25, (8 + k) / 24, 0.5]),
                "crop_box": np.array([0.0, 0.0, 1.0, 1.0]),
                "id": k,
                "point_coords": [[1.0, 2.0]],
                "predicted_iou": 0.9,
                "segmentation": rle.encode(mask(k)),
                "stability_score": 0.9,
            }
            for k in range(i)
        ]
        image = {"file_name": f"sa_{i}.jpg", "height": 24, "width": 36, "image_id": i}
        image["content"] = io.BytesIO(jpeg(i, (24, 36) if i < 3 else (24, 30)))
        yield i, {"image": image, "annotations": annotations}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    pytest.importorskip("tensorflow_datasets", reason="needs the extra train")
    folder = tmp_path_factory.mktemp("tfds")
    module = importlib.import_module(BUILDER)
    builder = module.Builder(data_dir=str(folder), file_format="array_record")
    builder._split_generators = lambda _: {"train": examples()}
    builder.download_and_prepare()
    return folder


def by_name(source):
    records = {}
    for index in range(len(source)):
        try:
            record = source[index]
            records[record["name"]] = record
        except RecordError as error:
            records[str(error).split(":")[0]] = error
    return records


def test_reads_every_record(data):
    source = TfdsSegmentAnything(data)
    assert len(source) == 4 and is_tfds_folder(data)
    records = by_name(source)
    assert sorted(records) == [f"sa_{i}.jpg" for i in range(4)]
    for i in range(3):
        record = records[f"sa_{i}.jpg"]
        np.testing.assert_array_equal(record["image"], np.asarray(Image.open(io.BytesIO(jpeg(i)))))
        assert record["rles"] == [rle.encode(mask(k)) for k in range(i)]
    stated = records["sa_2.jpg"]["stated"][1]
    assert stated["area"] == 7 * 9 and stated["bbox"] == pytest.approx([9, 2, 9, 7], abs=1e-4)
    assert "has size [24, 36] but its picture is [24, 30]" in str(records["sa_3.jpg"])
    with pytest.raises(IndexError):
        source[4]


def test_copies_threads_and_parts(data):
    source = TfdsSegmentAnything(data / "segment_anything" / "1.0.0", "train[:3]")
    assert len(source) == 3
    copy = pickle.loads(pickle.dumps(source))
    with ThreadPoolExecutor(4) as pool:
        lengths = list(pool.map(lambda k: len(by_name(copy)), range(8)))
    assert lengths == [3] * 8


def test_a_damaged_file_is_named_and_never_fatal(data, tmp_path):
    folder = tmp_path / "1.0.0"
    shutil.copytree(data / "segment_anything" / "1.0.0", folder)
    (file,) = folder.glob("*array_record-*")
    content = bytearray(file.read_bytes())
    place = content.index(b"JFIF")
    content[place : place + 400] = bytes(400)
    file.write_bytes(content)
    source = TfdsSegmentAnything(folder)
    with pytest.raises(RecordError, match="record . of .*1.0.0|sa_.*"):
        for index in range(4):
            source[index]


def write_info(folder, **changes):
    folder.mkdir(parents=True)
    info = {"name": "segment_anything", "fileFormat": "array_record"} | changes
    (folder / "dataset_info.json").write_text(json.dumps(info))


def test_other_data_sets_are_refused_in_one_sentence(tmp_path):
    with pytest.raises(ValueError, match="a folder with dataset_info.json.*tfds build"):
        TfdsSegmentAnything(tmp_path)
    write_info(tmp_path / "a" / "1.2.0", fileFormat="tfrecord")
    write_info(tmp_path / "a" / "1.10.0", name="coco")
    with pytest.raises(ValueError, match="1.10.0 is 'coco'"):
        TfdsSegmentAnything(tmp_path)
    with pytest.raises(ValueError, match="has tfrecord files, which have no random access"):
        TfdsSegmentAnything(tmp_path / "a" / "1.2.0")


def test_no_such_split(data):
    with pytest.raises(ValueError, match="split 'validation'"):
        TfdsSegmentAnything(data, "validation")
