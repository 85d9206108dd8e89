"""The annotation page in a real Chromium, on the real server with the bundled model."""

from __future__ import annotations

import io
import json
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
import zipfile
from importlib.resources import files

import numpy as np
import pytest
from PIL import Image

from sam_jax.checkpoint.load import save
from sam_jax.data.store import Store
from sam_jax.ops.rle import decode
from tests.engine.browsers import MISSING, make_browser, resize
from tests.small import reading_sam

pytestmark = pytest.mark.browser

if MISSING:
    pytest.skip(f"the page's tests need {', '.join(MISSING)}", allow_module_level=True)

from selenium.webdriver import ActionChains, Keys  # noqa: E402
from selenium.webdriver.common.actions.action_builder import ActionBuilder  # noqa: E402
from selenium.webdriver.common.actions.mouse_button import MouseButton  # noqa: E402

HW = (300, 400)


class Server:
    """`sam-jax annotate` on a folder, in a process of its own."""

    def __init__(self, folder, *options):
        self.folder, self.options = folder, options
        self.start()

    def start(self):
        arguments = ["annotate", str(self.folder), "--port", "0", "--no-browser", *self.options]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "sam_jax", *arguments], stdout=subprocess.PIPE, text=True
        )
        for line in self.process.stdout:
            if line.startswith("http"):
                self.url = line.strip()
                return
        raise AssertionError("the server did not start")

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.process.stdout.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    photo = Image.open(files("sam_jax.assets").joinpath("photo.jpg")).convert("RGB")
    photo.resize(HW[::-1]).save(folder / "a.jpg", quality=95)
    photo.resize(HW[::-1]).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / "b.jpg")
    return folder


@pytest.fixture(scope="module")
def browser():
    browser = make_browser()
    yield browser
    browser.quit()


@pytest.fixture(scope="module")
def server(folder):
    server = Server(folder)
    yield server
    server.kill()


class Page:
    """What a person does with the page, and what the page says of itself."""

    def __init__(self, browser):
        self.browser = browser

    def get(self, name):
        return self.browser.execute_script(f"return window.samAnnotate?.{name}")

    def wait(self, name, wanted, seconds=120):
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            found = self.get(name)
            if wanted(found) if callable(wanted) else found == wanted:
                return found
            time.sleep(0.03)
        raise AssertionError(f"{name} is {found!r} after {seconds} s: {self.get('status')}")

    def open(self, url):
        self.browser.get(url)
        self.wait("ready", True, seconds=300)  # it may be the one that compiles

    def place(self, x, y):
        return self.browser.execute_script(f"return window.samAnnotate.pagePoint({x}, {y})")

    def mouse(self, *steps):
        """Steps are ("move", x, y), ("down" or "up", button)."""
        builder = ActionBuilder(self.browser, duration=20)
        for kind, *rest in steps:
            if kind == "move":
                builder.pointer_action.move_to_location(*map(round, self.place(*rest)))
            elif kind == "down":
                builder.pointer_action.pointer_down(rest[0])
            else:
                builder.pointer_action.pointer_up(rest[0])
        builder.perform()

    def click(self, x, y, button=MouseButton.LEFT):
        self.mouse(("move", x, y), ("down", button), ("up", button))
        self.wait("pending", False)

    def drag(self, *places):
        first, *others = places
        steps = [("move", *first), ("down", MouseButton.LEFT)]
        steps += [("move", *place) for place in others]
        self.mouse(*steps, ("up", MouseButton.LEFT))
        self.wait("pending", False)

    def keys(self, *keys):
        ActionChains(self.browser).send_keys(*keys).perform()

    def chord(self, *keys):
        actions = ActionChains(self.browser)
        for key in keys[:-1]:
            actions.key_down(key)
        actions.send_keys(keys[-1])
        for key in keys[:-1]:
            actions.key_up(key)
        actions.perform()

    def shows(self, selector):
        return self.browser.find_element("css selector", selector).text


@pytest.fixture
def page(browser, server):
    page = Page(browser)
    page.open(server.url)
    yield page
    page.keys(Keys.ESCAPE)
    severe = [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert not severe, severe


def test_click_three_candidates_correct_undo_and_redo(page):
    page.click(200, 150)
    assert page.get("candidates") == 3 and page.get("area") > 0
    areas = [page.get("area")]
    for key in "23":
        page.keys(key)
        areas.append(page.get("area"))
    assert len(set(areas)) == 3, "three that differ"
    page.keys(Keys.TAB)
    assert page.get("chosen") == 0 and page.get("area") == areas[0]
    page.click(20, 20, MouseButton.RIGHT)
    assert page.get("candidates") == 1
    corrected = page.get("area")
    page.chord(Keys.CONTROL, "z")
    assert page.get("candidates") == 3 and page.get("area") == areas[0]
    page.chord(Keys.CONTROL, Keys.SHIFT, "z")
    assert page.get("candidates") == 1 and page.get("area") == corrected
    page.keys(Keys.ESCAPE)
    assert page.get("area") == 0


def test_clicks_go_on_from_a_mask_that_the_server_has_forgotten(page):
    page.click(200, 150)
    page.browser.execute_async_script(
        "const done = arguments[0]; fetch('/api/reload', {method: 'POST', body: '{}', "
        "headers: {'Content-Type': 'application/json'}}).then(done)"
    )
    page.wait("candidates", 3)
    page.click(20, 20, MouseButton.RIGHT)
    page.wait("candidates", 1)
    assert page.get("area") > 0 and not page.shows("#error")
    page.browser.get_log("browser")  # the refusal is in it, as it must be
    page.keys(Keys.ESCAPE)


def test_a_box_gives_three_candidates(page):
    page.drag((100, 80), (200, 160), (300, 250))
    assert page.get("candidates") == 3
    assert page.get("area") > 100


def disc(cx, cy, radius):
    y, x = np.mgrid[: HW[0], : HW[1]] + 0.5
    return np.hypot(x - cx, y - cy) <= radius


def test_brush_and_eraser_are_exact_to_the_pixel(page, folder):
    page.browser.execute_script(
        "const size = document.getElementById('size'); size.value = 10;"
        "size.dispatchEvent(new Event('input'))"
    )
    page.keys("b")
    x, y = page.browser.execute_script(
        """window.last = null;
        document.getElementById('view').addEventListener('pointerdown', (event) => {
          const [ax, ay] = window.samAnnotate.pagePoint(0, 0);
          const [bx] = window.samAnnotate.pagePoint(1, 0);
          window.last = [(event.clientX - ax) / (bx - ax), (event.clientY - ay) / (bx - ax)];
        }, { once: true });
        return [50, 60]"""
    )
    page.mouse(("move", x, y), ("down", MouseButton.LEFT), ("up", MouseButton.LEFT))
    at = page.browser.execute_script("return window.last")
    painted = disc(*at, 10)
    assert page.get("area") == painted.sum()
    page.keys("e")
    page.drag((50, 60), (50, 60))
    assert page.get("area") == 0 and page.get("strokes") == 2
    page.chord(Keys.CONTROL, "z")
    assert page.get("area") == painted.sum()
    before = len(Store(folder / "sam_jax_store").alive())
    page.keys(Keys.ENTER)
    page.wait("saved", before + 1)
    mask = list(Store(folder / "sam_jax_store").alive().values())[-1]
    np.testing.assert_array_equal(decode(mask.rle), painted)
    (stroke,) = mask.event["prompts"]["strokes"]
    assert stroke["tool"] == "brush" and stroke["radius"] == 10
    page.keys("c")


def test_lasso_adds_what_it_surrounds(page):
    page.keys("l")
    page.drag((300, 200), (360, 200), (360, 260), (300, 260))
    assert abs(page.get("area") - 3600) < 400
    page.keys("c")


def test_hover_shows_a_mask_without_a_click(page):
    page.mouse(("move", 200, 150))
    page.wait("hovered", True)
    assert page.get("area") == 0 and page.get("candidates") == 0


def test_words_find_a_thing_where_the_model_reads(page, folder, tmp_path):
    def ask(words):
        field.clear()
        field.send_keys(words, Keys.ENTER)
        page.wait("pending", False)

    field = page.browser.find_element("id", "phrase")
    assert not field.is_displayed(), "the bundled model does not read"
    shutil.copy(folder / "a.jpg", tmp_path)
    save(reading_sam(), tmp_path / "model.safetensors")
    server = Server(tmp_path, "--model", str(tmp_path / "model.safetensors"))
    try:
        page.open(server.url)
        field = page.browser.find_element("id", "phrase")
        page.wait("photo && document.getElementById('ask').hidden", False)
        ask("the red circle")
        assert page.get("candidates") == 3
        red = page.get("area")
        ask("a green square")
        assert page.get("candidates") == 3 and page.get("area") != red
        page.click(20, 20, MouseButton.RIGHT)
        assert page.get("candidates") == 1 and page.get("labels") == [0]
        page.chord(Keys.CONTROL, "z")
        page.chord(Keys.CONTROL, "z")
        assert page.get("area") == red and field.get_attribute("value") == "the red circle"
        page.keys(Keys.ENTER)
        page.wait("saved", 1)
        assert field.get_attribute("value") == ""
        store = "".join(f.read_text() for f in (tmp_path / "sam_jax_store").rglob("*.jsonl"))
        assert '"text": "the red circle"' in store
        ask("a fluffy circle")
        assert "does not know 'fluffy'" in page.shows("#error")
        page.keys(Keys.ESCAPE)
    finally:
        page.browser.get("about:blank")
        page.browser.get_log("browser")  # the refused words are logged as an error by the browser
        server.kill()


def test_a_finger_taps_and_two_pinch(page):
    """Touches as the browser makes them: by its own debugging protocol."""

    def touch(kind, *places):
        points = [{"x": x, "y": y, "id": k} for k, (x, y) in enumerate(places)]
        page.browser.execute_cdp_cmd(
            "Input.dispatchTouchEvent", {"type": f"touch{kind}", "touchPoints": points}
        )

    at = page.place(200, 150)
    touch("Start", at)
    touch("End")
    page.wait("candidates", 3)
    page.keys(Keys.ESCAPE)
    page.browser.find_element("id", "background").click()  # for fingers have no right button
    touch("Start", at)
    touch("End")
    page.wait("pending", False)
    assert page.browser.execute_script("return window.samAnnotate.labels") == [0]
    page.browser.find_element("id", "background").click()
    page.keys(Keys.ESCAPE)
    zoom, (x, y) = page.get("zoom"), at
    touch("Start", (x - 20, y), (x + 20, y))
    touch("Move", (x - 60, y), (x + 60, y))
    touch("End")
    page.wait("zoom", lambda found: found > 2 * zoom)
    assert page.get("area") == 0, "a pinch is no click"
    page.browser.find_element("id", "fit").click()


def test_zoom_at_the_pointer_and_back(page):
    zoom = page.get("zoom")
    page.browser.execute_script(
        """const [x, y] = window.samAnnotate.pagePoint(100, 100);
        document.getElementById('view').dispatchEvent(new WheelEvent('wheel',
          { deltaY: -600, clientX: x, clientY: y, bubbles: true, cancelable: true }))"""
    )
    assert page.get("zoom") > 2 * zoom
    page.keys("0")
    assert page.get("zoom") == pytest.approx(zoom)


def test_save_next_reload_kill_restart_export(page, server, folder):
    start = page.get("saved")
    page.browser.find_element("id", "label").send_keys("cup")
    page.click(200, 150)
    area = page.get("area")
    page.browser.execute_script("for (const _ of [1, 2]) document.getElementById('save').click()")
    page.wait("saved", start + 1)
    assert page.get("area") == 0
    assert "cup" in page.shows("#masks")
    page.click(150, 100)  # a draft: not saved
    draft = page.get("area")
    page.keys("n")
    page.wait("photo", "b.jpg")
    page.wait("ready", True)
    assert page.get("saved") == 0 and page.get("area") == 0
    page.keys("p")
    page.wait("photo", "a.jpg")
    page.wait("area", draft)
    page.keys(Keys.ESCAPE)
    page.browser.execute_script("localStorage.setItem('annotator', 'Łukasz 山田')")
    page.browser.refresh()
    page.wait("saved", start + 1)
    page.browser.execute_script("localStorage.removeItem('annotator')")
    server.kill()
    server.start()
    page.browser.get_log("browser")  # the lost connection is in it, as it must be
    page.open(server.url + "#a.jpg")
    page.wait("saved", start + 1)
    with urllib.request.urlopen(f"{server.url}api/export?form=coco") as answer:
        archive = zipfile.ZipFile(io.BytesIO(answer.read()))
    document = json.loads(archive.read("instances.json"))
    masks = [a for a in document["annotations"] if a["label"] == "cup"]
    assert [mask["area"] for mask in masks] == [area]
    event = next(e for e in Store(folder / "sam_jax_store").events() if e.get("label") == "cup")
    assert 0 < event["seconds"] < 30 and event["prompts"]["points"]


def test_after_half_a_minute_on_a_mask_it_suggests_to_move_on(page):
    hint = page.browser.find_element("id", "hint")
    later = "const now = performance.now.bind(performance); performance.now = () => now() + 31000;"
    page.browser.execute_script(later)  # half a minute before anything is clicked
    page.click(200, 150)
    time.sleep(0.7)
    assert not hint.is_displayed()
    page.browser.execute_script(later)
    deadline = time.monotonic() + 5
    while not hint.is_displayed() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert hint.is_displayed()
    page.keys(Keys.ESCAPE)


def test_remove_and_bring_back(page, folder):
    page.keys("c")
    page.click(200, 150)
    count = page.get("saved")
    page.keys(Keys.ENTER)
    page.wait("saved", count + 1)
    before = list(Store(folder / "sam_jax_store").alive("a.jpg"))
    page.keys(Keys.DELETE)
    page.wait("saved", count)
    assert list(Store(folder / "sam_jax_store").alive("a.jpg")) == before[:-1]
    page.chord(Keys.CONTROL, "z")
    page.wait("saved", count + 1)
    assert list(Store(folder / "sam_jax_store").alive("a.jpg")) == before


def test_done_and_help_by_keyboard(page):
    page.keys("d")
    done = page.browser.find_element("id", "done")
    deadline = time.monotonic() + 5
    while done.get_attribute("aria-pressed") != "true" and time.monotonic() < deadline:
        time.sleep(0.03)
    assert done.get_attribute("aria-pressed") == "true"
    page.keys("h")
    assert "eraser" in page.shows("#keytable")
    page.keys(Keys.ESCAPE)


def test_a_server_that_is_gone_loses_no_mask(page, server):
    page.click(200, 150)
    area, saved = page.get("area"), page.get("saved")
    server.process.send_signal(signal.SIGKILL)
    server.process.wait()
    page.keys(Keys.ENTER)
    deadline = time.monotonic() + 10
    while "not saved" not in page.shows("#error") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert "not saved" in page.shows("#error") and page.get("area") == area
    port = server.url.rsplit(":", 1)[1].strip("/")
    server.process.stdout.close()
    server.process = subprocess.Popen(
        [sys.executable, "-m", "sam_jax", "annotate", str(server.folder), "--port", port,
         "--no-browser"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    for line in server.process.stdout:
        if line.startswith("http"):
            break
    page.browser.find_element("id", "retry").click()
    page.wait("saved", saved + 1)
    assert page.get("area") == 0
    page.browser.get_log("browser")  # the lost connection is in it, as it must be


def test_a_tablet_and_the_ledger(page, browser, server):
    for size in ((820, 1180), (1280, 720)):
        resize(browser, *size)
        page.open(server.url)
        page.click(200, 150)
        wide, high = browser.execute_script(
            "const d = document.documentElement, t = document.getElementById('tools');"
            "return [d.scrollWidth - d.clientWidth, t.scrollHeight - t.clientHeight]"
        )
        assert (wide, high) == (0, 0), f"everything is on a screen of {size}"
    browser.get(f"{server.url}ledger")
    assert "assisted" in page.shows("table")
    page.open(server.url)
