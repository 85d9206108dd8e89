"""The page that `sam-jax export --web` writes, opened in a Chromium."""

import base64
import contextlib
import functools
import http.server
import io
import threading

from PIL import Image

from tests.engine.browsers import call, make_browser, wait


class Quiet(http.server.SimpleHTTPRequestHandler):
    """A plain file server that says nothing."""

    def log_message(self, *args):
        pass


@contextlib.contextmanager
def opened(folder):
    """A browser with the page of a folder, once its model is there."""
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        browser = make_browser((1200, 760))
        browser.set_script_timeout(120)
        try:
            browser.get(f"http://127.0.0.1:{server.server_port}/")
            wait(browser, "status", "ready")
            yield browser
        finally:
            browser.quit()
            server.shutdown()


def open_photo(browser, image):
    """Shows the page a photo uint8 [H, W, 3] and waits until it has read it."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    data = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    call(browser, "await sam.open(await (await fetch(arguments[0])).blob())", data)
    wait(browser, "status", "photo read in")
