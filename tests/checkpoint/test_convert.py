"""`python -m convert`: what it prints, verifies and refuses."""

import dataclasses
import hashlib
import subprocess
import sys

import pytest

from convert.__main__ import main, verify
from convert.report import part_table, tensor_table
from sam_jax.checkpoint import load as loading
from sam_jax.checkpoint.load import load, save
from sam_jax.checkpoint.names import flatten, own_shapes, to_torch
from sam_jax.checkpoint.pth import write_pth
from sam_jax.models.config import VIT_B
from tests.checkpoint.common import ODD, assert_same_bits, random_sam
from tests.clips import SMALL, random_clip, random_params


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("source") / "odd.safetensors"
    save(random_sam(), path)
    return path


@pytest.mark.parametrize(
    "name, options",
    [
        ("a.pth", ()),
        ("a", ()),
        ("a", ("--format", "hf")),
        ("a.safetensors", ("--half",)),
    ],
)
def test_every_format_is_written_and_verified(source, tmp_path, capsys, name, options):
    assert main([str(source), str(tmp_path / name), "--verify", *options]) == 0
    out = capsys.readouterr().out
    assert "verified: 181 tensors" in out and "SHA-256 " in out
    assert "all parameters               180         71,952" in out
    assert ("largest difference 0\n" in out) == (options != ("--half",))
    if not options:
        assert_same_bits(load(tmp_path / name).params, random_sam().params)
    if name == "a.pth":
        assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() in out
        assert "sam.load_state_dict(torch.load(" in out and "patch_size=7" in out


def test_eight_bits_are_verified_too(tmp_path, capsys):
    save(random_sam(ODD.replace(decoder_mlp_width=2048)), tmp_path / "a.safetensors")
    names = [str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors")]
    assert main([*names, "--verify", "--int8"]) == 0
    out = capsys.readouterr().out
    assert "those of the source rounded to eight bits, bit for bit" in out
    assert "largest difference 0\n" not in out
    with pytest.raises(SystemExit, match="2"):
        main([*names, "--int8", "--half"])


@pytest.mark.parametrize(
    "name, options", [("b.safetensors", ()), ("b.safetensors", ("--int8",)), ("b", ())]
)
def test_a_text_tower_is_verified_too(tmp_path, capsys, name, options):
    sam = random_sam(ODD.replace(text_width=SMALL.embed_dim))
    sam = dataclasses.replace(sam, text=random_clip())
    save(sam, tmp_path / "a.safetensors")
    names = [str(tmp_path / "a.safetensors"), str(tmp_path / name)]
    assert main([*names, "--verify", *options]) == 0
    arrays = len(sam.text.bundle().tensors)
    assert f"bit for bit, {arrays} of them the text tower's" in capsys.readouterr().out
    other = random_clip()._replace(params=random_params(seed=1))
    with pytest.raises(ValueError, match=f"{arrays} tensors differ .*text_tower/"):
        verify(dataclasses.replace(sam, text=other), tmp_path / name, int8="--int8" in options)
    save(dataclasses.replace(sam, text=None), tmp_path / "c.safetensors")
    with pytest.raises(ValueError, match=f"{arrays} tensors differ .*text_tower/"):
        verify(sam, tmp_path / "c.safetensors")


def test_a_size_that_a_pth_cannot_say_is_pointed_out(tmp_path, capsys):
    assert main(["tiny", str(tmp_path / "a.pth"), "--verify"]) == 0
    out = capsys.readouterr().out
    assert "is taken for one of 1024, where the source says 512" in out
    assert "from mobile_sam.modeling import" in out and "img_size=512" in out


def test_a_models_name_as_the_source(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(loading, "ASSETS", tmp_path)
    save(random_sam(name="tiny"), tmp_path / "tiny.safetensors")
    assert main(["tiny", str(tmp_path / "tiny.pth"), "--verify"]) == 0
    assert "bit for bit" in capsys.readouterr().out
    assert main([str(tmp_path / "tiny.pth"), str(tmp_path / "back.safetensors")]) == 0
    assert_same_bits(load(tmp_path / "back.safetensors").params, random_sam().params)


def test_heads_that_a_pth_cannot_say_are_pointed_out(tmp_path, capsys):
    save(random_sam(ODD.replace(decoder_heads=2)), tmp_path / "a.safetensors")
    assert main([str(tmp_path / "a.safetensors"), str(tmp_path / "a.pth"), "--verify"]) == 0
    out = capsys.readouterr().out
    assert "taken for one of 4, unless load(path, config=...) says 2" in out
    assert "num_heads=2" in out


def test_drawn_boxes_that_a_pth_cannot_say_are_pointed_out(tmp_path, capsys):
    save(random_sam(ODD.replace(draw_boxes=True)), tmp_path / "a.safetensors")
    assert main([str(tmp_path / "a.safetensors"), str(tmp_path / "a.pth"), "--verify"]) == 0
    assert "a model that draws no boxes, where the source draws boxes" in capsys.readouterr().out


def test_bad_input_gets_one_sentence_and_exit_code_2(source, tmp_path, capsys):
    broken = tmp_path / "broken.pth"
    broken.write_bytes(b"PK\x03\x04 and no more")
    for arguments, sentence in (
        (["nothing.pth", "a.pth"], "got 'nothing.pth', where nothing is"),
        ([str(broken), "a.pth"], "is cut short or damaged"),
        ([str(source), str(tmp_path / "a.onnx")], "expected a suffix of"),
        ([str(source), str(tmp_path)], "is a folder that is not empty"),
        ([str(source), str(tmp_path / "a.pth"), "--half"], "only for the format 'safetensors'"),
    ):
        assert main(arguments) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("error: ") and err.count("\n") == 1
        assert sentence in err


def test_many_tensors_that_do_not_fit_are_cut_short_on_the_screen(tmp_path, capsys):
    tensors = to_torch(random_sam().params)
    extra = {f"extra.{i}": tensors["mask_decoder.iou_token.weight"] for i in range(50)}
    write_pth(tmp_path / "a.pth", tensors | extra)
    assert main([str(tmp_path / "a.pth"), str(tmp_path / "b.pth")]) == 2
    err = capsys.readouterr().err.splitlines()
    assert "50 unused" in err[0] and err[1] == "unused (50: extra 50):"
    assert err[-1] == "... and 31 more lines" and not (tmp_path / "b.pth").exists()


def test_tables():
    import numpy as np

    own = {k: np.broadcast_to(np.float32(0), s) for k, s in own_shapes(VIT_B).items()}
    rows = part_table(own).splitlines()
    assert rows[1].split() == ["image_encoder", "177", "89,670,912"]
    assert rows[2].split() == ["prompt_encoder", "13", "6,220"]
    assert rows[3].split()[-1] == "4,058,340" and rows[5].split() == ["buffers", "1", "256"]
    table = tensor_table(own).splitlines()
    assert len(table) < 150
    line = next(row for row in table if "{0-1,3-4,6-7,9-10}/attn/rel_pos_h" in row)
    assert line.split() == [
        "params/image_encoder/block_{0-1,3-4,6-7,9-10}/attn/rel_pos_h",
        "27",
        "x",
        "64",
        "(8",
        "tensors)",
    ]
    assert len(flatten({"a": {"b": 1}})) == 1


def test_help_starts_without_loading_jax():
    code = (
        "import sys; from convert.__main__ import parse\n"
        "try: parse(['--help'])\n"
        "except SystemExit: pass\n"
        "assert 'jax' not in sys.modules and 'numpy' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "usage: python -m convert" in done.stdout and "--verify" in done.stdout
