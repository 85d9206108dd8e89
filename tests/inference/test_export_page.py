"""The page that `sam-jax export --web` writes, in a Chromium, from a plain file server.

Needs jax2onnx, selenium, Chromium with its driver, and the network for onnxruntime-web.
"""

import importlib.util

import numpy as np
import pytest
from PIL import Image

import sam_jax
from sam_jax import cli
from tests.engine.browsers import MISSING, call, wait
from tests.inference.exported_page import open_photo, opened

pytestmark = [pytest.mark.browser, pytest.mark.onnx, pytest.mark.optimised]

MISSING = [*MISSING, *(["jax2onnx"] if importlib.util.find_spec("jax2onnx") is None else [])]
if MISSING:
    pytest.skip(f"the page's tests need {', '.join(MISSING)}", allow_module_level=True)

from selenium.webdriver import ActionChains, Keys  # noqa: E402
from selenium.webdriver.support.wait import WebDriverWait  # noqa: E402


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("web") / "page"
    assert cli.main(["export", "--web", str(folder)]) == 0
    with opened(folder) as browser:
        assert "(WebAssembly, 1 thread)" in browser.find_element("id", "status").text
        yield browser
        severe = [line for line in browser.get_log("browser") if line["level"] == "SEVERE"]
        assert not severe, severe


def ask(browser, points, box=None, candidate=None):
    """Mask bool [H, W] at the photo's size, scores, and which of the candidates it is."""
    rows, size, scores, chosen = call(
        browser,
        "const r = await sam.ask(arguments[0], arguments[1], null, arguments[2]);"
        "return [r.mask.join(''), r.size, r.scores, r.chosen]",
        points,
        box,
        candidate,
    )
    return np.frombuffer(rows.encode(), np.uint8).reshape(size) == ord("1"), scores, chosen


@pytest.fixture(scope="module")
def photo():
    from importlib.resources import files

    image = Image.open(files("sam_jax.assets") / "photo.jpg").convert("RGB")
    return np.asarray(image.resize((501, 377)))


def test_masks_are_the_predictors(page, photo):
    predictor = sam_jax.Predictor(sam_jax.load("tiny"))
    embedding = predictor.embed(photo)
    open_photo(page, photo)
    inside = np.array([[250.0, 200], [310, 60], [100, 300]])
    box = [120.0, 30, 400, 300]
    for points, labels, own in (
        (inside[:1], [1], None),
        (inside, [1, 0, 1], None),
        (inside[:0], [], box),
        (inside[1:2], [0], box),
    ):
        given = [[x, y, label] for (x, y), label in zip(points.tolist(), labels, strict=True)]
        mask, scores, chosen = ask(page, given, own)
        out = predictor.predict(
            embedding, *((points, labels) if len(points) else (None, None)), boxes_xyxy=own
        )
        np.testing.assert_allclose(scores, out.scores, atol=1e-4)
        logits = out.logits[chosen]
        assert (mask != out.masks[chosen]).mean() < 1e-4, np.abs(logits).min()
        assert mask.any()


def test_pointing_shows_a_mask_and_clicks_keep_it(page, photo):
    open_photo(page, photo)
    canvas = page.find_element("id", "mask")
    ActionChains(page).move_to_element_with_offset(canvas, 0, 20).perform()
    assert "predicted IoU" in wait(page, "status", "ms a mask")
    assert len(page.find_elements("css selector", "#candidates button")) == 3
    painted = "const c = document.getElementById('mask');" + (
        "return c.getContext('2d').getImageData(0, 0, c.width, c.height).data"
        ".filter((v, i) => i % 4 === 3 && v).length"
    )
    assert page.execute_script(painted) > 100
    ActionChains(page).move_to_element_with_offset(canvas, 0, 20).click().perform()
    kept = "return sam.state.points.length === 1 && sam.state.shown.points === sam.state.points"
    WebDriverWait(page, 60).until(lambda page: page.execute_script(kept))
    assert page.find_element("id", "undo").is_enabled()
    page.find_element("tag name", "body").send_keys(Keys.ESCAPE)
    assert page.execute_script("return sam.state.points.length") == 0
    assert not page.find_element("id", "undo").is_enabled()


def test_what_was_cleared_does_not_come_back(page, photo):
    open_photo(page, photo)
    canvas = page.find_element("id", "mask")
    ActionChains(page).move_to_element_with_offset(canvas, 0, 20).click().send_keys(
        Keys.ESCAPE
    ).perform()
    call(page, "await sam.ask([[250, 200, 1]])")  # answered after what was asked before
    assert page.execute_script("return sam.state.shown") is None


def test_dragging_draws_a_box(page, photo):
    open_photo(page, photo)
    canvas = page.find_element("id", "mask")
    ActionChains(page).move_to_element_with_offset(
        canvas, -100, -80
    ).click_and_hold().move_by_offset(200, 170).release().perform()
    x0, y0, x1, y1 = page.execute_script("return sam.state.box")
    assert 0 < x0 < x1 < 501 and 0 < y0 < y1 < 377
    shown = "return sam.state.shown && sam.state.shown.box === sam.state.box"
    WebDriverWait(page, 60).until(lambda page: page.execute_script(shown))


def test_what_is_no_picture_is_said(page):
    call(page, "await sam.open(new File(['words'], 'words.txt'))")
    assert wait(page, "status", "words.txt is not a picture")
