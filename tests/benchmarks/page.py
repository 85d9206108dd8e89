"""Milliseconds of a prompt in the page that `sam-jax export --web` writes, in a Chromium.

    python -m tests.benchmarks.page --web DIR

From the page's question to the mask at the size shown, p50 and p95 of 200 single points.
"""

from __future__ import annotations

import argparse

import numpy as np
from PIL import Image

from tests.engine.browsers import call
from tests.inference.exported_page import open_photo, opened

SIZE = (600, 800)
"""Of the mask shown."""


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--web", required=True, metavar="DIR", help="what the command wrote")
    folder = parser.parse_args().web
    photo = np.asarray(Image.open(f"{folder}/example.jpg").convert("RGB"))
    with opened(folder) as browser:
        open_photo(browser, photo)
        shown = browser.find_element("id", "status").text
        height, width = photo.shape[:2]
        points = np.random.default_rng(0).uniform(0, (width, height), (220, 2)).tolist()
        for x, y in points:
            call(browser, "await sam.ask([[...arguments[0], 1]], null, arguments[1])", [x, y], SIZE)
        times = browser.execute_script("return sam.times")[-200:]
    p50, p95 = np.percentile(times, [50, 95])
    print(f"{shown}; a prompt: p50 {p50:.0f} ms, p95 {p95:.0f} ms")


if __name__ == "__main__":
    main()
