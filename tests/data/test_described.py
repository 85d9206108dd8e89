"""Drawn scenes with phrases: what the phrases say is measured again in the pixels."""

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage, spatial

from sam_jax.data.described import MIN_VISIBLE, SIDES, DescribedScenes
from sam_jax.data.descriptions import VOCABULARY, matches, may_match, read_phrase
from sam_jax.data.scene_textures import Style, field
from sam_jax.ops import rle

SIZE = 256


@pytest.fixture(scope="module")
def scenes():
    """60 records, each with its masks bool [K, H, W]."""
    source = DescribedScenes(size=SIZE, seed=11)
    records = [source[i] for i in range(60)]
    return [(r, np.stack([rle.decode(one) for one in r["rles"]])) for r in records]


def objects(scenes):
    """(image, mask, the masks in front of it, attributes) of every object."""
    for record, masks in scenes:
        for k, attributes in enumerate(record["attributes"]):
            yield record["image"], masks[k], masks[k + 1 :], attributes


def test_records(scenes):
    counts = []
    for number, (record, masks) in enumerate(scenes):
        assert record["image"].shape == (SIZE, SIZE, 3) and record["image"].dtype == np.uint8
        assert record["name"] == f"described:11:{number}"
        assert masks.shape[1:] == (SIZE, SIZE)
        assert len(record["descriptions"]) == len(record["unique"]) == len(masks)
        assert masks.sum(0).max() == 1  # disjoint
        counts.append(len(masks))
    assert set(counts) == {2, 3, 4, 5, 6}


def test_sizes_are_far_apart_and_objects_visible(scenes):
    shares = {"small": [], "large": []}
    for _, mask, _, attributes in objects(scenes):
        shares[attributes.size].append(mask.mean())
    for size, (low, high) in SIDES.items():
        assert min(shares[size]) > 0.93 * MIN_VISIBLE * low**2  # decided on a coarser grid
        assert max(shares[size]) < 1.03 * high**2
        assert len(shares[size]) > 80
    assert 2 * max(shares["small"]) < min(shares["large"])


def colour_names(pixels):
    """The plain name of each colour of uint8 [K, 3]; "" for what has none."""
    hsv = np.asarray(Image.fromarray(pixels[None]).convert("HSV"))[0] / 255
    hue, value = hsv[:, 0] * 360, pixels.max(1) / 255
    chroma = (pixels.max(1).astype(float) - pixels.min(1)) / 255
    saturation = chroma / np.maximum(value, 1e-6)
    names = np.full(len(pixels), "", dtype="<U8")
    starts = [(345, "red"), (13, "orange"), (42, "yellow"), (85, "green"), (195, "blue")]
    starts += [(255, "purple"), (308, "pink")]
    for (start, name), (end, _) in zip(starts, starts[1:] + starts[:1], strict=True):
        names[((hue - start) % 360 < (end - start) % 360) & (saturation > 0.25)] = name
    names[(names == "orange") & (value < 0.52)] = "brown"
    names[(saturation < 0.2) & (value > 0.55)] = "white"
    names[(value < 0.25) & (chroma < 0.11)] = "black"
    return names


def test_objects_have_the_colour_that_is_named(scenes):
    seen = set()
    for image, mask, _, attributes in objects(scenes):
        names = colour_names(image[ndimage.binary_erosion(mask, iterations=2)])
        found = {name: (names == name).mean() for name in set(names) - {""}}
        share = found.pop(attributes.colour)
        assert share > (0.4 if attributes.texture == "checked" else 0.45), attributes
        found.pop("white", None)  # checks of a light tone may come near to it
        assert max(found.values(), default=0) < 0.25, attributes
        seen.add(attributes.colour)
    assert len(seen) == 10


def test_objects_have_the_texture_that_is_named(scenes):
    steepness = {"plain": [], "striped": [], "dotted": [], "checked": []}
    alignment = {name: [] for name in steepness}
    smaller_share = {name: [] for name in steepness}
    for image, mask, _, attributes in objects(scenes):
        if attributes.size != "large":
            continue
        inner = ndimage.binary_erosion(mask, iterations=4)
        grey = ndimage.gaussian_filter(image.mean(2), 1)
        dy, dx = (d[inner] for d in np.gradient(grey))
        # The structure tensor: one direction of change for stripes, two alike for the others.
        low, high = np.linalg.eigvalsh([[dx @ dx, dx @ dy], [dx @ dy, dy @ dy]])
        values = image.mean(2)[inner]
        above = (values > np.percentile(values, (2, 98)).mean()).mean()
        steepness[attributes.texture].append(np.hypot(dx, dy).mean())
        alignment[attributes.texture].append((high - low) / (high + low))
        smaller_share[attributes.texture].append(min(above, 1 - above))
    assert min(map(len, steepness.values())) >= 12
    assert max(steepness["plain"]) < 2.5
    assert min(min(steepness[name]) for name in ("striped", "dotted", "checked")) > 4
    assert min(alignment["striped"]) > 0.9
    assert max(alignment["dotted"] + alignment["checked"]) < 0.2
    assert max(smaller_share["dotted"]) < 0.36 < min(smaller_share["checked"])


def named_shape(mask):
    """The shape of a whole object, by its hole, its convexity, its symmetry and its spread."""
    filled = ndimage.binary_fill_holes(mask)
    if filled.sum() > 1.1 * mask.sum():
        return "ring"
    y, x = np.nonzero(mask)
    points = np.stack([x, y], 1)
    corners = (points[:, None] + [[0, 0], [0, 1], [1, 0], [1, 1]]).reshape(-1, 2)
    convexity = len(points) / spatial.ConvexHull(corners).volume
    if convexity < 0.85:
        return "star" if convexity < 0.64 else "cross"
    turned = np.rint(2 * points.mean(0) - points).astype(int)
    ok = ((turned >= 0) & (turned < SIZE)).all(1)
    if mask[turned[ok, 1], turned[ok, 0]].sum() < 0.87 * len(points):  # not itself upside down
        return "triangle" if convexity > 0.94 else "heart"
    spread = 2 * np.pi * points.var(0).sum() / len(points)  # 1 for a circle
    return "circle" if spread < 1.025 else "square" if spread < 1.08 else "diamond"


def test_objects_have_the_shape_that_is_named(scenes):
    seen = []
    for _, mask, in_front, attributes in objects(scenes):
        covered = (ndimage.binary_dilation(mask, iterations=2) & in_front.any(0)).any()
        cut = mask[1:-1, 1:-1].sum() < mask.sum()
        if attributes.size == "large" and not cut and not covered:
            assert named_shape(mask) == attributes.shape
            seen.append(attributes.shape)
    assert len(seen) > 30 and len(set(seen)) == 8


def test_objects_are_where_their_place_words_say(scenes):
    seen = set()
    for _, mask, _, attributes in objects(scenes):
        y, x = ((np.nonzero(mask)[axis].mean() + 0.5) / SIZE for axis in (0, 1))
        expected = {"left"} if x <= 0.38 else {"right"} if x >= 0.62 else set()
        expected |= {"top"} if y <= 0.38 else {"bottom"} if y >= 0.62 else set()
        expected |= {"middle"} if max(abs(x - 0.5), abs(y - 0.5)) < 0.11 else set()
        assert attributes.place == expected
        seen |= expected
    assert seen == {"left", "right", "top", "bottom", "middle"}


def test_phrases_are_true_and_unique_ones_of_one_object_only(scenes):
    told = missing = 0
    for record, _ in scenes:
        scene = record["attributes"]
        for i, (texts, unique) in enumerate(
            zip(record["descriptions"], record["unique"], strict=True)
        ):
            assert 1 <= len(texts) == len(set(texts)) <= 4
            for text in texts:
                assert set(text.split()) <= set(VOCABULARY)
                assert matches(read_phrase(text), scene[i]), text
            if unique is None:
                missing += 1
                continue
            told += 1
            query = read_phrase(unique)
            assert [matches(query, one) for one in scene] == [k == i for k in range(len(scene))]
            assert sum(may_match(query, one) for one in scene) == 1
    assert told > 9 * missing > 0


def test_records_depend_on_seed_index_and_size_only():
    a, b = DescribedScenes(size=128, seed=3), DescribedScenes(length=50, size=128, seed=3)
    b[1]
    for index in (0, 49):
        first, again = a[index], b[index]
        np.testing.assert_array_equal(first.pop("image"), again.pop("image"))
        assert first == again
    other = DescribedScenes(size=128, seed=4)[0]
    assert (other["image"] != a[0]["image"]).mean() > 0.5
    assert (a[1]["image"] != a[0]["image"]).mean() > 0.5


def test_without_places_the_pictures_are_the_same_and_no_phrase_tells_one():
    with_them, without = (DescribedScenes(seed=5, places=places) for places in (True, False))
    for index in range(6):
        one, other = with_them[index], without[index]
        np.testing.assert_array_equal(one["image"], other["image"])
        assert one["rles"] == other["rles"]
        assert any(a.place for a in one["attributes"])
        for attributes, texts in zip(other["attributes"], other["descriptions"], strict=True):
            assert not attributes.place | attributes.perhaps
            assert not any(read_phrase(text).place for text in texts)
        assert not any(read_phrase(text).place for text in other["unique"] if text)


def test_spots_by_hand():
    # Phase 0 is the top of a bump; half a period on, along one axis and along both.
    values = np.asarray(field(Style(bytes(768), "spots", period=16, grain=0.0), 32, 32))
    assert values[0, 0] == values[16, 16] == 254
    assert values[0, 8] == values[8, 0] == 127 and values[8, 8] == 0


def test_bad_arguments():
    with pytest.raises(ValueError, match="at least 1 and size at least 128, got 0 and 256"):
        DescribedScenes(length=0)
    with pytest.raises(ValueError, match="got 5 and 64"):
        DescribedScenes(length=5, size=64)
    with pytest.raises(IndexError, match="must be in 0..4, got 5"):
        DescribedScenes(length=5)[5]
