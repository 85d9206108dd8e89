"""Automatic masks of the bundled model, record for record those of the released generator."""

from __future__ import annotations

import numpy as np
import pytest

import sam_jax
from sam_jax.checkpoint.names import to_torch
from sam_jax.checkpoint.pth import write_pth
from sam_jax.data.images import read_image
from sam_jax.inference.generator import MaskGenerator

pytestmark = [pytest.mark.torch, pytest.mark.shared, pytest.mark.slow, pytest.mark.optimised]

CROWD = "coco_cc/coco_000000005001.jpg"
CELLS = "dsb2018_bbbc038/dsb_1c8b905c9519061d.jpg"
LOW = dict(pred_iou_thresh=0.3, stability_score_thresh=0.7)
"""Thresholds under which dozens of masks are kept."""
VARIANTS = {
    "defaults": ([CROWD], dict()),
    "one layer": (
        [CELLS],
        dict(crop_n_layers=1, crop_n_points_downscale_factor=2, points_per_side=16),
    ),
    "two layers": (
        [CROWD],
        dict(crop_n_layers=2, crop_n_points_downscale_factor=2, points_per_side=12),
    ),
    "regions": ([CROWD, CELLS], dict(min_mask_region_area=100, points_per_side=16)),
}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The bundled model, and its .pth in the released classes built in its shape."""
    import torch

    from tests.reference import build_reference

    sam = sam_jax.load("tiny")
    path = tmp_path_factory.mktemp("tiny") / "tiny.pth"
    write_pth(path, to_torch(sam.params))
    reference = build_reference(sam.config)
    reference.load_state_dict(torch.load(path, weights_only=True), strict=True)
    return sam, reference


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_records_are_the_released_ones(pair, shared, variant):
    from segment_anything import SamAutomaticMaskGenerator

    if variant == "regions":
        pytest.importorskip("cv2", reason="the released code cleans regions with OpenCV")
    sam, reference = pair
    photos, arguments = VARIANTS[variant][0], {**LOW, **VARIANTS[variant][1]}
    ours, theirs = (
        MaskGenerator(sam, **arguments),
        SamAutomaticMaskGenerator(reference, **arguments),
    )
    far = []
    for name in photos:
        photo = read_image(shared / "val" / name)
        a, b = ours.generate(photo), theirs.generate(photo)
        assert len(a) == len(b) > 20, name
        for one, other in matched(a, b):
            assert np.abs(np.subtract(one["bbox"], other["bbox"])).max() <= 1
            other_pixels = np.count_nonzero(one["segmentation"] != other["segmentation"])
            assert other_pixels <= max(1, 0.01 * other["area"])
            assert abs(one["predicted_iou"] - other["predicted_iou"]) < 1e-3
            # The logits of both are equal to 1e-5 of their range, so that now and then a pixel
            # falls on the other side of a threshold; of a small mask that is more than 1e-3.
            apart = abs(one["stability_score"] - other["stability_score"])
            assert apart < max(1e-3, 3 / other["area"])
            far.append(abs(one["area"] - other["area"]))
            assert one["crop_box"] == other["crop_box"]
            assert one["point_coords"] == other["point_coords"]
    print(f"{variant}: {len(far)} masks, areas apart by 0, 1, ... pixels: {np.bincount(far)}")
    assert max(far) <= 3 and np.mean(np.array(far) <= 1) > 0.99


def matched(ours: list[dict], theirs: list[dict]) -> list[tuple[dict, dict]]:
    """Pairs of records in the order of both; of equal scores the order may be another."""
    rest, pairs = list(theirs), []
    for one in ours:
        near = [
            other
            for other in rest
            if other["point_coords"] == one["point_coords"]
            and abs(other["predicted_iou"] - one["predicted_iou"]) < 1e-3
        ]
        assert near, f"no such record: {one['point_coords']}, {one['bbox']}"
        best = min(near, key=lambda r: np.abs(np.subtract(r["bbox"], one["bbox"])).sum())
        rest = [other for other in rest if other is not best]
        pairs.append((one, best))
    return pairs
