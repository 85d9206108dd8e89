"""Every way a picture can come, and every way it can fail to."""

import numpy as np
import pytest
from PIL import Image

from sam_jax.data.images import ImageError, find_images, read_image

RGB = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)


def saved(image, path, **options):
    image.save(path, **options)
    return path


def test_arrays_pil_images_and_files_give_the_same(tmp_path):
    path = saved(Image.fromarray(RGB), tmp_path / "a.png")
    for source in (RGB, Image.fromarray(RGB), path, str(path)):
        got = read_image(source)
        assert got.dtype == np.uint8 and got.flags.c_contiguous
        np.testing.assert_array_equal(got, RGB)


def test_grey_has_three_equal_channels(tmp_path):
    grey = RGB[..., 0]
    path = saved(Image.fromarray(grey), tmp_path / "g.png")
    for source in (grey, grey[..., None], path):
        np.testing.assert_array_equal(read_image(source), np.repeat(grey[..., None], 3, 2))


def test_one_bit_is_black_and_white(tmp_path):
    bits = RGB[..., 0] > 100
    path = saved(Image.fromarray(bits), tmp_path / "bits.png")
    np.testing.assert_array_equal(read_image(path)[..., 1], bits * np.uint8(255))


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bit_grey_is_divided_by_257(tmp_path, suffix):
    values = np.array([[0, 257, 128 * 257], [65535, 65535 - 128, 300]], np.uint16)
    path = saved(Image.fromarray(values), tmp_path / f"deep.{suffix}")
    got = read_image(path)
    np.testing.assert_array_equal(got[..., 0], [[0, 1, 128], [255, 255, 1]])
    np.testing.assert_array_equal(got, read_image(Image.fromarray(values.astype(np.int32))))


def test_wide_integers_and_floats_are_refused(tmp_path):
    wide = Image.fromarray(np.array([[0, 70000]], np.int32))
    with pytest.raises(ImageError, match="from 0 to 70000"):
        read_image(wide)
    path = saved(Image.fromarray(np.ones((2, 2), np.float32)), tmp_path / "f.tif")
    with pytest.raises(ImageError, match=r"f\.tif holds floating-point"):
        read_image(path)


def test_opaque_alpha_keeps_colours_and_transparency_is_on_white(tmp_path):
    alpha = np.full((6, 9, 1), 255, np.uint8)
    np.testing.assert_array_equal(read_image(np.concatenate([RGB, alpha], 2)), RGB)
    alpha[0, 0], alpha[1, 1] = 0, 128
    rgba = np.concatenate([RGB, alpha], 2)
    path = saved(Image.fromarray(rgba), tmp_path / "t.png")
    for source in (rgba, path):
        got = read_image(source).astype(int)
        np.testing.assert_array_equal(got[0, 0], [255, 255, 255])
        expected = (RGB[1, 1].astype(int) * 128 + 255 * 127 + 127) // 255
        np.testing.assert_array_equal(got[1, 1], expected)
        np.testing.assert_array_equal(got[2:], RGB[2:])


def test_palettes_with_and_without_transparency(tmp_path):
    indices = np.array([[0, 1], [2, 1]], np.uint8)
    image = Image.fromarray(indices)
    image.putpalette([10, 20, 30, 200, 100, 50, 0, 0, 255])  # now of mode P
    colours = np.array([[10, 20, 30], [200, 100, 50], [0, 0, 255]])
    plain = saved(image, tmp_path / "p.png")
    np.testing.assert_array_equal(read_image(plain), colours[indices])
    clear = saved(image, tmp_path / "c.png", transparency=1)
    colours[1] = 255
    np.testing.assert_array_equal(read_image(clear), colours[indices])


def test_cmyk_and_animation(tmp_path):
    cmyk = saved(Image.new("CMYK", (4, 3), (0, 255, 255, 0)), tmp_path / "c.tif")
    np.testing.assert_array_equal(read_image(cmyk)[0, 0], [255, 0, 0])
    frames = [Image.new("RGB", (4, 3), c) for c in ("red", "blue")]
    path = tmp_path / "a.gif"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(read_image(path)[0, 0], [255, 0, 0])


@pytest.mark.parametrize(
    ("orientation", "turned"),
    [
        (1, lambda a: a),
        (2, lambda a: a[:, ::-1]),
        (3, lambda a: a[::-1, ::-1]),
        (4, lambda a: a[::-1]),
        (5, lambda a: a.transpose(1, 0, 2)),
        (6, lambda a: np.rot90(a, -1)),
        (7, lambda a: a[::-1, ::-1].transpose(1, 0, 2)),
        (8, lambda a: np.rot90(a, 1)),
    ],
)
def test_exif_orientation(tmp_path, orientation, turned):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(Image.fromarray(RGB), tmp_path / "o.png", exif=exif)
    np.testing.assert_array_equal(read_image(path), turned(RGB))
    np.testing.assert_array_equal(read_image(path, apply_orientation=False), RGB)


@pytest.mark.parametrize(("at_least", "size"), [(1000, 800), (800, 800), (399, 400), (90, 100)])
def test_jpegs_are_shrunk_on_request(tmp_path, at_least, size):
    path = saved(Image.new("RGB", (800, 600), "red"), tmp_path / "s.jpg")
    got = read_image(path, at_least=at_least)
    assert got.shape == (size * 3 // 4, size, 3)


def test_unreadable_files_are_named_in_one_sentence(tmp_path):
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("hello")
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 256, (99, 99, 3), dtype=np.uint8))
    for name in ("cut.jpg", "cut.png"):
        whole = saved(noise, tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    cases = {
        "missing.jpg": "no such file",
        "empty.jpg": "is empty",
        "text.jpg": "not a picture",
        "cut.jpg": "truncated",
        "cut.png": "truncated",
        ".": "is a folder",
    }
    for name, sentence in cases.items():
        with pytest.raises(ImageError, match=sentence) as caught:
            read_image(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)


def test_decompression_bombs_are_refused(tmp_path, monkeypatch):
    path = saved(Image.new("1", (300, 300)), tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ImageError, match=r"bomb\.png has more than 2000 pixels"):
        read_image(path)


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        (np.zeros((4, 4, 3), np.float32), "float32; multiply values in 0..1 by 255"),
        (np.zeros((4, 4, 3), np.int64), "int64"),
        (np.zeros((3, 4, 4), np.uint8)[:, :, :2], "shape"),
        (np.zeros((2, 4, 4, 3), np.uint8), "one picture at a time"),
        (np.zeros((0, 4, 3), np.uint8), "no pixels"),
        (Image.new("RGB", (0, 5)), "no pixels"),
        ([[1, 2]], "got list"),
        (None, "got NoneType"),
    ],
)
def test_bad_sources(source, sentence):
    with pytest.raises(ImageError, match=sentence):
        read_image(source)


def test_find_images(tmp_path):
    for name in ("b.JPG", "sub/a.png", "notes.txt", ".hidden.png", ".cache/x.png", "a.webp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    names = [str(p.relative_to(tmp_path)) for p in find_images(tmp_path)]
    assert names == ["a.webp", "b.JPG", "sub/a.png"]
    with pytest.raises(ImageError, match="existing folder"):
        find_images(tmp_path / "a.webp")


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_the_size_from_the_head_is_that_of_the_picture(tmp_path, orientation):
    from sam_jax.data.images import image_hw

    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (30, 20)).save(tmp_path / "a.jpg", exif=exif)
    assert image_hw(tmp_path / "a.jpg") == read_image(tmp_path / "a.jpg").shape[:2]
    (tmp_path / "b.jpg").write_bytes(b"no picture")
    with pytest.raises(ImageError, match="b.jpg"):
        image_hw(tmp_path / "b.jpg")
