"""The paper's 23 data sets: each layout on a tiny copy, with masks that are known."""

from __future__ import annotations

import json
import pickle
import shutil
import zipfile

import numpy as np
import pytest
from PIL import Image

from sam_jax.data.listed import Subset, subsample
from sam_jax.data.sources import RecordError
from sam_jax.data.zero_shot import SETS, open_zero_shot
from sam_jax.ops.rle import decode, encode, uncompressed

HW = (12, 18)


def block(x0, y0, x1, y1):
    mask = np.zeros(HW, bool)
    mask[y0:y1, x0:x1] = True
    return mask


A, B = block(1, 2, 8, 7), block(10, 3, 16, 11)
LABELS = np.uint8(A + 2 * B)


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", HW[::-1], (90, 120, 200)).save(path)


def png(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def write(path, document):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))


def corners(mask):
    """A block's outline as polygons mean it: pixel edges."""
    y, x = np.nonzero(mask)
    x0, y0, x1, y1 = int(x.min()), int(y.min()), int(x.max()) + 1, int(y.max()) + 1
    return [[x0, y0], [x1, y0], [x1, y1], [x0, y1]]


def flat(mask):
    return [float(v) for xy in corners(mask) for v in xy]


def coco(path, folder, name, lvis=False):
    if folder is not None:
        picture(folder / name)
    image = {"id": 1, "height": HW[0], "width": HW[1], "file_name": name}
    if lvis:
        image["file_name"] = f"COCO_val2014_{name}"
    masks = [{"segmentation": encode(A)}, {"segmentation": [flat(B)]}]
    annotations = [
        {"id": k, "image_id": 1, "category_id": 1, "iscrowd": 0, **m} for k, m in enumerate(masks)
    ]
    write(path, {"images": [image], "annotations": annotations, "categories": [{"id": 1}]})


def ppdls(root):
    picture(root / "Plant" / "Ara2012" / "ara2012_plant001_rgb.png")
    png(root / "Plant" / "Ara2012" / "ara2012_plant001_label.png", LABELS)
    png(root / "Plant" / "Ara2012" / "ara2012_plant001_fg.png", LABELS)
    return ["Plant/Ara2012/ara2012_plant001_rgb.png"]


def bbbc038v1(root):
    picture(root / "stage1_train" / "f00" / "images" / "f00.png")
    for k, mask in enumerate((A, B)):
        png(root / "stage1_train" / "f00" / "masks" / f"{k}.png", np.uint8(255 * mask))
    return ["f00"]


def doors(root):
    folder = root / "DOORS" / "Regression" / "Te1_5000_b_2022-08-02 11.16.00"
    picture(folder / "img" / "000001.png")
    png(folder / "Rock_all" / "000001.png", np.uint8(255 * A))
    other = root / "DOORS" / "Regression" / "Tr_10000_ub"
    picture(other / "img" / "000001.png")
    png(other / "Rock_all" / "000001.png", np.uint8(255 * A))
    return ["DOORS/Regression/Te1_5000_b_2022-08-02 11.16.00/img/000001.png"]


def timberseg(root):
    coco(root / "prescaled" / "coco_annotation_rotated.json", root / "prescaled", "a.png")
    return ["a.png"]


def ndd20(root):
    def region(mask):
        x, y = zip(*corners(mask), strict=True)
        return {"shape_attributes": {"name": "polygon", "all_points_x": x, "all_points_y": y}}

    picture(root / "ABOVE" / "1.jpg")
    picture(root / "BELOW" / "2.jpg")
    write(root / "ABOVE_LABELS.json", {
        "1.jpg123": {"filename": "1.jpg", "regions": [region(A), region(B)]},
        "3.jpg1": {"filename": "3.jpg", "regions": []},
    })  # fmt: skip
    write(root / "BELOW_LABELS.json", {
        "2.jpg9": {"filename": "2.jpg", "regions": {"0": region(A), "1": region(B)}},
    })  # fmt: skip
    return ["ABOVE/1.jpg", "BELOW/2.jpg"]


def lvis(root):
    path = root / "annotations" / "lvis_v0.5_val.json"
    coco(path, None, "000000000042.jpg", lvis=True)
    document = json.loads(path.read_text())
    image = document["images"][0]
    document["images"].append(image | {"id": 2, "file_name": "COCO_val2014_000000000043.jpg"})
    document["annotations"] += [a | {"image_id": 2} for a in document["annotations"]]
    write(path, document)
    picture(root / "train2017" / "000000000042.jpg")
    picture(root / "val2017" / "000000000043.jpg")
    return ["000000000042.jpg", "000000000043.jpg"]


def streets(root):
    picture(root / "images" / "x.jpg")
    png(root / "labels" / "x.png", LABELS)
    return ["images/x.jpg"]


def zerowaste(root):
    folder = root / "zerowaste-f" / "train"
    coco(folder / "labels.json", folder / "data", "05_frame.PNG")
    return ["05_frame.PNG"]


def ishape(root):
    names = []
    for part in ("antenna", "wire"):
        picture(root / part / "val" / "image" / "7.jpg")
        png(root / part / "val" / "instance_map" / "7.png", LABELS.astype(np.uint16))
        picture(root / part / "train" / "image" / "7.jpg")
        names.append(f"{part}/val/image/7.jpg")
    return names


def ade20k(root):
    folder = root / "ADE20K_2021_17_01" / "images" / "ADE" / "validation" / "urban" / "street"
    picture(folder / "ADE_val_1.jpg")
    seg = np.zeros((*HW, 3), np.uint8)
    seg[A], seg[B] = (10, 20, 7), (10, 20, 9)  # the same class twice
    png(folder / "ADE_val_1_seg.png", seg)
    return ["ADE20K_2021_17_01/images/ADE/validation/urban/street/ADE_val_1.jpg"]


def ovis(root):
    picture(root / "train" / "v1" / "img_1.jpg")
    picture(root / "train" / "v1" / "img_2.jpg")
    write(root / "annotations_train.json", {
        "videos": [{"id": 3, "file_names": ["v1/img_1.jpg", "v1/img_2.jpg"]}],
        "annotations": [
            {"video_id": 3, "segmentations": [uncompressed(A), None]},
            {"video_id": 3, "segmentations": [encode(B), None]},
        ],
    })  # fmt: skip
    return ["v1/img_1.jpg"]


def hypersim(root):
    h5py = pytest.importorskip("h5py")
    for volume in ("ai_001_001", "ai_020_001", "ai_056_001"):
        images = root / volume / "images"
        picture(images / "scene_cam_00_final_preview" / "frame.0000.tonemap.jpg")
        folder = images / "scene_cam_00_geometry_hdf5"
        folder.mkdir(parents=True)
        with h5py.File(folder / "frame.0000.semantic_instance.hdf5", "w") as file:
            file["dataset"] = np.where(A, 4, np.where(B, 9, -1)).astype(np.int16)
    return ["ai_001_001/images/scene_cam_00_final_preview/frame.0000.tonemap.jpg"]


def ndispark(root):
    folder = root / "train"
    coco(folder / "train_coco_annotations.json", folder / "imgs", "1.jpg")
    return ["1.jpg"]


def visor(root):
    entry = {
        "image": {"name": "P01_107_frame_1.jpg", "image_path": "P01_107/P01_107_frame_1.jpg"},
        "annotations": [
            {"name": "cup", "segments": [corners(A)]},
            {"name": "hand", "segments": [corners(B), [[1, 1]]]},
            {"name": "gone", "segments": []},
        ],
    }
    other = {**entry, "image": {"name": "P01_108_frame_1.jpg"}}
    base = root / "GroundTruth-SparseAnnotations"
    write(base / "annotations" / "val" / "P01_107.json", {"video_annotations": [entry]})
    write(base / "annotations" / "val" / "P01_108.json", {"video_annotations": [other]})
    frames = base / "rgb_frames" / "val" / "P01"
    picture(frames / "P01_107" / "P01_107_frame_1.jpg")
    picture(frames / "P01_108_frame_1.jpg")
    with zipfile.ZipFile(frames / "P01_108.zip", "w") as archive:
        archive.write(frames / "P01_108_frame_1.jpg", "P01_108_frame_1.jpg")
    (frames / "P01_108_frame_1.jpg").unlink()
    return ["P01_107/P01_107_frame_1.jpg", "P01_108/P01_108_frame_1.jpg"]


def plittersdorf(root):
    folder = root / "plittersdorf_instance_segmentation_coco"
    for name in ("train", "test"):
        coco(folder / f"{name}.json", folder / "images", f"{name}.jpg")
    return ["train.jpg", "test.jpg"]


def egohos(root):
    for name in ("ego4d_1", "thu_2", "epic_3"):
        picture(root / "train" / "image" / f"{name}.jpg")
        png(root / "train" / "label" / f"{name}.png", LABELS)
    picture(root / "val" / "image" / "ego4d_9.jpg")
    png(root / "val" / "label" / "ego4d_9.png", LABELS)
    return ["train/image/ego4d_1.jpg", "train/image/thu_2.jpg"]


def ibd(root):
    picture(root / "train" / "x.png")
    png(root / "train_labels" / "x.png", LABELS)
    return ["train/x.png"]


def woodscape(root):
    picture(root / "rgb_images" / "00001_FV.png")
    annotation = [{"tags": ["car"], "segmentation": corners(m)} for m in (A, B)]
    document = {"00001_FV.json": {"image_height": HW[0], "annotation": annotation}}
    folder = root / "instance_annotations" / "instance_annotations"  # as it is unpacked
    write(folder / "00001_FV.json", document)
    return ["00001_FV"]


def cityscapes(root):
    stem = "bonn_000001_000019"
    picture(root / "leftImg8bit" / "val" / "bonn" / f"{stem}_leftImg8bit.png")
    ids = np.where(A, 24000, np.where(B, 7, 26000)).astype(np.int64)
    rgb = np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)
    folder = root / "gtFine" / "cityscapes_panoptic_val"
    png(folder / f"{stem}_gtFine_panoptic.png", rgb)
    segments = [{"id": 24000, "iscrowd": 0}, {"id": 7, "iscrowd": 0}, {"id": 26000, "iscrowd": 1}]
    entry = {"file_name": f"{stem}_gtFine_panoptic.png", "segments_info": segments}
    write(root / "gtFine" / "cityscapes_panoptic_val.json", {"annotations": [entry]})
    return [stem]


def pidray(root):
    coco(root / "annotations" / "xray_test_hard.json", root / "hard", "xray_hard1.png")
    return ["xray_hard1.png"]


def dram(root):
    picture(root / "test" / "realism" / "repin" / "1.jpg")
    labels = LABELS.copy()
    labels[0, 0] = 255
    png(root / "labels" / "repin" / "1.png", labels)
    return ["test/realism/repin/1.jpg"]


def trashcan(root):
    folder = root / "instance_version"
    coco(folder / "instances_train_trashcan.json", folder / "train", "vid_1.jpg")
    return ["vid_1.jpg"]


def gtea(root):
    picture(root / "GTEA" / "Images" / "a.jpg")
    png(root / "GTEA" / "Masks" / "a.png", LABELS)
    picture(root / "GTEA_GAZE_PLUS" / "Images" / "b.jpg")
    png(root / "GTEA_GAZE_PLUS" / "Masks" / "b.png", LABELS)
    return ["GTEA/Images/a.jpg"]


MAKERS = {
    f.__name__: f
    for f in (ppdls, bbbc038v1, doors, timberseg, ndd20, lvis, streets, zerowaste, ishape, ade20k,
              ovis, hypersim, ndispark, visor, plittersdorf, egohos, ibd, woodscape, cityscapes,
              pidray, dram, trashcan, gtea)
}  # fmt: skip


def test_there_are_23():
    assert len(SETS) == 23 and set(MAKERS) == set(SETS)
    assert sum(one.masks for one in SETS.values()) == 172_653
    assert sum(one.images for one in SETS.values()) == 40_188


@pytest.mark.parametrize("name", SETS)
def test_a_tiny_copy_of_each(name, tmp_path):
    names = MAKERS[name](tmp_path)
    source = pickle.loads(pickle.dumps(open_zero_shot(name, tmp_path)))
    assert len(source) == len(names)
    wanted = [A] if name == "doors" else [A, B]
    for index, expected in enumerate(names):
        record = source[index]
        assert record["name"] == expected
        assert record["image"].shape == (*HW, 3) and record["image"].dtype == np.uint8
        np.testing.assert_array_equal([decode(mask) for mask in record["rles"]], wanted)
        assert source.mask_count(index) == len(wanted)
    assert subsample(source) is source
    # The outer folder of an archive is found too.
    shutil.copytree(tmp_path, tmp_path.parent / f"{tmp_path.name}_up" / "archive")
    assert len(open_zero_shot(name, tmp_path.parent / f"{tmp_path.name}_up")) == len(names)


def test_lvis_in_the_folder_that_one_is_in(tmp_path, monkeypatch):
    MAKERS["lvis"](tmp_path)
    shutil.move(tmp_path / "annotations" / "lvis_v0.5_val.json", tmp_path)
    monkeypatch.chdir(tmp_path)
    assert open_zero_shot("lvis", ".")[0]["image"].shape == (*HW, 3)


@pytest.mark.parametrize("name", SETS)
def test_a_wrong_folder_says_what_was_expected(name, tmp_path):
    (tmp_path / "holiday").mkdir()
    picture(tmp_path / "holiday" / "beach.jpg")
    with pytest.raises(ValueError) as caught:
        open_zero_shot(name, tmp_path)
    assert SETS[name].layout in str(caught.value) and "it holds holiday" in str(caught.value)
    with pytest.raises(ValueError, match="no such folder"):
        open_zero_shot(name, tmp_path / "none")


def test_an_unknown_name():
    with pytest.raises(ValueError, match="expected one of ppdls, .*, got 'imagenet'"):
        open_zero_shot("imagenet", ".")


BROKEN = {
    "ppdls": ("Plant/Ara2012/ara2012_plant001_rgb.png", "Plant/Ara2012/ara2012_plant001_label.png"),
    "bbbc038v1": ("stage1_train/f00/images/f00.png", "stage1_train/f00/masks/0.png"),
    "ade20k": (
        "ADE20K_2021_17_01/images/ADE/validation/urban/street/ADE_val_1.jpg",
        "ADE20K_2021_17_01/images/ADE/validation/urban/street/ADE_val_1_seg.png",
    ),
    "cityscapes": (
        "leftImg8bit/val/bonn/bonn_000001_000019_leftImg8bit.png",
        "gtFine/cityscapes_panoptic_val/bonn_000001_000019_gtFine_panoptic.png",
    ),
    "woodscape": (
        "rgb_images/00001_FV.png",
        "instance_annotations/instance_annotations/00001_FV.json",
    ),
    "visor": ("GroundTruth-SparseAnnotations/rgb_frames/val/P01/P01_107/P01_107_frame_1.jpg", None),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_record_errors_with_their_name(name, tmp_path):
    names = MAKERS[name](tmp_path)
    for path in filter(None, BROKEN[name]):
        kept = (tmp_path / path).read_bytes()
        (tmp_path / path).write_bytes(b"damaged")
        with pytest.raises(RecordError, match=names[0].rsplit("/", 1)[-1]):
            open_zero_shot(name, tmp_path)[0]
        (tmp_path / path).write_bytes(kept)
    assert len(open_zero_shot(name, tmp_path)[0]["rles"]) == 2


def test_masks_of_another_size_are_named(tmp_path):
    egohos(tmp_path)
    png(tmp_path / "train" / "label" / "ego4d_1.png", LABELS[:-1])
    with pytest.raises(RecordError, match=r"ego4d_1.*\[11, 18\].*\[12, 18\]"):
        open_zero_shot("egohos", tmp_path)[0]


class Counted:
    """Records with known numbers of masks."""

    def __init__(self, counts):
        self.counts = counts

    def __len__(self):
        return len(self.counts)

    def __repr__(self):
        return "Counted"

    def mask_count(self, index):
        return self.counts[index]

    def __getitem__(self, index):
        return index


def test_large_sets_are_subsampled_by_image_to_about_10_000_masks():
    rng = np.random.default_rng(0)
    source = Counted(rng.integers(0, 60, 2000).tolist())
    some = subsample(source)
    assert isinstance(some, Subset)
    chosen = [some[i] for i in range(len(some))]
    assert chosen == sorted(set(chosen))
    assert 10_000 <= sum(source.counts[i] for i in chosen) < 10_060
    again = subsample(source)
    assert [again[i] for i in range(len(again))] == chosen and repr(again) == repr(some)
    other = subsample(source, seed=1)
    assert [other[i] for i in range(len(other))] != chosen
    small = Counted([10] * 1500)  # 15,000 are not more than 15,000
    assert subsample(small) is small
