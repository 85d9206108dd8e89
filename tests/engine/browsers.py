"""A Chromium without a screen, for the tests of pages."""

import importlib.util
import shutil
import time

MISSING = [
    name
    for name, there in (
        ("selenium", importlib.util.find_spec("selenium")),
        ("chromium", shutil.which("chromium")),
        ("chromedriver", shutil.which("chromedriver")),
    )
    if not there
]
"""What such tests need and is not there."""


def make_browser(size=(1280, 720)):
    """A Chromium without a screen; its inside has that size."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    options.binary_location = shutil.which("chromium")
    service = webdriver.ChromeService(executable_path=shutil.which("chromedriver"))
    browser = webdriver.Chrome(options=options, service=service)
    resize(browser, *size)
    return browser


def resize(browser, width, height):
    """Gives the page's inside a size."""
    outer = browser.execute_script("return [outerWidth - innerWidth, outerHeight - innerHeight]")
    browser.set_window_size(width + outer[0], height + outer[1])


def wait(browser, name, wanted, seconds=120):
    """The text of an element once it holds `wanted`."""
    end = time.monotonic() + seconds
    while wanted not in (text := browser.find_element("id", name).text):
        assert time.monotonic() < end, f"{name}: expected {wanted!r}, it shows {text!r}"
        time.sleep(0.05)
    return text


def call(browser, script, *args):
    """What an asynchronous script returns."""
    wrapped = (
        "const done = arguments[arguments.length - 1];"
        f"(async () => {{ {script} }})().then(v => done([v]), e => done(String(e)))"
    )
    found = browser.execute_async_script(wrapped, *args)
    assert isinstance(found, list), found
    return found[0]
