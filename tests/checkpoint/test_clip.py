"""CLIP's files: round trips, Hugging Face's folders, what is refused and in which words."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sam_jax.checkpoint.clip import (
    config_from_huggingface,
    config_to_huggingface,
    from_huggingface,
    load_clip,
    save_clip,
    to_huggingface,
)
from sam_jax.checkpoint.clip_names import hf_shapes, own_shapes, rows
from sam_jax.checkpoint.strict import CheckpointError
from sam_jax.inference.text import TextTower
from sam_jax.models.clip import (
    CLIP_TINY,
    CLIP_VIT_B_16,
    CLIP_VIT_B_32,
    CLIP_VIT_L_14_336,
    TowerConfig,
)
from tests.checkpoint.common import assert_same_bits
from tests.clips import SMALL, random_params, reference

TOKENIZER = '{"model": "any", "é": "\\u4e2d"}'


@pytest.fixture(scope="module")
def params():
    return random_params(SMALL)


@pytest.fixture
def folder(params, tmp_path):
    save_clip(tmp_path / "hf", SMALL, params, TOKENIZER)
    return tmp_path / "hf"


def text_of(params):
    return {"params": {"text": params["params"]["text"]}}


def test_round_trips_are_bit_equal(params):
    assert_same_bits(from_huggingface(to_huggingface(params, SMALL), SMALL), params)
    text = text_of(params)
    tensors = to_huggingface(text, SMALL, text_tower_only=True)
    assert_same_bits(from_huggingface(tensors, SMALL, text_tower_only=True), text)
    assert len(tensors) == 5 + 16 * SMALL.text.depth


def test_the_table_has_every_array_once_and_every_foreign_name_once():
    for config in (SMALL, CLIP_TINY):
        for only in (False, True):
            own = [row.own for row in rows(config, only)]
            assert sorted(own) == sorted(own_shapes(config, only))
            assert len(hf_shapes(config, only)) == len(own)


def test_orders_of_axes(params):
    tensors, p = to_huggingface(params, SMALL), SMALL.patch_size
    kernel = params["params"]["image"]["patch_embed"]["kernel"].reshape(p, p, 3, -1)
    assert (
        tensors["vision_model.embeddings.patch_embedding.weight"][5, 2, 3, 1] == kernel[3, 1, 2, 5]
    )
    kernel = params["params"]["text"]["block_1"]["lin1"]["kernel"]
    assert tensors["text_model.encoder.layers.1.mlp.fc1.weight"][30, 7] == kernel[7, 30]
    assert tensors["logit_scale"].shape == ()


@pytest.mark.parametrize("name", ["a.safetensors", "folder"])
def test_files_and_folders_keep_every_bit(params, tmp_path, name):
    save_clip(tmp_path / name, SMALL, params, TOKENIZER)
    clip = load_clip(tmp_path / name)
    assert clip.config == SMALL and clip.tokenizer_json == TOKENIZER and not clip.text_tower_only
    assert_same_bits(clip.params, params)
    assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(clip.params))
    text = load_clip(tmp_path / name, text_tower_only=True)
    assert text.text_tower_only and text.config == SMALL
    assert_same_bits(text.params, text_of(params))
    assert_same_bits(clip.text_tower().params, text.params)


def test_the_text_tower_alone_has_a_file(params, tmp_path):
    path, config = tmp_path / "text.safetensors", SMALL.replace(dtype="bfloat16")
    save_clip(path, config, params, TOKENIZER, text_tower_only=True)
    assert set(load_file(path)) == set(own_shapes(SMALL, True))
    text = load_clip(path, text_tower_only=True)
    assert text.config == config and text.tokenizer_json == TOKENIZER
    assert_same_bits(text.params, text_of(params))
    with pytest.raises(CheckpointError, match="text tower of a CLIP alone.*text_tower_only=True"):
        load_clip(path)


def test_half_is_float16_in_the_file_and_float32_out_of_it(params, tmp_path):
    path = tmp_path / "half.safetensors"
    save_clip(path, SMALL, params, TOKENIZER, half=True)
    assert {x.dtype for x in load_file(path).values()} == {np.dtype(np.float16)}
    rounded = jax.tree.map(lambda x: np.asarray(x, np.float16).astype(np.float32), params)
    assert_same_bits(load_clip(path).params, rounded)


def test_a_folder_takes_neither_a_part_nor_half(params, tmp_path):
    for name in ("text_tower_only", "half"):
        with pytest.raises(ValueError, match=f"{name}: .* ends in .safetensors, got"):
            save_clip(tmp_path / "hf", SMALL, params, TOKENIZER, **{name: True})
    assert list(tmp_path.iterdir()) == []


def test_what_is_saved_is_checked_first(params, tmp_path):
    lacking = {"params": {k: v for k, v in params["params"].items() if k != "logit_scale"}}
    for path in (tmp_path / "a.safetensors", tmp_path / "folder"):
        with pytest.raises(CheckpointError) as caught:
            save_clip(path, SMALL, lacking, TOKENIZER)
        assert caught.value.missing == ("params/logit_scale/log",)
        with pytest.raises(CheckpointError, match="tokenizer_json: expected the text of"):
            save_clip(path, SMALL, params, "a dog")
    with pytest.raises(CheckpointError) as caught:
        save_clip(tmp_path / "a.safetensors", SMALL, {}, TOKENIZER, text_tower_only=True)
    assert set(caught.value.missing) == set(own_shapes(SMALL, True))
    assert list(tmp_path.iterdir()) == []


def test_every_missing_unused_and_misshapen_tensor_is_named(params):
    tensors = to_huggingface(params, SMALL)
    missing = [k for k in tensors if "text_model.encoder.layers.0.mlp" in k] + ["logit_scale"]
    for name in missing:
        del tensors[name]
    tensors |= {"text_model.head.weight": np.ones(3), "vision_model.extra": np.ones(3)}
    tensors["visual_projection.weight"] = np.zeros((14, 25), np.float32)
    tensors["text_projection.weight"] = np.zeros((14, 20), np.int64)
    with pytest.raises(CheckpointError, match="a.bin as a CLIP of image size 30") as caught:
        from_huggingface(tensors, SMALL, "a.bin")
    assert sorted(caught.value.missing) == sorted(missing)
    assert sorted(caught.value.unused) == ["text_model.head.weight", "vision_model.extra"]
    assert sorted(caught.value.misshapen) == [
        ("text_projection.weight", "floating-point numbers", "int64"),
        ("visual_projection.weight", "(14, 24)", "(14, 25)"),
    ]
    with pytest.raises(CheckpointError) as caught:
        from_huggingface(tensors, SMALL, text_tower_only=True)
    assert sorted(caught.value.missing) == sorted(missing[:-1])
    assert sorted(caught.value.unused) == ["text_model.head.weight", "vision_model.extra"]
    assert [row[0] for row in caught.value.misshapen] == ["text_projection.weight"]


def test_an_own_file_is_read_as_strictly(params, tmp_path):
    path = tmp_path / "a.safetensors"
    save_clip(path, SMALL, params, TOKENIZER)
    from safetensors import safe_open

    with safe_open(path, "numpy") as file:
        kept = file.metadata()
    tensors = load_file(path) | {"params/text/extra": np.ones(3, np.float32)}
    del tensors["params/image/class_token"]
    save_file(tensors, path, kept)
    for only, missing in ((False, ("params/image/class_token",)), (True, ())):
        with pytest.raises(CheckpointError) as caught:
            load_clip(path, text_tower_only=only)
        assert caught.value.missing == missing
        assert caught.value.unused == ("params/text/extra",)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda d: d.update(format_version=9), "this sam_jax reads 1, the file has 9"),
        (lambda d: d["config"].pop("text"), "its config is damaged: 'text'"),
        (lambda d: d["config"]["text"].update(depth=10**9), "text.depth: expected a whole number"),
        (lambda d: d["config"].update(dtype="int4"), "dtype: expected float32 or bfloat16"),
        (lambda d: d["config"].update(wings=2), "its config is damaged: .*wings"),
    ],
)
def test_damaged_metadata(params, tmp_path, change, message):
    from sam_jax.checkpoint.clip import METADATA, from_metadata, metadata

    found = metadata(SMALL, TOKENIZER)
    assert from_metadata(found) == (SMALL, TOKENIZER, False)
    document = json.loads(found[METADATA])
    change(document)
    with pytest.raises(CheckpointError, match=message):
        from_metadata(found | {METADATA: json.dumps(document)})


def test_one_file_takes_the_config_of_its_folder(params, folder):
    clip = load_clip(folder / "model.safetensors")
    assert clip.config == SMALL and clip.tokenizer_json == TOKENIZER
    assert_same_bits(clip.params, params)


def test_counts_of_positions_are_no_weights(params, folder):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["text_model.embeddings.position_ids"] = np.arange(9)[None]
    tensors["vision_model.embeddings.position_ids"] = np.arange(26)[None]
    save_file(tensors, path)
    assert_same_bits(load_clip(folder).params, params)


def test_weights_over_several_files(params, folder):
    whole = folder / "model.safetensors"
    tensors = load_file(whole)
    whole.unlink()
    names = sorted(tensors)
    parts = {f"part-{i}.safetensors": names[i::3] for i in range(3)}
    for file, keys in parts.items():
        save_file({k: tensors[k] for k in keys}, folder / file)
    index = {"weight_map": {k: file for file, keys in parts.items() for k in keys}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert_same_bits(load_clip(folder).params, params)
    (folder / "part-1.safetensors").unlink()
    with pytest.raises(ValueError, match="there is no file or folder .*part-1.safetensors"):
        load_clip(folder)


def test_what_is_not_there(params, folder, tmp_path):
    for path in (tmp_path / "nowhere", tmp_path / "nowhere.safetensors"):
        with pytest.raises(ValueError, match=f"path: there is no file or folder {path}$"):
            load_clip(path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty is no CLIP: expected one of model.safetensors"):
        load_clip(tmp_path / "empty")
    (folder / "tokenizer.json").rename(folder / "other.json")
    mute = load_clip(folder)
    assert mute.tokenizer_json == ""
    with pytest.raises(ValueError, match="clip: came without a tokenizer.json, and phrases can't"):
        TextTower(mute)
    save_clip(tmp_path / "mute", *mute)
    assert load_clip(tmp_path / "mute").tokenizer_json == ""
    (folder / "tokenizer.json").write_text("a dog")
    with pytest.raises(CheckpointError, match="tokenizer.json: expected the text of a tokenizer"):
        load_clip(folder)
    (folder / "config.json").rename(folder / "other.json")
    with pytest.raises(ValueError, match="hf has no config.json, which says what model.safet"):
        load_clip(folder)


def change_config(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_other_kinds_of_model_are_named(folder):
    change_config(folder, model_type="siglip")
    with pytest.raises(CheckpointError, match="config.json: model_type: expected 'clip'.*'siglip'"):
        load_clip(folder)
    change_config(folder, model_type="clip", projection_dim=0)
    with pytest.raises(CheckpointError, match="embed_dim: expected a whole number from 1 to 65536"):
        load_clip(folder)
    change_config(folder, projection_dim=15)
    with pytest.raises(CheckpointError) as caught:
        load_clip(folder)
    assert len(caught.value.misshapen) == 2
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="config.json: is damaged"):
        load_clip(folder)
    (folder / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"expected 'clip' .*, got \[\]"):
        load_clip(folder)


@pytest.mark.parametrize("part, field, value, message", [
    ("text", "eos_token_id", [5, 6], r"eos_id: expected a whole number .* got \[5, 6\]"),
    ("text", "hidden_act", "relu", "activation: expected one of quick_gelu, gelu, got 'relu'"),
    ("text", "num_attention_heads", 3, "width: 20 does not divide into 3 heads"),
    ("vision", "num_channels", 4, "vision_config.num_channels: expected 3, got 4"),
    ("vision", "patch_size", [6, 5], r"patch_size: expected a whole number .* got \[6, 5\]"),
    ("vision", "num_hidden_layers", 1 << 40, "image.depth: expected a whole number from 1 to 512"),
    ("vision", "layer_norm_eps", None, "image.norm_eps: expected a number from 0 to 1, got None"),
])  # fmt: skip
def test_configs_of_no_clip(part, field, value, message):
    document = config_to_huggingface(SMALL)
    document[f"{part}_config"][field] = value
    with pytest.raises(CheckpointError, match=message):
        config_from_huggingface(document)


def test_configs_both_ways_and_what_they_leave_out():
    for config in (SMALL, CLIP_TINY, CLIP_VIT_B_16, CLIP_VIT_L_14_336):
        assert config_from_huggingface(config_to_huggingface(config)) == config
    assert config_from_huggingface({"model_type": "clip"}) == CLIP_VIT_B_32
    twice = {
        "model_type": "clip",
        "text_config": {"num_hidden_layers": 5, "hidden_act": "gelu", "eos_token_id": 2},
        "text_config_dict": {"num_hidden_layers": 7, "eos_token_id": 3},
        "vision_config": {"image_size": [64, 64]},
        "vision_config_dict": None,
    }
    found = config_from_huggingface(twice)
    assert found.text == TowerConfig(512, 7, 8, 2048) and found.eos_id == 3
    assert found.image_size == 64


@pytest.mark.torch
def test_transformers_folders_are_read_and_ours_are_opened(params, tmp_path):
    transformers = pytest.importorskip("transformers", reason="compares with Hugging Face's port")
    import torch

    for name, options in (("one", {}), ("many", {"max_shard_size": "20KB"})):
        reference(SMALL, params).save_pretrained(tmp_path / name, **options)
        (tmp_path / name / "tokenizer.json").write_text(TOKENIZER, encoding="utf-8")
        clip = load_clip(tmp_path / name)
        assert clip.config == SMALL
        assert_same_bits(clip.params, params)
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2
    save_clip(tmp_path / "ours", SMALL, params, TOKENIZER)
    model, report = transformers.CLIPModel.from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    kinds = ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")
    assert not any(report[kind] for kind in kinds)
    state = {k: v.numpy() for k, v in model.state_dict().items()}
    assert_same_bits(from_huggingface(state, SMALL), params)
    (tmp_path / "ours" / "model.safetensors").unlink()
    buffer = {"text_model.embeddings.position_ids": torch.arange(9)[None]}
    torch.save(model.state_dict() | buffer, tmp_path / "ours" / "pytorch_model.bin")
    assert_same_bits(load_clip(tmp_path / "ours").params, params)
