"""Embeddings made once: the same as encoding, resumable, and trained on without the encoder."""

import dataclasses
import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from sam_jax.data.mask_folders import MaskFolder
from sam_jax.data.open_source import open_source
from sam_jax.data.pipeline import PipelineConfig
from sam_jax.data.samples import make_sample, whole_frame
from sam_jax.data.sources import RecordError
from sam_jax.data.store import Store
from sam_jax.models.sam import SamModel, init, normalise
from sam_jax.ops.rle import encode
from sam_jax.training.optim import make_optimizer
from sam_jax.training.step import init_state, make_step
from tests.training.test_step import CONFIG, SMALL, STAGE
from train import embeddings
from train.data import stage_batches
from train.embeddings import Cache, files_digest, fingerprint

PLAIN = {
    "flip": False,
    "colour_jitter": 0.0,
    "grey_probability": 0.0,
    "invert_probability": 0.0,
    "scale_range": (1.0, 1.0),
}


@pytest.fixture(scope="module")
def variables():
    made = init(SMALL, jax.random.key(0))
    # -0.0 is a bit pattern that adding zero would change
    encoder = made["params"]["image_encoder"]
    bias = encoder["patch_embed"]["bias"].at[0].set(-0.0)
    encoder["patch_embed"] = encoder["patch_embed"] | {"bias": bias}
    return made


@pytest.fixture
def data(tmp_path):
    """Six photographs of two shapes with a mask each; the fourth is damaged."""
    rng = np.random.default_rng(0)
    for folder in ("images", "masks"):
        (tmp_path / "own" / folder).mkdir(parents=True)
    for k in range(6):
        hw = (40, 60) if k % 2 else (50, 45)
        mask = np.zeros(hw, np.uint8)
        mask[5:30, 5 + k : 35] = 1
        photo = rng.integers(0, 256, (*hw, 3), dtype=np.uint8)
        Image.fromarray(photo).save(tmp_path / "own" / "images" / f"{k}.png")
        Image.fromarray(mask).save(tmp_path / "own" / "masks" / f"{k}.png")
    damaged = tmp_path / "own" / "images" / "3.png"
    damaged.write_bytes(damaged.read_bytes()[:300])
    return tmp_path


def open_own(data):
    return MaskFolder(data / "own" / "images", data / "own" / "masks")


def test_the_whole_frame_is_what_training_would_see(data):
    record = open_own(data)[1]
    config = PipelineConfig(image_size=32, mask_size=16, max_masks=2, **PLAIN)
    sample = make_sample(record, np.random.default_rng(3), config)
    image, hw = whole_frame(record["image"], 32)
    np.testing.assert_array_equal(image, sample["image"])
    np.testing.assert_array_equal(hw, sample["image_hw"])
    assert hw.tolist() == [21, 32]


def test_embeddings_are_what_the_encoder_gives(data, variables):
    source = Cache(variables, SMALL, data / "run")(open_own(data), data / "own", 32)
    image, hw = whole_frame(source.source[1]["image"], 32)
    expected = SamModel(SMALL).apply(variables, normalise(image[None], hw[None]), method="encode")
    record = source[1]
    assert record["embedding"].shape == (4, 4, 16) and record["embedding"].dtype == np.float16
    np.testing.assert_allclose(record["embedding"], expected[0], rtol=1e-3, atol=1e-3)
    with pytest.raises(RecordError, match=r"3.png"):
        source[3]


def test_an_interrupted_run_goes_on_and_nothing_is_made_twice(data, variables, monkeypatch):
    monkeypatch.setattr(embeddings, "FLUSH_EVERY", 2)
    made = []
    encoded = embeddings._encoded

    def counted(source, indices, *more):
        for index, value in encoded(source, indices, *more):
            made.append(index)
            yield index, value

    monkeypatch.setattr(embeddings, "_encoded", counted)
    assert Cache(variables, SMALL, data, lambda: True)(open_own(data), data / "own", 32) is None
    assert made == [0, 1]
    source = Cache(variables, SMALL, data)(open_own(data), data / "own", 32)
    assert made == [0, 1, 2, 3, 4, 5] and len(source) == 6
    again = Cache(variables, SMALL, data)(open_own(data), data / "own", 32)
    assert len(made) == 6
    np.testing.assert_array_equal(again[5]["embedding"], source[5]["embedding"])
    assert len(list(data.glob("embeddings-*"))) == 1


def test_the_fingerprint_is_of_weights_size_precision_and_files(data, variables):
    def key(variables=variables, config=SMALL, size=32):
        return fingerprint(open_own(data), data / "own", variables, config, size)

    first = key()
    assert first == key() and len(first) == 16
    assert key(size=64) != first and key(config=SMALL.replace(dtype="bfloat16")) != first
    other = jax.tree.map(lambda x: x, variables)
    other["params"]["mask_decoder"]["iou_token"] += 1.0
    assert key(other) == first
    other["params"]["image_encoder"]["pos_embed"] += 1e-6
    assert key(other) != first
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(data / "own" / "images" / "0.png")
    assert key() != first


@pytest.mark.parametrize("form", ["coco.json", "coco.json:images", "store"])
def test_a_changed_picture_counts_wherever_it_lies(tmp_path, form):
    def key():
        digest = hashlib.sha256()
        files_digest(digest, open_source(tmp_path / form), tmp_path / form)
        return digest.hexdigest()

    picture = tmp_path / "images" / "a.png"
    picture.parent.mkdir()
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(picture)
    mask = encode(np.eye(9, dtype=bool))
    document = {
        "images": [{"id": 1, "file_name": "a.png", "height": 9, "width": 9}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "segmentation": mask}],
    }
    (tmp_path / "coco.json").write_text(json.dumps(document))
    store = Store(tmp_path / "store", tmp_path / "images")
    store.add("mask", "a.png", "ann", **mask)
    first = key()
    (tmp_path / "store" / "embeddings").mkdir()
    (tmp_path / "store" / "embeddings" / "a.npy").write_bytes(b"of the annotation page")
    assert key() == first
    Image.fromarray(np.ones((9, 9, 3), np.uint8)).save(picture)
    assert key() != first


def test_a_full_disk_is_said_before(data, variables, monkeypatch):
    full = shutil_usage(free=1000)
    monkeypatch.setattr(embeddings.shutil, "disk_usage", lambda path: full)
    with pytest.raises(ValueError, match="cache_embeddings: 6 pictures .* 0.0 GB are free"):
        Cache(variables, SMALL, data / "run")(open_own(data), None, 32)


def shutil_usage(free):
    import shutil

    return shutil._ntuple_diskusage(0, 0, free)


def test_training_on_embeddings_leaves_the_encoder_bit_equal(data, variables):
    frozen = dataclasses.replace(CONFIG.optim, frozen=("image_encoder/*",), weight_decay=0.5)
    config = dataclasses.replace(
        CONFIG, optim=frozen, augment=False, data_root=str(data), photos=(("own", 1.0),)
    )
    skipped = {}
    cache = Cache(variables, SMALL, data)
    batches = stage_batches(config, 0, 0, cache, threads=0, skipped=skipped)
    optimizer = make_optimizer(config.optim, SMALL, 20)
    state = init_state(jax.tree.map(jnp.copy, variables), optimizer, True)
    step = make_step(config, STAGE, optimizer)
    for _ in range(8):
        batch = next(batches)
        assert "image" not in batch and batch["embedding"].shape == (2, 4, 4, 16)
        state, metrics = step(state, batch, jax.random.key(1))
    batches.close()
    assert float(metrics["loss"]) > 0 and list(skipped) == ["0:3"]
    for tree in (state.params, state.ema):
        jax.tree.map(
            lambda a, b: np.testing.assert_array_equal(
                np.asarray(a).view(np.uint32), np.asarray(b).view(np.uint32)
            ),
            tree["image_encoder"],
            variables["params"]["image_encoder"],
        )
    before = variables["params"]["mask_decoder"]["mask_tokens"]
    assert float(jnp.abs(state.params["mask_decoder"]["mask_tokens"] - before).max()) > 1e-4


def test_frozen_parts_do_not_count_in_the_gradient_norm(data, variables):
    optim = dataclasses.replace(CONFIG.optim, frozen=("image_encoder/*", "mask_decoder/*"))
    config = dataclasses.replace(CONFIG, optim=optim, data_root=str(data), photos=(("own", 1.0),))
    norms, stage = [], dataclasses.replace(STAGE, corrective_clicks=0, mask_only_rounds=0)
    for each in (CONFIG, config):
        optimizer = make_optimizer(each.optim, SMALL, 20)
        state = init_state(jax.tree.map(jnp.copy, variables), optimizer, False)
        each = dataclasses.replace(each, optim=dataclasses.replace(each.optim, ema=0.0))
        batches = stage_batches(config, 0, 0, threads=0)
        _, metrics = make_step(each, stage, optimizer)(state, next(batches), jax.random.key(1))
        batches.close()
        norms.append(float(metrics["grad_norm"]))
    assert 0 < norms[1] < 0.5 * norms[0]
