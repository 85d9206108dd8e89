"""Saving and loading in every format: the same bits, strictly, whole files or none."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from sam_jax.checkpoint import files, huggingface, stored
from sam_jax.checkpoint.clip import load_clip, save_clip
from sam_jax.checkpoint.load import format_of, load, save
from sam_jax.checkpoint.names import flatten, to_hf, to_torch
from sam_jax.checkpoint.pth import write_pth
from sam_jax.checkpoint.strict import CheckpointError
from sam_jax.models.config import TINY, VIT_B
from sam_jax.storage import replacing
from tests.checkpoint.common import ODD, assert_same_bits, random_sam
from tests.clips import random_clip

FORMATS = {"pth": "m.pth", "safetensors": "m.safetensors", "orbax": "m", "hf": "m-hf"}


@pytest.fixture(scope="module")
def sam():
    return random_sam()


@pytest.fixture(scope="module")
def saved(sam, tmp_path_factory):
    """The model in every format."""
    folder = tmp_path_factory.mktemp("saved")
    for kind, name in FORMATS.items():
        save(sam, folder / name, kind)
    return folder


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_gives_the_same_bits(sam, saved, kind):
    back = load(saved / FORMATS[kind])
    assert_same_bits(back.params, sam.params)
    assert back.config == back.model.config == ODD
    assert back.name == {"pth": "m", "hf": "m-hf"}.get(kind, "odd")
    assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(back.params))


@pytest.mark.parametrize("kind", FORMATS)
def test_the_expected_config_is_held_to(saved, kind):
    assert load(saved / FORMATS[kind], config=ODD.replace(remat=True)).config.remat
    with pytest.raises(CheckpointError, match="these tensors look like a model of width 36") as e:
        load(saved / FORMATS[kind], config=VIT_B)
    assert str(saved) in e.value.summary and len(e.value.missing) > 100


def test_whether_boxes_are_drawn_is_as_the_file_says(tmp_path):
    for draws in (False, True):
        config = ODD.replace(draw_boxes=draws)
        save(random_sam(config), tmp_path / "m.safetensors")
        expected = ODD.replace(draw_boxes=not draws)
        assert load(tmp_path / "m.safetensors", config=expected).config.draw_boxes == draws


@pytest.mark.parametrize("name", ["M.SAFETENSORS", "m.weights"])
def test_a_file_is_known_by_what_is_in_it(sam, saved, tmp_path, name):
    (tmp_path / name).write_bytes((saved / "m.safetensors").read_bytes())
    assert_same_bits(load(tmp_path / name).params, sam.params)
    (tmp_path / name).write_bytes((saved / "m.pth").read_bytes())
    assert_same_bits(load(tmp_path / name).params, sam.params)


@pytest.mark.parametrize("kind", ["safetensors", "orbax"])
def test_configs_are_kept_whole(sam, tmp_path, kind):
    config = ODD.replace(
        decoder_heads=2, window_size=ODD.grid, dtype="bfloat16", drop_path=0.25, remat=True
    )
    other = random_sam(config)
    save(other, tmp_path / "a", kind)
    os.rename(tmp_path / "a", tmp_path / "a.safetensors")
    assert load(tmp_path / "a.safetensors").config == config
    with pytest.raises(CheckpointError, match="expected a model with 4 decoder heads, got 2"):
        load(tmp_path / "a.safetensors", config=config.replace(decoder_heads=4))


@pytest.mark.parametrize("kind", ["safetensors", "orbax"])
def test_a_text_head_is_kept(tmp_path, kind):
    sam = random_sam(ODD.replace(text_width=5))
    save(sam, tmp_path / "text", kind)
    os.rename(tmp_path / "text", tmp_path / "text.safetensors")
    assert_same_bits(load(tmp_path / "text.safetensors").params, sam.params)
    for other in ("pth", "hf"):
        with pytest.raises(CheckpointError, match="text head"):
            save(sam, tmp_path / "no", other)
    assert [p.name for p in tmp_path.iterdir()] == ["text.safetensors"]


@pytest.mark.parametrize("kind", ["safetensors", "orbax"])
def test_a_text_tower_is_kept(tmp_path, kind):
    clip = random_clip('{"version": "1.0"}')
    sam = dataclasses.replace(random_sam(ODD.replace(text_width=14)), text=clip)
    path = tmp_path / ("text.safetensors" if kind == "safetensors" else "text")
    save(sam, path)
    back = load(path)
    assert_same_bits(back.params, sam.params)
    assert back.text.text_tower_only and back.text.config == clip.config
    assert_same_bits(back.text.params, clip.text_tower().params)
    assert back.text.tokenizer_json == clip.tokenizer_json
    assert load(path, dtype="bfloat16").text is not None
    if kind == "safetensors":
        alone = load_clip(path, text_tower_only=True)
        assert_same_bits(alone.params, clip.text_tower().params)
        save_clip(tmp_path / "clip.safetensors", *clip)
        with pytest.raises(CheckpointError, match="clip.safetensors: is a CLIP, no Segment Anyth"):
            load(tmp_path / "clip.safetensors")
    with pytest.raises(CheckpointError, match="width 5 .* got one of 14"):
        dataclasses.replace(random_sam(ODD.replace(text_width=5)), text=clip)


def test_a_text_tower_is_never_in_eight_bits(tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "INT8_FROM", 10)
    clip = random_clip()
    sam = dataclasses.replace(random_sam(ODD.replace(text_width=14)), text=clip)
    path = tmp_path / "text.safetensors"
    save(sam, path, int8=True)
    tensors, _ = files.read_safetensors(path)
    assert tensors["params/image_encoder/block_0/lin1/kernel"].dtype == np.int8
    for got in (load(path).text, load_clip(path, text_tower_only=True)):
        for name, x in flatten(clip.text_tower().params).items():
            want = np.asarray(x).astype(np.float16).astype(np.float32)
            np.testing.assert_array_equal(flatten(got.params)[name], want)


def test_a_damaged_text_tower_is_named(tmp_path):
    sam = dataclasses.replace(random_sam(ODD.replace(text_width=14)), text=random_clip())
    save(sam, tmp_path / "text.safetensors")
    tensors, metadata = files.read_safetensors(tmp_path / "text.safetensors")
    tensors = {k: np.array(v) for k, v in tensors.items() if not k.endswith("text/pos_embed")}
    save_file(tensors, tmp_path / "less.safetensors", metadata)
    with pytest.raises(CheckpointError, match="its text tower.*missing") as found:
        load(tmp_path / "less.safetensors")
    assert found.value.missing == ("params/text/pos_embed",)
    metadata["sam_jax_clip"] = "{"
    save_file(tensors, tmp_path / "broken.safetensors", metadata)
    with pytest.raises(CheckpointError, match="its text tower: its config is damaged"):
        load(tmp_path / "broken.safetensors")


def test_dtype_is_asked_for(saved):
    assert load(saved / "m.pth", dtype="bfloat16").model.config.dtype == "bfloat16"
    with pytest.raises(ValueError, match="dtype: expected 'float32' or 'bfloat16', got 'float16'"):
        load(saved / "m.pth", dtype="float16")


def test_loaded_numbers_outlive_their_file(sam, saved, tmp_path):
    path = shutil.copy(saved / "m.safetensors", tmp_path)
    back = load(path)
    with open(path, "r+b") as file:
        file.write(bytes(os.path.getsize(path)))
    assert_same_bits(back.params, sam.params)


def test_half_the_size(sam, tmp_path):
    path = tmp_path / "half.safetensors"
    save(sam, path, half=True)
    full = sum(x.nbytes for x in flatten(sam.params).values())
    assert path.stat().st_size < full / 2 + 30_000
    for name, array in flatten(load(path).params).items():
        want = flatten(sam.params)[name].astype(np.float16).astype(np.float32)
        np.testing.assert_array_equal(array, want)
    with pytest.raises(ValueError, match="half: only for the format 'safetensors'"):
        save(sam, tmp_path / "half.pth", half=True)
    big = random_sam()
    big.params["params"]["mask_decoder"]["iou_token"][0, 3] = 70_000
    with pytest.raises(
        ValueError, match="half: expected numbers up to 65504.*mask_decoder/iou_token"
    ):
        save(big, tmp_path / "big.safetensors", half=True)


def test_a_quarter_of_the_size(sam, tmp_path):
    config = sam.config.replace(decoder_mlp_width=2048)
    sam = random_sam(config=config)
    path = tmp_path / "int8.safetensors"
    save(sam, path, int8=True)
    before, stored = flatten(sam.params), files.read_safetensors(path)[0]
    back = flatten(load(path).params)
    rounded = [name for name, x in stored.items() if x.dtype == np.int8]
    assert rounded and all(before[name].size >= 10_000 for name in rounded)
    for name, want in before.items():
        if name not in rounded:
            np.testing.assert_array_equal(back[name], want.astype(np.float16).astype(np.float32))
            continue
        step = np.abs(want.reshape(-1, want.shape[-1])).max(0) / 127
        assert 0 < np.abs(back[name] - want).max() and stored[name].nbytes == want.size
        assert (np.abs(back[name] - want) <= 0.501 * step).all()
    with pytest.raises(ValueError, match="int8: only for the format 'safetensors'"):
        save(sam, tmp_path / "int8.pth", int8=True)
    with pytest.raises(ValueError, match="int8: expected without half"):
        save(sam, path, int8=True, half=True)
    big = random_sam(config=config)
    big.params["params"]["mask_decoder"]["iou_token"][0, 3] = 70_000
    with pytest.raises(ValueError, match="int8: expected numbers up to 65504.*iou_token"):
        save(big, path, int8=True)
    for lost in (rounded[0], f"{rounded[0]}:scale"):
        save_file({k: np.array(x) for k, x in stored.items() if k != lost}, path)
        with pytest.raises(CheckpointError, match="its scales don't belong together"):
            load(path)


def test_the_file_says_what_it_is_and_is_the_same_each_time(sam, saved, tmp_path):
    tensors, metadata = files.read_safetensors(saved / "m.safetensors")
    assert set(tensors) == set(flatten(sam.params))
    document = json.loads(metadata["sam_jax"])
    assert document["format_version"] == 1 and document["name"] == "odd"
    assert document["config"]["global_blocks"] == [1]
    save(sam, tmp_path / "again.safetensors")
    again = (tmp_path / "again.safetensors").read_bytes()
    assert again == (saved / "m.safetensors").read_bytes()
    assert (tmp_path / "again.safetensors").stat().st_mode & 0o044 == 0o044 & ~umask()


def umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize(
    "change, match",
    [
        ({"format_version": 2}, "reads 1, the file has 2; install a newer sam_jax"),
        ({"config": {"encoder_width": 36}}, "its config is damaged"),
        ({"encoder_depth": 10**9}, "encoder_depth: expected 1 to 512, got 1000000000"),
        ({"image_size": 7 << 40}, "image_size: expected"),
        ({"encoder_heads": 0}, "encoder_heads: expected 1"),
        ({"global_blocks": [7]}, "global_blocks: expected indices"),
        ({"dtype": "int8"}, "dtype: expected float32 or bfloat16"),
        ({"colour": 1}, "its config is damaged: .*colour"),
        ({"encoder_depth": 4}, "look like a model of width 36, depth 3"),
        ({"text_width": 6}, "2 missing"),
    ],
)
def test_damaged_configs(sam, tmp_path, change, match):
    document = json.loads(files.config_to_json(ODD))
    (document if change.keys() & document.keys() else document["config"]).update(change)
    path = tmp_path / "a.safetensors"
    save_file(flatten(sam.params), path, {"sam_jax": json.dumps(document)})
    with pytest.raises(CheckpointError, match=match) as caught:
        load(path)
    assert str(path) in caught.value.summary


def test_own_names_without_a_config_are_asked(sam, tmp_path):
    save_file(flatten(sam.params), tmp_path / "a.safetensors")
    assert load(tmp_path / "a.safetensors").config == ODD


def test_released_and_hugging_face_names_are_read_from_either_kind_of_file(sam, tmp_path):
    for name, tensors in (("r", to_torch(sam.params)), ("h", to_hf(sam.params))):
        contiguous = {k: np.ascontiguousarray(v) for k, v in tensors.items()}
        save_file(contiguous, tmp_path / f"{name}.safetensors")
        write_pth(tmp_path / f"{name}.pth", tensors)
        for suffix in ("safetensors", "pth"):
            assert_same_bits(load(tmp_path / f"{name}.{suffix}").params, sam.params)


def test_bfloat16_safetensors(sam, tmp_path):
    rounded = {k: v.astype(ml_dtypes.bfloat16) for k, v in flatten(sam.params).items()}
    save_file({k: np.ascontiguousarray(v) for k, v in rounded.items()}, tmp_path / "a.safetensors")
    for name, array in flatten(load(tmp_path / "a.safetensors").params).items():
        np.testing.assert_array_equal(array, rounded[name].astype(np.float32))


def test_damaged_safetensors(saved, tmp_path):
    data = (saved / "m.safetensors").read_bytes()
    path = tmp_path / "a.safetensors"
    for part in (b"", data[:5], data[:1000], data[:-1], data + b"x", b"\xff" * 100):
        path.write_bytes(part)
        with pytest.raises(CheckpointError, match="is damaged or no safetensors file"):
            load(path)


def test_hugging_face_folders(sam, saved, tmp_path):
    config = json.loads((saved / "m-hf" / "config.json").read_text())
    assert config["model_type"] == "sam"
    assert config["mask_decoder_config"]["layer_norm_eps"] == 1e-5
    folder = tmp_path / "hf"
    shutil.copytree(saved / "m-hf", folder)
    config["mask_decoder_config"]["num_attention_heads"] = 2
    (folder / "config.json").write_text(json.dumps(config))
    assert load(folder).config == ODD.replace(decoder_heads=2)
    for heads, match in ((5, "decoder heads that divide 12"), ("x", "decoder heads")):
        config["mask_decoder_config"]["num_attention_heads"] = heads
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(CheckpointError, match=match):
            load(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="is damaged"):
        load(folder)
    (folder / "config.json").unlink()
    assert load(folder).config == ODD
    tensors = files.read_safetensors(folder / "model.safetensors")[0]
    (folder / "model.safetensors").unlink()
    halves = [dict(list(tensors.items())[i::2]) for i in (0, 1)]
    for i, half in enumerate(halves):
        save_file({k: np.array(v) for k, v in half.items()}, folder / f"part-{i}.safetensors")
    index = {k: f"part-{i}.safetensors" for i, half in enumerate(halves) for k in half}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    assert_same_bits(load(folder).params, sam.params)


def test_a_folder_with_this_projects_own_model_file(tmp_path):
    other = random_sam(ODD.replace(decoder_heads=2))
    save(other, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("something else's")
    back = load(tmp_path)
    assert back.config == other.config and back.name == "odd"


def test_a_missing_shard_is_named(tmp_path):
    index = json.dumps({"weight_map": {"a": "../b.safetensors"}})
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ValueError, match=f"there is no file or folder {tmp_path}/b.safetensors"):
        load(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(CheckpointError, match="index.json: is damaged"):
        load(tmp_path)


def test_hugging_faces_config_of_vit_b():
    config = huggingface.hf_config(VIT_B)
    assert config["vision_config"]["global_attn_indexes"] == [2, 5, 8, 11]
    assert config["vision_config"]["mlp_dim"] == 3072
    side = huggingface.hf_preprocessor(TINY)
    assert side["size"] == {"longest_edge": 512} and side["mask_size"] == {"longest_edge": 128}


def test_damaged_orbax_folders(saved, tmp_path):
    folder = tmp_path / "m"
    shutil.copytree(saved / "m", folder)
    shutil.rmtree(folder / "variables")
    with pytest.raises(CheckpointError, match="is damaged or no Orbax folder"):
        load(folder)
    (folder / "sam_jax.json").write_text("[]")
    with pytest.raises(CheckpointError, match="its config is damaged"):
        load(folder)


def test_an_orbax_folder_without_its_numbers(saved, tmp_path):
    """In a process of its own: Orbax's threads complain after its error was caught."""
    shutil.copytree(saved / "m", tmp_path / "m")
    shutil.rmtree(tmp_path / "m" / "variables" / "d")
    done = subprocess.run(
        [sys.executable, "-m", "convert", tmp_path / "m", tmp_path / "a.pth"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 2
    # Not line by line: those threads may write into the middle of ours.
    assert "is damaged or no Orbax folder" in done.stderr


def test_orbax_folders_are_strict(sam, tmp_path):
    import orbax.checkpoint as ocp

    flat = flatten(sam.params)
    tree = {"params": {"image_encoder": {"pos_embed": np.zeros((1, 11, 11, 35), np.float32)}}}
    (tmp_path / "m").mkdir()
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "m" / "variables", tree)
    (tmp_path / "m" / "sam_jax.json").write_text(files.config_to_json(ODD))
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path / "m")
    assert len(caught.value.missing) == len(flat) - 1
    assert caught.value.misshapen[0][1:] == ("(1, 11, 11, 36)", "(1, 11, 11, 35)")


def test_names_and_paths_that_are_none(tmp_path):
    with pytest.raises(
        ValueError, match="one of tiny, mobile_sam, vit_b, vit_l, vit_h or the path .*'vit_x'"
    ):
        load("vit_x")
    with pytest.raises(ValueError, match="config: the model 'vit_b' has its own"):
        load("vit_b", config=VIT_B)
    with pytest.raises(ValueError, match=r"is no checkpoint: it has neither sam_jax.json"):
        load(tmp_path)
    with pytest.raises(ValueError, match="there is no file or folder"):
        files.read(tmp_path / "none.pth")


def test_formats_by_suffix(sam, tmp_path):
    assert [format_of(x) for x in ("a.pth", "b.PT", "c.safetensors", "d", "e/run.v2")] == [
        "pth",
        "pth",
        "safetensors",
        "orbax",
        "orbax",
    ]
    with pytest.raises(ValueError, match="path: expected a suffix of .pth, .pt, .safetensors"):
        format_of("model.onnx")
    with pytest.raises(ValueError, match="format: expected 'pth', .*, got 'zip'"):
        save(sam, tmp_path / "a", "zip")


def test_files_are_whole_or_as_they_were(sam, tmp_path):
    path = tmp_path / "a.pth"
    path.write_text("before")
    with pytest.raises(RuntimeError), replacing(path) as made:
        made.write_text("half")
        raise RuntimeError
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]
    save(sam, path)
    assert_same_bits(load(path).params, sam.params)
    assert list(tmp_path.iterdir()) == [path]


def test_folders_with_something_in_them_are_left_alone(sam, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("x")
    for kind in FORMATS:
        with pytest.raises(ValueError, match="is a folder that is not empty"):
            save(sam, tmp_path / "full", kind)
    assert [p.name for p in tmp_path.rglob("*")] == ["full", "thesis.txt"]
    (tmp_path / "empty").mkdir()
    save(sam, tmp_path / "empty", "hf")
    assert_same_bits(load(tmp_path / "empty").params, sam.params)
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="can't write to"):
        save(sam, tmp_path / "file" / "a.pth")
