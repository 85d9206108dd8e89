"""The README's pictures of the annotation page: python -m tests.engine.screenshots docs."""

from __future__ import annotations

import io
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

from PIL import Image
from selenium.webdriver import Keys

from tests.engine.test_page import Page, Server, make_browser

CUP, SPOON = (173, 17, 408, 250), (326, 243, 402, 326)


def main(out: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        photo = Image.open(files("sam_jax.assets").joinpath("photo.jpg")).convert("RGB")
        for name in ("cup.jpg", "table.jpg"):
            photo.save(Path(folder) / name, quality=95)
        server, browser = Server(Path(folder)), make_browser((1280, 860))
        try:
            shoot(Page(browser), server.url, out)
        finally:
            browser.quit()
            server.kill()


def shoot(page: Page, url: str, out: Path) -> None:
    page.open(url)
    draw(page, CUP)
    page.browser.find_element("id", "label").send_keys("cup", Keys.TAB)
    page.browser.find_element("id", "save").click()
    page.wait("saved", 1)
    draw(page, SPOON)
    keep(page, out / "annotate.jpg")
    page.browser.get(f"{url}ledger")
    keep(page, out / "ledger.jpg")


def keep(page: Page, path: Path) -> None:
    shot = Image.open(io.BytesIO(page.browser.get_screenshot_as_png()))
    shot.convert("RGB").save(path, quality=88)


def draw(page: Page, box: tuple[int, int, int, int]) -> None:
    x0, y0, x1, y1 = box
    page.drag((x0, y0), ((x0 + x1) / 2, (y0 + y1) / 2), (x1, y1))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
