"""Training for text prompts: crops embedded once, a first prompt of text, the whole of a run."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from sam_jax.checkpoint.clip import save_clip
from sam_jax.checkpoint.load import load
from sam_jax.data.crops import crop_object, crop_rng
from sam_jax.data.described import DescribedScenes
from sam_jax.data.descriptions import VOCABULARY, matches, read_phrase
from sam_jax.data.pipeline import PipelineConfig
from sam_jax.data.samples import make_sample
from sam_jax.data.sources import RecordError
from sam_jax.inference.predictor import Predictor
from sam_jax.inference.text import crop_embedder
from sam_jax.models.prompt_encoder import EMPTY
from sam_jax.models.sam import SamModel, init
from sam_jax.ops.rle import area, decode
from sam_jax.training.config import LossConfig, TextConfig, ValidationConfig
from sam_jax.training.step import batch_loss, first_prompts, gradients
from tests.clips import SMALL as SMALL_CLIP
from tests.clips import word_clip
from tests.training.test_step import CONFIG, GRADIENT, SMALL, STAGE, make_batch
from train import __main__ as train_main
from train.advice import check, warnings
from train.blended_crops import Pool, blends
from train.contrastive import ContrastiveConfig, contrastive_loss, draw_objects, run
from train.contrastive import batches as contrastive_batches
from train.crop_embeddings import CropCache
from train.data import stage_batches
from train.embeddings import Cache
from train.start import starting_point

SCENES = DescribedScenes(5, 128, places=False)
TEXT = TextConfig(variants=3, min_area=250)


@pytest.fixture(scope="module")
def clip():
    return word_clip(VOCABULARY, 24)


def own_embeddings(clip, index):
    """Those of a record's masks that are large enough, computed one by one."""
    record, embed = SCENES[index], crop_embedder(clip)
    size = SMALL_CLIP.image_size, SMALL_CLIP.grid
    rows = []
    for number, rle in enumerate(record["rles"]):
        if area(rle) >= TEXT.min_area:
            rngs = [crop_rng(7, index, number, k) for k in range(TEXT.variants)]
            crops = [crop_object(record["image"], decode(rle), *size, rng) for rng in rngs]
            rows.append(embed(crops))
    return np.stack(rows)


def test_crops_are_embedded_once_and_are_those_of_their_masks(clip, tmp_path, monkeypatch):
    source = CropCache(clip, TEXT, 7, tmp_path)(SCENES, None)
    kept = []
    for index in range(len(SCENES)):
        record = source[index]
        large = [rle for rle in SCENES[index]["rles"] if area(rle) >= TEXT.min_area]
        assert record["rles"] == large and record["texts"].shape == (len(large), 3, 14)
        wanted = own_embeddings(clip, index)
        np.testing.assert_allclose(record["texts"], wanted, atol=2e-3)  # float16
        look = wanted.mean(1) / np.linalg.norm(wanted.mean(1), axis=-1, keepdims=True)
        np.testing.assert_allclose(record["looks"], look, atol=2e-3)
        assert np.abs(wanted[0, 1:] - wanted[0, :1]).max() > 0.02, "variants differ"
        kept.append(record["texts"])
    again = CropCache(clip, TEXT, 7, tmp_path)
    monkeypatch.setattr(again, "_fill", None)  # nothing is left to embed
    for index, rows in enumerate(kept):
        np.testing.assert_array_equal(again(SCENES, None)[index]["texts"], rows)
    other = CropCache(clip, dataclasses.replace(TEXT, min_area=251), 7, tmp_path)
    assert other._fingerprint(SCENES, None) != again._fingerprint(SCENES, None)


def test_an_interrupted_cache_goes_on(clip, tmp_path, monkeypatch):
    monkeypatch.setattr("train.crop_embeddings.FLUSH_EVERY", 2)
    whole = CropCache(clip, TEXT, 7, tmp_path / "whole")(SCENES, None)
    assert CropCache(clip, TEXT, 7, tmp_path / "cut", lambda: True)(SCENES, None) is None
    (file,) = (tmp_path / "cut").glob("crops-*/embeddings.f16")
    assert 0 < file.stat().st_size < 3 * 14 * 2 * sum(len(whole[i]["rles"]) for i in range(5))
    with file.open("ab") as out:  # written, and not yet counted
        out.write(b"\0" * 100)
    cut = CropCache(clip, TEXT, 7, tmp_path / "cut")(SCENES, None)
    for index in range(5):
        np.testing.assert_array_equal(cut[index]["texts"], whole[index]["texts"])


class Damaged:
    """Scenes of which the second cannot be read."""

    def __len__(self):
        return 3

    def __repr__(self):
        return "Damaged()"

    def __getitem__(self, index):
        if index == 1:
            raise RecordError("two: damaged")
        return SCENES[index]


def test_damaged_records_and_masks_that_are_too_small(clip, tmp_path):
    source = CropCache(clip, TEXT, 7, tmp_path)(Damaged(), None)
    with pytest.raises(RecordError, match="two: damaged"):
        source[1]
    np.testing.assert_allclose(source[2]["texts"], own_embeddings(clip, 2), atol=2e-3)
    with pytest.raises(ValueError, match="text.min_area: no mask of .* has 99999 pixels"):
        CropCache(clip, dataclasses.replace(TEXT, min_area=99999), 7, tmp_path)(Damaged(), None)


def test_a_sample_takes_the_texts_of_its_own_masks():
    record = dict(SCENES[0])
    count = len(record["rles"])
    record["texts"] = np.arange(count, dtype=np.float16)[:, None, None] + np.zeros((1, 2, 3))
    record["looks"] = record["texts"][:, 0]
    config = PipelineConfig(image_size=128, mask_size=128, max_masks=8, scale_range=(1, 1), flip=0)
    sample = make_sample(record, np.random.default_rng(0), config)
    assert sample["text"].dtype == np.float32 and sample["text"].shape == (8, 3)
    assert sample["mask_valid"].sum() == count
    np.testing.assert_array_equal(sample["look"], sample["text"])
    for row in range(count):
        number = int(sample["text"][row, 0])
        np.testing.assert_array_equal(sample["masks"][row] > 127, decode(record["rles"][number]))
    assert not sample["text"][count:].any()


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_first_prompt_is_a_text_as_often_as_asked_for(share):
    config = dataclasses.replace(CONFIG, text=TextConfig(share=share))
    b, n = 4, 64
    batch = {
        "masks": jnp.ones((b, n, 16, 16)),
        "boxes_xyxy": jnp.tile(jnp.float32([2, 3, 30, 31]), (b, n, 1)),
        "image_hw": jnp.full((b, 2), 64),
        "mask_valid": jnp.ones((b, n), bool),
        "text": jnp.ones((b, n, 5)),
    }
    prompts = first_prompts(jax.random.key(0), batch, config, STAGE)
    plain = {name: x for name, x in batch.items() if name != "text"}
    without = first_prompts(jax.random.key(0), plain, config, STAGE)
    is_text = np.asarray(prompts.has_text)
    assert abs(is_text.mean() - share) < 0.1
    labels = np.asarray(prompts.labels)
    assert (labels[is_text] == EMPTY).all()
    np.testing.assert_array_equal(labels[~is_text], np.asarray(without.labels)[~is_text])
    assert without.text is None


@pytest.mark.parametrize("on_all", [False, True])
def test_a_text_trains_all_masks_if_asked_to(on_all):
    model = SMALL.replace(text_width=14)
    variables = init(model, jax.random.key(0))
    stage = dataclasses.replace(STAGE, corrective_clicks=0, mask_only_rounds=0)
    batch = {k: jnp.asarray(v) for k, v in make_batch().items() if k != "image"}
    batch["embedding"] = jax.random.normal(jax.random.key(2), (2, 4, 4, 16))
    batch["text"] = jax.random.normal(jax.random.key(3), (2, 3, 14))
    config = dataclasses.replace(CONFIG, model=model, loss=LossConfig(text_on_all=on_all))

    def loss(params):
        key = jax.random.key(1)
        return batch_loss(params, variables["buffers"], batch, key, SamModel(model), config, stage)[
            0
        ]

    decoder = jax.jit(jax.grad(loss))(variables["params"])["mask_decoder"]
    trained = [
        float(jnp.abs(decoder[f"hyper_mlp_{k}"]["layer_0"]["kernel"]).max()) for k in range(4)
    ]
    assert (trained[0] > 0) == on_all, "the single mask is for several prompts"
    assert max(trained[1:]) > 0 and (min(trained) > 0 or not on_all)


def test_a_model_gets_a_text_head_of_the_clips_width(clip, tmp_path):
    config = dataclasses.replace(CONFIG, model=SMALL)
    fresh, variables, tower = starting_point(config, clip)
    assert fresh.model.text_width == 14 and tower.text_tower_only
    kernel = variables["params"]["prompt_encoder"]["text_proj"]["kernel"]
    assert kernel.shape == (14, SMALL.embed_dim) and float(jnp.abs(kernel).max()) > 0
    plain = jax.device_get(init(SMALL, jax.random.key(3)))
    from sam_jax.checkpoint.load import Sam, save
    from sam_jax.models.sam import SamModel

    save(Sam(SamModel(SMALL), plain, SMALL, "plain"), tmp_path / "plain.safetensors")
    further = dataclasses.replace(config, init_from=str(tmp_path / "plain.safetensors"))
    found, variables, _ = starting_point(further, clip)
    assert found.model.text_width == 14
    own = dict(variables["params"]["prompt_encoder"])
    assert own.pop("text_proj")["kernel"].shape == kernel.shape
    jax.tree.map(np.testing.assert_array_equal, own, plain["params"]["prompt_encoder"])
    wide = dataclasses.replace(config, model=SMALL.replace(text_width=9))
    with pytest.raises(ValueError, match="text.clip: its embeddings have a width of 14.* takes 9"):
        starting_point(wide, clip)


def text_config(tmp_path, clip, **changes):
    """A run of three steps on drawn scenes."""
    path = tmp_path / "clip.safetensors"
    save_clip(path, clip.config, clip.params, clip.tokenizer_json)
    stage = dataclasses.replace(STAGE, steps=3, batch_size=8, max_masks=4)
    return dataclasses.replace(
        CONFIG,
        model=SMALL,
        stages=(stage,),
        text=TextConfig(str(path), share=1.0, variants=2, min_area=250, scenes=4, scene_size=128),
        data_root="none",
        photos=(),
        described=1.0,
        scenes=0.0,
        cut_paste=0.0,
        workdir=str(tmp_path / "runs"),
        name="text",
        validation=ValidationConfig(drawn=1, every=0),
        **changes,
    )


@pytest.mark.slow
def test_a_run_ends_in_a_model_that_reads(tmp_path, clip):
    config = text_config(tmp_path, clip)
    assert train_main.run(config) == 0
    folder = tmp_path / "runs" / "text"
    rows = [json.loads(line) for line in (folder / "validation.jsonl").read_text().splitlines()]
    assert {"val/drawn/iou", "val/drawn/iou crop"} <= set(rows[-1])
    sam = load(folder / "model.safetensors")
    assert sam.text.text_tower_only and sam.text.tokenizer_json == clip.tokenizer_json
    before = starting_point(config, clip)[1]["params"]["prompt_encoder"]["text_proj"]
    after = sam.params["params"]["prompt_encoder"]["text_proj"]
    assert float(jnp.abs(after["kernel"] - before["kernel"]).max()) > 0, "it was trained"
    predictor = Predictor(sam, cache=False)
    out = predictor.predict(predictor.embed(SCENES[0]["image"]), text="the red star")
    assert out.masks.shape == (3, 128, 128)


def test_crops_are_cut_out_of_photos_in_full_size(tmp_path, clip):
    """Large JPEGs are decoded smaller for training, by a half here; masks stay as they are."""
    from sam_jax.ops.rle import encode

    config = text_config(tmp_path, clip)
    scene = DescribedScenes(1, 256, 5)[0]
    (tmp_path / "photos").mkdir()
    Image.fromarray(scene["image"]).save(tmp_path / "photos" / "a.jpg", quality=98)
    rles = [encode(decode(rle)) for rle in scene["rles"]]
    document = {"image": {"width": 256, "height": 256, "file_name": "a.jpg"}}
    document["annotations"] = [{"segmentation": rle} for rle in rles]
    (tmp_path / "photos" / "a.json").write_text(json.dumps(document))
    config = dataclasses.replace(
        config, data_root=str(tmp_path), photos=(("photos", 1.0),), described=0.0
    )
    crops = CropCache(clip, config.text, config.seed, tmp_path)
    batch = next(stage_batches(config, 0, 0, crops=crops, threads=0))
    assert batch["mask_valid"].any()
    from sam_jax.data.open_source import open_source

    photo = open_source(tmp_path / "photos")[0]["image"]
    assert photo.shape == (256, 256, 3)
    embed, wanted = crop_embedder(clip), []
    for number, rle in enumerate(rles):
        if area(rle) >= config.text.min_area:
            for k in range(config.text.variants):
                rng = crop_rng(config.seed, 0, number, k)
                size = clip.config.image_size, clip.config.grid
                wanted.append(embed([crop_object(photo, decode(rle), *size, rng)])[0])
    for text in batch["text"][batch["mask_valid"]]:
        assert np.abs(np.stack(wanted) - text).max(1).min() < 2e-3


def test_texts_go_with_embeddings_that_are_kept(tmp_path, clip):
    config = dataclasses.replace(text_config(tmp_path, clip), augment=False)
    config, variables, _ = starting_point(config, clip)
    crops = CropCache(clip, config.text, config.seed, tmp_path)
    cache = Cache(variables, config.model, tmp_path)
    batch = next(stage_batches(config, 0, 0, cache, crops, threads=0))
    assert batch["embedding"].shape == (8, 4, 4, 16) and batch["text"].shape == (8, 4, 14)


def test_matching_adds_its_loss_and_trains_the_text_head():
    model = SMALL.replace(text_width=14)
    variables = init(model, jax.random.key(0))
    stage = dataclasses.replace(STAGE, corrective_clicks=0, mask_only_rounds=0)
    batch = {k: jnp.asarray(v) for k, v in make_batch().items() if k != "image"}
    batch["embedding"] = jax.random.normal(jax.random.key(2), (2, 4, 4, 16))
    batch["text"], batch["look"] = jax.random.normal(jax.random.key(3), (2, 2, 3, 14))
    text = TextConfig(share=0.0)  # no prompt reads
    found = {}
    for weight in (0.0, 0.5):
        loss = LossConfig(matching_weight=weight)
        config = dataclasses.replace(CONFIG, model=model, loss=loss, text=text)
        found[weight] = GRADIENT(
            *(variables["params"], variables["buffers"], batch, jax.random.key(1)),
            *(SamModel(model), config, stage),
        )
    (plain, without), before = found[0.0]
    (matched, metrics), after = found[0.5]
    assert "matching" not in without and metrics["matching"] > 0.1
    np.testing.assert_allclose(matched - plain, 0.5 * metrics["matching"], rtol=1e-3)
    heads = [np.abs(g["prompt_encoder"]["text_proj"]["kernel"]).max() for g in (before, after)]
    assert heads[0] == 0 and heads[1] > 0


@pytest.mark.slow
def test_the_gradients_of_texts_in_parts_are_those_of_the_whole(tmp_path, clip):
    config = text_config(tmp_path, clip)
    stage = dataclasses.replace(config.stages[0], corrective_clicks=0, mask_only_rounds=0)
    config, variables, _ = starting_point(dataclasses.replace(config, stages=(stage,)), clip)
    crops = CropCache(clip, config.text, config.seed, tmp_path)
    batch = next(stage_batches(config, 0, 0, crops=crops, threads=0))
    model = SamModel(config.model)
    parts = dataclasses.replace(config, devices=dataclasses.replace(config.devices, accumulate=2))
    found = []
    for one in (config, parts):
        _, grads = jax.jit(
            lambda params, batch, one=one: gradients(
                params, variables["buffers"], batch, jax.random.key(0), model, one, stage
            )
        )(variables["params"], batch)
        found.append(np.asarray(grads["prompt_encoder"]["text_proj"]["kernel"]))
    assert np.abs(found[0]).max() > 0  # every first prompt is a text, so that no chance differs
    np.testing.assert_allclose(found[0], found[1], atol=1e-4 * np.abs(found[0]).max())


def test_batches_have_texts_and_the_scenes_own_colours(tmp_path, clip):
    config = text_config(tmp_path, clip, augment=True)
    crops = CropCache(clip, config.text, config.seed, tmp_path)
    batch = next(stage_batches(config, 0, 0, crops=crops, threads=0))
    assert batch["text"].shape == (8, 4, 14)
    length = np.linalg.norm(batch["text"], axis=-1)
    np.testing.assert_allclose(length[batch["mask_valid"]], 1, atol=1e-3)
    scenes = np.stack([DescribedScenes(4, 128, config.seed)[i]["image"] for i in range(4)])
    means = scenes.mean((1, 2))
    for image in batch["image"]:  # mirrored perhaps, and scaled; of the same colour on average
        assert np.abs(image.mean((0, 1)) - means).max(1).min() < 3


def test_what_cannot_be_meant(tmp_path, clip):
    config = text_config(tmp_path, clip)
    params = jax.eval_shape(lambda key: init(SMALL, key), jax.random.key(0))["params"]
    for field in ("scenes", "cut_paste"):
        with pytest.raises(ValueError, match=f"{field}: makes ever new pictures"):
            check(dataclasses.replace(config, **{field: 1.0}), params)
    with pytest.raises(ValueError, match="validation.drawn: needs a CLIP"):
        check(dataclasses.replace(config, text=TextConfig()), params)
    with pytest.raises(ValueError, match="text: expected a share of 0 to 1"):
        check(dataclasses.replace(config, text=TextConfig("x", share=2.0)), params)
    said = " ".join(warnings(config, params))
    assert "text.share 1: no first prompt is a click or a box" in said
    without = dataclasses.replace(config, model=SMALL.replace(text_width=14), text=TextConfig())
    assert "text.clip: the model takes text, which" in " ".join(warnings(without, params))
    missing = dataclasses.replace(config, text=TextConfig(str(tmp_path / "nothing")))
    with pytest.raises(ValueError, match="text.clip: .*nothing.*python -m train.contrastive"):
        train_main.run(missing)


def test_the_contrastive_loss_counts_every_image_that_a_phrase_is_true_of():
    true = np.array([[1, 1, 0], [0, 1, 0], [0, 0, 1]], bool)  # (text, image)
    similarity = np.random.default_rng(0).normal(size=(3, 3)).astype(np.float32)  # (image, text)
    share = np.exp(similarity) / np.exp(similarity).sum(0)
    to_image = [-np.log(share[true[t], t].sum()) for t in range(3)]
    by_text = similarity - np.log(np.exp(similarity).sum(1, keepdims=True))
    to_text = [-by_text[i, true[:, i]].mean() for i in range(3)]
    loss, hit = contrastive_loss(jnp.array(similarity), jnp.array(true))
    np.testing.assert_allclose(loss, (np.mean(to_image) + np.mean(to_text)) / 2, rtol=1e-5)
    wanted = np.mean([true[t, similarity[:, t].argmax()] for t in range(3)])
    np.testing.assert_allclose(hit, wanted)


def test_contrastive_batches_pair_crops_with_true_phrases():
    objects = draw_objects(4, 0, SMALL_CLIP, variants=2)
    said = []

    def tokenise(phrases):
        said.extend(phrases)
        return np.zeros((len(phrases), 3), np.int32)

    batch = next(contrastive_batches(objects, 16, tokenise, np.random.default_rng(0)))
    assert batch["true"].diagonal().all() and not batch["true"].all()
    queries = [read_phrase(words) for words in said]
    assert all(query.size is None and not query.place for query in queries)
    for j, crop in enumerate(batch["crops"]):
        own = (objects.crops == crop).all((1, 2, 3, 4) if objects.crops.ndim == 4 else (2, 3, 4))
        (number, *_) = np.flatnonzero(own.any(1))
        found = [matches(query, objects.attributes[number]) for query in queries]
        np.testing.assert_array_equal(batch["true"][:, j], found)


def test_a_tiny_clip_is_trained_and_opens(tmp_path, capsys):
    from sam_jax.checkpoint.clip import load_clip

    small = dict(steps=2, text_steps=2, batch_size=4, scenes=3, tested=2)
    assert run(ContrastiveConfig(str(tmp_path), **small)) == 0
    said = capsys.readouterr().out
    assert "step 2 of 2: loss" in said and "objects of new scenes, the phrase that" in said
    clip = load_clip(tmp_path / "clip.safetensors")
    assert not clip.text_tower_only and clip.config.context == 24


def test_means_of_alike_crops_keep_what_they_share_and_still_name_their_object():
    rng, parts = np.random.default_rng(0), np.eye(8, dtype=np.float32)  # four colours, four shapes

    def crop(colour, shape):
        found = 2 * parts[colour] + parts[4 + shape] + 0.02 * rng.normal(size=8)
        return (found / np.linalg.norm(found)).astype(np.float32)

    pool = Pool(np.stack([crop(*kinds) for kinds in rng.integers(4, size=(600, 2))]))
    picture = np.stack([[crop(0, 0)], [crop(1, 1)]])
    made = blends(picture, pool, 100, rng)
    assert made.shape == (2, 100, 8) and made.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(made, axis=-1), 1, rtol=1e-5)
    own, other = (made * picture).sum(-1), (made * picture[::-1]).sum(-1)
    assert (own > other + 0.05).all()  # each is nearer to its own object
    colour, shape = (made[0, :, k] / made[0, :, k : k + 4].sum(1) for k in (0, 4))
    # Colours make up most of an embedding, yet shapes are told without them about as often.
    assert ((colour > 0.8) & (shape < 0.6)).mean() > 0.1
    assert ((shape > 0.8) & (colour < 0.6)).mean() > 0.1
    twins = blends(np.stack([picture[0], picture[0]]), pool, 4, rng)
    np.testing.assert_array_equal(twins, np.repeat(np.stack([picture[0]] * 2), 4, 1))
