"""The released names against the released code, with the same random weights."""

from __future__ import annotations

import inspect
import warnings

import jax
import numpy as np
import pytest

from sam_jax import compat
from sam_jax.checkpoint.load import save
from sam_jax.models.config import CONFIGS, VIT_B
from tests.small import CONFIG, photo, small_sam, variables

pytestmark = pytest.mark.optimised

SIZES = {"landscape": (90, 170), "portrait": (201, 133), "tiny": (5, 7), "square": (64, 64)}


@pytest.fixture(scope="module")
def plain():
    """A model with fresh weights; needs no PyTorch."""
    return compat.Sam(CONFIG, small_sam().params)


@pytest.fixture(scope="module")
def pair():
    """The released model and this project's, with the same weights."""
    from tests.reference import build_reference, lively, stand_in_torchvision, state

    stand_in_torchvision()  # the released code imports torchvision, which need not be there
    from sam_jax.checkpoint.names import from_torch

    reference = lively(build_reference(CONFIG), 3)
    return reference, compat.Sam(CONFIG, from_torch(state(reference), CONFIG))


def prompts_for(hw, low: np.ndarray) -> dict[str, dict]:
    """The kinds of prompts that the issue lists."""
    h, w = hw
    points = np.array([[0.4 * w, 0.6 * h], [0.7 * w, 0.2 * h], [0.1 * w, 0.8 * h]])
    labels, box = np.array([1, 0, 1]), np.array([0.2 * w, 0.1 * h, 0.8 * w, 0.7 * h])
    return {
        "point": dict(point_coords=points[:1], point_labels=labels[:1]),
        "points": dict(point_coords=points, point_labels=labels, multimask_output=False),
        "box": dict(box=box),
        "box and points": dict(box=box, point_coords=points[:2], point_labels=labels[:2]),
        "mask": dict(mask_input=low, multimask_output=False),
        "mask and points": dict(mask_input=low, point_coords=points, point_labels=labels),
        "nothing": {},
    }


@pytest.mark.torch
@pytest.mark.parametrize("size", SIZES)
def test_predictor_gives_the_released_masks(pair, size):
    compare_predictors(*pair, photo(SIZES[size]))


@pytest.mark.torch
@pytest.mark.slow
def test_predictor_gives_the_released_masks_with_vit_b():
    from sam_jax.checkpoint.names import from_torch
    from tests.reference import build_reference, lively, stand_in_torchvision, state

    stand_in_torchvision()
    reference = lively(build_reference(VIT_B), 3)
    own = compat.Sam(VIT_B, from_torch(state(reference), VIT_B))
    compare_predictors(reference, own, photo((450, 640)))


def compare_predictors(reference, own, image):
    """Embedding, masks, scores and logits of both predictors for every kind of prompt."""
    from segment_anything import SamPredictor

    theirs, ours = SamPredictor(reference), compat.SamPredictor(own)
    theirs.set_image(image)
    ours.set_image(image)
    expected = theirs.get_image_embedding().numpy()
    embedding = ours.get_image_embedding()
    assert embedding.shape == expected.shape
    np.testing.assert_allclose(embedding, expected, atol=1e-5 * np.abs(expected).max())
    assert (ours.original_size, ours.input_size) == (theirs.original_size, theirs.input_size)
    _, _, logits = theirs.predict(np.array([[1.0, 2.0]]), np.array([1]))
    for kind, prompt in prompts_for(image.shape[:2], logits[:1]).items():
        for as_logits in (True, False):
            their, our = (p.predict(**prompt, return_logits=as_logits) for p in (theirs, ours))
            for a, b in zip(our, their, strict=True):
                assert a.shape == b.shape and a.dtype == b.dtype, kind
            if as_logits:
                values, rounding = their[0], 2e-5 * np.abs(their[0]).max()
                np.testing.assert_allclose(our[0], values, atol=rounding, err_msg=kind)
            else:  # pixels at the threshold may fall on either side
                assert (np.abs(values[our[0] != their[0]]) <= rounding).all(), kind
            np.testing.assert_allclose(our[1], their[1], atol=1e-4, err_msg=kind)
            np.testing.assert_allclose(our[2], their[2], atol=1e-5 * np.abs(their[2]).max())


@pytest.mark.torch
def test_predict_torch_takes_and_gives_tensors(pair):
    reference, own = pair
    import torch
    from segment_anything import SamPredictor

    image = photo((90, 170))
    theirs, ours = SamPredictor(reference), compat.SamPredictor(own)
    theirs.set_image(image, "BGR")
    ours.set_image(image, "BGR")
    boxes = torch.tensor([[5, 6, 80, 70], [10, 10, 160, 85], [30.5, 20.5, 60, 60]])
    their_boxes = theirs.transform.apply_boxes_torch(boxes, image.shape[:2])
    our_boxes = ours.transform.apply_boxes_torch(boxes, image.shape[:2])
    assert torch.equal(our_boxes, their_boxes)
    arguments = dict(point_coords=None, point_labels=None, multimask_output=False)
    their = theirs.predict_torch(boxes=their_boxes, **arguments)
    our = ours.predict_torch(boxes=our_boxes.to(ours.device), **arguments)
    assert all(isinstance(value, torch.Tensor) for value in our)
    assert our[0].shape == their[0].shape == (3, 1, 90, 170) and our[0].dtype == torch.bool
    assert (our[0] != their[0]).float().mean() < 1e-4
    torch.testing.assert_close(our[1], their[1], atol=1e-4, rtol=0)
    numpy_out = ours.predict_torch(boxes=np.asarray(our_boxes), **arguments)
    assert isinstance(numpy_out[0].cpu().numpy(), np.ndarray)
    np.testing.assert_array_equal(numpy_out[0], our[0].numpy())


@pytest.mark.torch
def test_batched_points_masks_and_boxes(pair):
    reference, own = pair
    import torch
    from segment_anything import SamPredictor

    image = photo((70, 64), 1)
    theirs, ours = SamPredictor(reference), compat.SamPredictor(own)
    theirs.set_image(image)
    ours.set_image(image)
    rng = np.random.default_rng(0)
    points = torch.tensor(rng.uniform(0, 60, (5, 3, 2)), dtype=torch.float32)
    labels = torch.tensor(rng.integers(-1, 2, (5, 3)))
    boxes = torch.tensor([[1.0, 2, 40, 50]]).repeat(5, 1)
    masks = torch.tensor(rng.normal(size=(5, 1, 16, 16)), dtype=torch.float32)
    for given in [
        (points, labels, None, None),
        (points, labels, boxes, masks),
        (None, None, boxes, masks[:1]),
        (None, None, None, masks),
    ]:
        their, our = (p.predict_torch(*given, return_logits=True) for p in (theirs, ours))
        for a, b in zip(our, their, strict=True):
            torch.testing.assert_close(a, b, atol=3e-5 * float(b.abs().max()), rtol=0)


@pytest.mark.torch
def test_the_model_called_with_a_batch(pair):
    reference, own = pair
    import torch

    batch = []
    for hw in ((48, 64), (64, 40)):
        image = torch.tensor(photo(hw).transpose(2, 0, 1).copy())
        batch.append(
            {
                "image": image,
                "original_size": (hw[0] * 2, hw[1] * 2),
                "boxes": torch.tensor([[1.0, 1, 30, 30], [5, 5, 20, 38]]),
            }
        )
    their = reference(batch, multimask_output=True)
    our = own(batch, multimask_output=True)
    for a, b in zip(our, their, strict=True):
        assert a.keys() == b.keys() and a["masks"].shape == b["masks"].shape
        assert (a["masks"] != b["masks"]).float().mean() < 1e-4
        torch.testing.assert_close(a["iou_predictions"], b["iou_predictions"], atol=1e-4, rtol=0)
    (lone,) = own([{k: batch[0][k] for k in ("image", "original_size")}], False)
    assert all(torch.is_tensor(value) for value in lone.values())


@pytest.mark.torch
def test_resizing_and_coordinates(pair):
    import torch
    from segment_anything.utils.transforms import ResizeLongestSide

    theirs, ours = ResizeLongestSide(64), compat.ResizeLongestSide(64)
    for hw in [(90, 170), (201, 133), (5, 7), (64, 64), (31, 500)]:
        image = photo(hw)
        np.testing.assert_array_equal(ours.apply_image(image), theirs.apply_image(image))
        assert ours.apply_image(image).flags.writeable
        points = np.random.default_rng(0).uniform(0, 100, (3, 4, 2))
        for name, given in (("apply_coords", points), ("apply_boxes", points.reshape(-1, 4))):
            np.testing.assert_array_equal(
                getattr(ours, name)(given, hw), getattr(theirs, name)(given, hw)
            )
        tensor = torch.tensor(image.transpose(2, 0, 1)[None].astype(np.float32))
        torch.testing.assert_close(
            ours.apply_image_torch(tensor), theirs.apply_image_torch(tensor), atol=0.05, rtol=0
        )


@pytest.mark.torch
def test_signatures_are_the_released_ones(pair):
    import segment_anything as theirs

    for ours, released in [
        (compat.SamPredictor.predict, theirs.SamPredictor.predict),
        (compat.SamPredictor.predict_torch, theirs.SamPredictor.predict_torch),
        (compat.SamPredictor.set_image, theirs.SamPredictor.set_image),
        (compat.SamPredictor.set_torch_image, theirs.SamPredictor.set_torch_image),
        (compat.SamAutomaticMaskGenerator.__init__, theirs.SamAutomaticMaskGenerator.__init__),
    ]:
        a, b = (
            [(p.name, p.default) for p in inspect.signature(f).parameters.values()]
            for f in (ours, released)
        )
        assert a[: len(b)] == b
        assert a[len(b) :] == ([("max_area_ratio", 1.0)] if "Generator" in str(ours) else [])
    assert set(theirs.sam_model_registry) <= set(compat.sam_model_registry)


def blobs(points_xy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A stand-in for the decoder: logits [N, 4, 16, 16] and scores [N, 4] out of points [N, 2].

    Discs around the point with a hole and an island, so that every step of the generator matters;
    a network with random weights paints the whole photo whatever the point.
    """
    x, y = (points_xy[:, i, None, None, None].astype(np.float32) for i in (0, 1))
    k = np.arange(4, dtype=np.float32)[:, None, None]
    row, column = (np.mgrid[:16, :16].astype(np.float32) * 4 + 2)[:, None, None]
    radius = 3 + 3 * k + (7 * x + 3 * y) % 9

    def disc(dx, dy, r):
        return r - np.hypot(column - x - dx, row - y - dy)

    hole, island = disc(2 + k, 1.0, 0.35 * radius), disc(-19.0, 9 * k - 8, 1 + (x + y) % 5)
    logits = np.maximum(np.minimum(disc(0.0, 0.0, radius), -hole), island) + 0.3
    return logits.astype(np.float32), (0.8 + 0.2 * np.sin(3 * x + 5 * y + k))[..., 0, 0]


@pytest.fixture
def pair_of_blobs(pair, monkeypatch):
    """Both models with `blobs` in place of their decoders."""
    import torch

    reference, own = pair

    class Prompts(torch.nn.Module):
        def forward(self, points, boxes, masks):
            return points[0][:, 0], None

        def get_dense_pe(self):
            return None

    class Decoder(torch.nn.Module):
        def forward(self, sparse_prompt_embeddings, **_):
            logits, scores = blobs(sparse_prompt_embeddings.float().numpy())
            return torch.tensor(logits[:, 1:]), torch.tensor(scores[:, 1:])

    monkeypatch.setitem(reference._modules, "prompt_encoder", Prompts())
    monkeypatch.setitem(reference._modules, "mask_decoder", Decoder())

    def decode_points(self, features, points, at_once, least):
        results = [blobs(own) for own in points]
        logits, scores = (np.stack(x)[:, :, 1:] for x in zip(*results, strict=True))
        return jax.device_put((logits, scores), features.sharding)

    monkeypatch.setattr(compat.CompiledModel, "decode_points", decode_points)
    return pair


def both_records(pair, image, **arguments) -> int:
    """Checks that both generators give the same records; returns how many."""
    from segment_anything import SamAutomaticMaskGenerator

    reference, own = pair
    their = SamAutomaticMaskGenerator(reference, **arguments).generate(image)
    our = compat.SamAutomaticMaskGenerator(own, **arguments).generate(image)
    assert len(our) == len(their)
    for a, b in zip(our, their, strict=True):
        assert a.keys() == b.keys()
        assert a["bbox"] == b["bbox"] and a["crop_box"] == b["crop_box"]
        assert abs(a["area"] - b["area"]) <= 2 and a["point_coords"] == b["point_coords"]
        assert abs(a["predicted_iou"] - b["predicted_iou"]) < 1e-4
        assert abs(a["stability_score"] - b["stability_score"]) < 1e-3
        if isinstance(a["segmentation"], dict):
            assert type(a["segmentation"]["counts"]) is type(b["segmentation"]["counts"])
            assert a["area"] != b["area"] or a["segmentation"] == b["segmentation"]
        else:
            assert (a["segmentation"] != b["segmentation"]).mean() < 1e-4
    return len(our)


@pytest.mark.torch
@pytest.mark.parametrize(
    "changes",
    [
        dict(output_mode="binary_mask"),
        dict(output_mode="uncompressed_rle", points_per_batch=7),
        dict(output_mode="coco_rle", crop_n_layers=1, crop_n_points_downscale_factor=2),
        dict(min_mask_region_area=60),
        dict(
            min_mask_region_area=600,
            crop_n_layers=2,
            crop_n_points_downscale_factor=2,
            crop_overlap_ratio=0.5,
        ),
        dict(points_per_side=None, point_grids=[np.array([[0.3, 0.4], [0.7, 0.5], [0.1, 0.9]])]),
        dict(pred_iou_thresh=0.0, stability_score_thresh=0.0, stability_score_offset=0.5),
    ],
    ids=["plain", "batches", "crops", "regions", "layers and regions", "own grid", "no thresholds"],
)
def test_generator_gives_the_released_records(pair_of_blobs, changes):
    if "min_mask_region_area" in changes:
        pytest.importorskip("cv2", reason="the released code cleans regions with OpenCV")
    if changes.get("output_mode") == "coco_rle":
        pytest.importorskip("pycocotools", reason="the released code makes COCO RLE with it")
    arguments = {
        "points_per_side": 8,
        "pred_iou_thresh": 0.7,
        "stability_score_thresh": 0.6,
        "box_nms_thresh": 0.6,
        **changes,
    }
    for hw in ((120, 150), (201, 133))[: 1 if "crop_n_layers" in changes else 2]:
        assert both_records(pair_of_blobs, photo(hw, 2), **arguments) >= 2


@pytest.mark.torch
def test_generator_with_the_network_gives_the_released_records(pair):
    # Its masks all fill the photo, so only a threshold of 1 leaves more than one of them.
    count = both_records(
        pair,
        photo((120, 150), 2),
        points_per_side=6,
        points_per_batch=10,
        pred_iou_thresh=-1.0,
        stability_score_thresh=0.3,
        box_nms_thresh=1.0,
    )
    assert count > 30


def test_the_predictor_s_state(plain):
    predictor = compat.SamPredictor(plain)
    assert not predictor.is_image_set and predictor.features is None
    with pytest.raises(RuntimeError, match="set_image"):
        predictor.predict(np.array([[1, 2]]), np.array([1]))
    with pytest.raises(RuntimeError, match="set_image"):
        predictor.get_image_embedding()
    image = photo((30, 40))
    predictor.set_image(image)
    masks, scores, logits = predictor.predict(np.array([[20, 10]]), np.array([1]))
    assert masks.shape == (3, 30, 40) and scores.shape == (3,) and logits.shape == (3, 16, 16)
    kept = predictor.get_image_embedding().cpu().numpy()
    other = compat.SamPredictor(plain)
    other.features, other.is_image_set = kept, True
    other.original_size, other.input_size = predictor.original_size, predictor.input_size
    again = other.predict(np.array([[20, 10]]), np.array([1]))
    np.testing.assert_array_equal(again[2], logits)
    predictor.reset_image()
    assert not predictor.is_image_set and predictor.original_size is None


def test_bad_arguments_are_value_errors(plain):
    predictor = compat.SamPredictor(plain)
    with pytest.raises(ValueError, match="image_format"):
        predictor.set_image(photo((8, 8)), "GBR")
    with pytest.raises(ValueError, match="uint8"):
        predictor.set_image(photo((8, 8)).astype(np.float32))
    with pytest.raises(ValueError, match="long side 64"):
        predictor.set_torch_image(np.zeros((1, 3, 10, 10)), (10, 10))
    predictor.set_image(photo((8, 8)))
    with pytest.raises(ValueError, match="point_labels"):
        predictor.predict(np.array([[1, 2]]))
    with pytest.raises(ValueError, match="BxNx2"):
        predictor.predict(np.array([[1, 2]]), np.array([1, 0]))
    with pytest.raises(ValueError, match="same number"):
        predictor.predict_torch(np.zeros((2, 1, 2)), np.ones((2, 1)), np.zeros((3, 4)))


def test_registry_builds_and_loads(tmp_path, monkeypatch):
    monkeypatch.setitem(CONFIGS, "small", CONFIG)
    # What `init` gives is the business of the model's tests, and takes long to compile.
    monkeypatch.setattr(compat, "init", lambda config, key: variables(config, 1))
    build = compat._builder("small")
    sam = build()
    assert sam.image_encoder.img_size == 64 and sam.mask_threshold == 0.0
    assert sam.image_format == "RGB" and sam.to("cpu").eval() is sam
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert sam.to("mps") is sam
    assert "stays on" in str(caught[0].message)
    path = tmp_path / "small.pth"
    save(small_sam(), path)
    again = build(checkpoint=str(path))
    jax.tree.map(np.testing.assert_array_equal, small_sam().params, again.params)
    with pytest.raises(ValueError, match="small.pth"):
        compat.sam_model_registry["vit_b"](checkpoint=str(path))
