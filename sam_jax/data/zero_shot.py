"""The 23 data sets of the paper's single-point evaluation, each in its own layout (appendix D.1).

Layouts that could not be checked against the archives or code that reads them say "not verified".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from sam_jax.data import zero_shot_layouts as layouts
from sam_jax.data.sources import Source


@dataclasses.dataclass(frozen=True)
class ZeroShotSet:
    """One of the 23.

    Attributes:
      name: in `--data NAME=DIR`.
      title: the paper's.
      split: the part that the paper used.
      images, masks: how many of them the paper used.
      layout: the files that are expected below the root.
      open: from the root to a source; None where the files are not there.
    """

    name: str
    title: str
    split: str
    images: int
    masks: int
    layout: str
    open: Callable[[Path], Source | None]


def open_zero_shot(name: str, root: str | Path) -> Source:
    """The source of a data set in its own layout.

    Args:
      name: one of SETS.
      root: the folder of its files.

    Raises:
      ValueError: no such data set, or files of another layout.
    """
    if name not in SETS:
        raise ValueError(f"name: expected one of {', '.join(SETS)}, got {name!r}")
    one, root = SETS[name], Path(root)
    if not root.is_dir():
        raise ValueError(f"{name}: no such folder: {root}; it should hold\n{one.layout}")
    source = one.open(root)
    if source is None or not len(source):
        there = ", ".join(sorted(p.name for p in root.iterdir())[:8]) or "nothing"
        raise ValueError(f"{name}: expected in {root}\n{one.layout}\nbut it holds {there}")
    return source


_TABLE = (
    (
        "ppdls",
        "Plant Phenotyping Datasets, leaf segmentation",
        "all",
        182,
        2347,
        "NAME_rgb.png with NAME_label.png, in any folders",
        layouts.ppdls,
    ),
    (
        "bbbc038v1",
        "BBBC038v1 (nuclei)",
        "train",
        227,
        10506,
        "stage1_train/ID/images/ID.png with stage1_train/ID/masks/*.png",
        layouts.bbbc038,
    ),
    (
        "doors",
        "DOORS (boulders)",
        "data set 1",
        10000,
        10000,
        "Regression/Te*/img/N.png with Regression/Te*/Rock_all/N.png",
        layouts.doors,
    ),
    (
        "timberseg",
        "TimberSeg 1.0",
        "all",
        220,
        2487,
        "prescaled/coco_annotation_rotated.json with its pictures beside it",
        layouts.coco_files(("coco_annotation_rotated.json",), ()),
    ),
    (
        "ndd20",
        "NDD20 (dolphins)",
        "all",
        4402,
        6100,
        "ABOVE_LABELS.json and BELOW_LABELS.json (VIA) with ABOVE/*.jpg and BELOW/*.jpg",
        layouts.ndd20,
    ),
    (
        "lvis",
        "LVIS v0.5",
        "val",
        945,
        9642,
        "lvis_v0.5_val.json (or in annotations/) with train2017/ and val2017/ of COCO",
        layouts.lvis,
    ),
    (
        "streets",
        "STREETS (traffic)",
        "all",
        819,
        9854,
        "a VIA JSON beside images/*.jpg, or images/*.jpg with labels/*.png (not verified)",
        layouts.streets,
    ),
    (
        "zerowaste",
        "ZeroWaste-f",
        "train",
        2947,
        6155,
        "train/labels.json (COCO) with train/data/*.PNG",
        layouts.coco_files(("train/labels.json",), ("data",)),
    ),
    (
        "ishape",
        "iShape",
        "val",
        754,
        9742,
        "antenna|branch|fence|hanger|log|wire/val/image/* with val/instance_map/*.png",
        layouts.ishape,
    ),
    (
        "ade20k",
        "ADE20K",
        "val",
        302,
        10128,
        "images/ADE/validation/.../NAME.jpg with NAME_seg.png (the full release)",
        layouts.ade20k,
    ),
    (
        "ovis",
        "OVIS",
        "train",
        2044,
        10011,
        "annotations_train.json with train/VIDEO/*.jpg",
        layouts.ovis,
    ),
    (
        "hypersim",
        "Hypersim",
        "archinteriors 1-55 without 20, 25, 40 and 49",
        338,
        9445,
        "ai_VVV_NNN/images/scene_cam_XX_final_preview/frame.NNNN.tonemap.jpg with\n"
        "ai_VVV_NNN/images/scene_cam_XX_geometry_hdf5/frame.NNNN.semantic_instance.hdf5",
        layouts.hypersim,
    ),
    (
        "ndispark",
        "NDISPark",
        "train",
        111,
        2577,
        "train/train_coco_annotations.json with train/imgs/*.jpg",
        layouts.coco_files(("train/train_coco_annotations.json",), ("imgs",)),
    ),
    (
        "visor",
        "EPIC-KITCHENS VISOR",
        "val",
        1864,
        10141,
        "annotations/val/VIDEO.json with rgb_frames/val/KITCHEN/VIDEO/*.jpg or KITCHEN/VIDEO.zip",
        layouts.visor,
    ),
    (
        "plittersdorf",
        "Plittersdorf (camera traps)",
        "all",
        187,
        546,
        "train.json, val.json and test.json (COCO) with images/",
        layouts.coco_files(("train.json", "val.json", "test.json"), ("images",)),
    ),
    (
        "egohos",
        "EgoHOS",
        "train, Ego4D and THU-READ",
        2940,
        9961,
        "train/image/ego4d*.jpg and thu*.jpg with train/label/NAME.png",
        layouts.egohos,
    ),
    (
        "ibd",
        "IBD (buildings)",
        "train",
        467,
        11953,
        "train/images/*.png with train/labels/*.png, or train/ with train_labels/ (not verified)",
        layouts.ibd,
    ),
    (
        "woodscape",
        "WoodScape",
        "set 1",
        107,
        10266,
        "rgb_images/NAME.png with instance_annotations/NAME.json",
        layouts.woodscape,
    ),
    (
        "cityscapes",
        "Cityscapes",
        "val, panoptic",
        293,
        9973,
        "leftImg8bit/val/CITY/*_leftImg8bit.png with gtFine/cityscapes_panoptic_val.json and\n"
        "gtFine/cityscapes_panoptic_val/*.png (of cityscapesscripts)",
        layouts.cityscapes,
    ),
    (
        "pidray",
        "PIDRay (X-ray)",
        "test, hard",
        3733,
        8892,
        "annotations/xray_test_hard.json with hard/*.png",
        layouts.coco_files(("annotations/xray_test_hard.json",), ("../hard",)),
    ),
    (
        "dram",
        "DRAM (paintings)",
        "test, semantic",
        718,
        1179,
        "test/MOVEMENT/ARTIST/*.jpg with labels/.../*.png",
        layouts.dram,
    ),
    (
        "trashcan",
        "TrashCan 1.0",
        "train, instances",
        5936,
        9540,
        "instance_version/instances_train_trashcan.json with instance_version/train/*.jpg",
        layouts.coco_files(("instances_train_trashcan.json",), ("train",)),
    ),
    (
        "gtea",
        "GTEA (hands)",
        "train",
        652,
        1208,
        "Images/*.jpg with Masks/*.png, perhaps in GTEA/",
        layouts.gtea,
    ),
)

SETS: dict[str, ZeroShotSet] = {row[0]: ZeroShotSet(*row) for row in _TABLE}
"""The 23 data sets by name."""
