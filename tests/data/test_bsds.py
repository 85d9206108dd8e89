"""BSDS500's files: truth, boundary maps, layouts, what is broken."""

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from sam_jax.data.bsds import Bsds500, read_boundary_map
from sam_jax.data.sources import RecordError

HW = (30, 44)


def truth(annotators):
    """The cells of structs that BSDS500's files hold."""
    cells = np.empty((1, len(annotators)), object)
    for k, one in enumerate(annotators):
        cells[0, k] = {"Boundaries": one.astype(np.uint8), "Segmentation": one.astype(np.uint16)}
    return {"groundTruth": cells}


def write_bsds(root, names=("12", "7"), split="test"):
    """Two images with two annotators each; returns their boundaries by name."""
    lines = {}
    for place in ("images", "groundTruth"):
        (root / place / split).mkdir(parents=True)
    for k, name in enumerate(names):
        a, b = np.zeros(HW, bool), np.zeros(HW, bool)
        a[10 + k, 5:30], b[20, 5:40] = True, True
        lines[name] = [a, b]
        savemat(root / "groundTruth" / split / f"{name}.mat", truth([a, b]))
        Image.new("RGB", HW[::-1], (9, 99, 200)).save(root / "images" / split / f"{name}.jpg")
    return lines


@pytest.mark.parametrize("below", ["", "data", "BSDS500/data", "BSR/BSDS500/data"])
def test_records_in_every_place(tmp_path, below):
    lines = write_bsds(tmp_path / below)
    source = Bsds500(tmp_path)
    assert len(source) == 2 and [source.name(i) for i in (0, 1)] == ["12", "7"]
    for record in map(source.__getitem__, range(2)):
        assert record["image"].shape == (*HW, 3)
        np.testing.assert_array_equal(record["boundaries"], lines[record["name"]])


def test_without_the_folder_of_the_split(tmp_path):
    write_bsds(tmp_path, split="")
    assert len(Bsds500(tmp_path)) == 2


def test_another_layout_is_told(tmp_path):
    write_bsds(tmp_path, split="val")
    assert len(Bsds500(tmp_path, "val")) == 2
    with pytest.raises(ValueError, match=r"groundTruth/test/NAME\.mat"):
        Bsds500(tmp_path)


def test_what_is_broken_is_named(tmp_path):
    write_bsds(tmp_path, ("1", "2", "3", "4"))
    (tmp_path / "groundTruth" / "test" / "1.mat").write_bytes(b"MATLAB 5.0 MAT-file" + bytes(200))
    savemat(tmp_path / "groundTruth" / "test" / "2.mat", {"other": 1})
    (tmp_path / "images" / "test" / "3.jpg").unlink()
    Image.new("RGB", (9, 9)).save(tmp_path / "images" / "test" / "4.jpg")
    source = Bsds500(tmp_path)
    for index, text in enumerate(("1.mat", "no groundTruth", "3.jpg", r"\[9, 9\]")):
        with pytest.raises(RecordError, match=text):
            source[index]


def test_boundary_maps(tmp_path):
    values = np.linspace(0, 1, HW[0] * HW[1]).reshape(HW)
    twice = np.zeros((2 * HW[0] + 1, 2 * HW[1] + 1))
    twice[2::2, 2::2] = values
    savemat(tmp_path / "a.mat", {"ucm2": twice})
    np.testing.assert_array_equal(read_boundary_map(tmp_path / "a.mat"), values)
    savemat(tmp_path / "b.mat", {"pb": values})
    np.testing.assert_array_equal(read_boundary_map(tmp_path / "b.mat"), values)
    Image.fromarray(np.uint8(np.round(255 * values))).save(tmp_path / "c.png")
    np.testing.assert_allclose(read_boundary_map(tmp_path / "c.png"), values, atol=0.5 / 255 + 1e-9)
    savemat(tmp_path / "d.mat", {"x": values})
    (tmp_path / "e.png").write_bytes(b"nothing")
    for name in ("d.mat", "e.png"):
        with pytest.raises(RecordError, match=name):
            read_boundary_map(tmp_path / name)
