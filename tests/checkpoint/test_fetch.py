"""The released files, from a server on this machine: fetched once, checked, resumed, explained."""

import hashlib
import http.server
import threading

import numpy as np
import pytest

from sam_jax.checkpoint import fetch
from sam_jax.checkpoint import load as loading
from sam_jax.checkpoint.fetch import RELEASED, Released
from sam_jax.checkpoint.load import load, save
from sam_jax.checkpoint.strict import CheckpointError
from tests.checkpoint.common import ODD, assert_same_bits, random_sam

FILE = "sam_odd_000000.pth"


class Server(http.server.BaseHTTPRequestHandler):
    """Serves one file, ranges too; can break off or ignore ranges."""

    data = b""
    asked: list = []
    break_after: int | None = None
    ranges = True

    def do_GET(self):  # noqa: N802
        wanted = self.headers.get("Range")
        type(self).asked.append((self.path, wanted))
        if self.path != f"/{FILE}":
            self.send_error(404)
            return
        start = int(wanted[6:-1]) if wanted and self.ranges else 0
        if start >= len(self.data):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(self.data) - start))
        self.end_headers()
        self.wfile.write(self.data[start : self.break_after])

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A server that has a small model as "vit_b", and an empty cache folder."""
    save(random_sam(), tmp_path / "served.pth")
    data = (tmp_path / "served.pth").read_bytes()
    handler = type("Handler", (Server,), {"data": data, "asked": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        url = f"http://127.0.0.1:{running.server_port}/{FILE}"
        released = Released(url, hashlib.sha256(data).hexdigest())
        monkeypatch.setitem(RELEASED, "vit_b", released)
        monkeypatch.setitem(loading.CONFIGS, "vit_b", ODD)
        monkeypatch.setenv("SAM_JAX_CACHE", str(tmp_path / "cache"))
        yield handler
        running.shutdown()
        thread.join()


def test_fetched_once_then_mapped_from_the_cache(server, tmp_path, capsys):
    first = load("vit_b")
    assert first.name == "vit_b"
    assert_same_bits(first.params, random_sam().params)
    assert FILE in capsys.readouterr().err  # the progress bar
    cached = {p.name for p in (tmp_path / "cache").iterdir() if p.suffix != ".lock"}
    assert cached == {"sam_odd_000000.safetensors"}
    assert_same_bits(load("vit_b").params, first.params)
    assert server.asked == [(f"/{FILE}", None)]


def test_a_broken_connection_is_resumed(server, tmp_path):
    server.break_after = 100_000
    with pytest.raises(CheckpointError, match="broke after 100000 of|put it at"):
        load("vit_b")
    assert (tmp_path / "cache" / f"{FILE}.part").stat().st_size == 100_000
    server.break_after = None
    assert_same_bits(load("vit_b").params, random_sam().params)
    assert server.asked == [(f"/{FILE}", None), (f"/{FILE}", "bytes=100000-")]


def test_a_server_without_ranges_starts_anew(server, tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / f"{FILE}.part").write_bytes(b"rubbish")
    server.ranges = False
    assert_same_bits(load("vit_b").params, random_sam().params)


def test_what_is_not_the_released_file_is_removed(server, tmp_path):
    server.data = server.data[:-1] + b"x"
    with pytest.raises(CheckpointError, match="not the released file: expected SHA-256") as caught:
        load("vit_b")
    assert RELEASED["vit_b"].sha256 in str(caught.value)
    left = [p.name for p in (tmp_path / "cache").iterdir() if p.suffix != ".lock"]
    assert left == []
    (tmp_path / "cache" / f"{FILE}.part").write_bytes(bytes(len(server.data)))
    with pytest.raises(CheckpointError, match="not the released file"):  # the server says 416
        load("vit_b")


def test_a_file_put_in_the_cache_is_checked_used_and_kept(server, tmp_path):
    (tmp_path / "cache").mkdir()
    path = tmp_path / "cache" / FILE
    path.write_bytes(server.data[:-5])
    with pytest.raises(CheckpointError, match="is not the released file, or is cut short"):
        load("vit_b")
    path.write_bytes(server.data)
    assert_same_bits(load("vit_b").params, random_sam().params)
    assert path.exists() and server.asked == []


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/x/f.pth", "http://no.such.invalid/x/f.pth"])
def test_without_a_network_it_says_what_to_put_where(monkeypatch, tmp_path, url):
    monkeypatch.setenv("SAM_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(RELEASED, "vit_b", Released(url, "0" * 64))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(CheckpointError) as caught:
        load("vit_b")
    where = tmp_path / "cache" / "f.pth"
    assert f"Download {url}" in str(caught.value) and f"put it at {where}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_on_the_server(server, monkeypatch):
    moved = RELEASED["vit_b"]._replace(url=RELEASED["vit_b"].url + "x")
    monkeypatch.setitem(RELEASED, "vit_b", moved)
    with pytest.raises(CheckpointError, match="Not Found|404"):
        load("vit_b")


def test_the_table_and_the_folder(monkeypatch):
    assert [r.file for r in RELEASED.values()] == [
        "mobile_sam.pt",
        "sam_vit_b_01ec64.pth",
        "sam_vit_l_0b3195.pth",
        "sam_vit_h_4b8939.pth",
    ]
    assert all(r.url.startswith("https://") and len(r.sha256) == 64 for r in RELEASED.values())
    monkeypatch.delenv("SAM_JAX_CACHE", raising=False)
    monkeypatch.setenv("HOME", "/home/somebody")
    assert str(fetch.cache_folder()) == "/home/somebody/.cache/sam_jax"


def test_the_bundled_model_is_missed_in_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr(loading, "ASSETS", tmp_path)
    with pytest.raises(CheckpointError, match="lacks its bundled model, .*tiny.safetensors"):
        load()
    save(random_sam(name="tiny"), tmp_path / "tiny.safetensors", half=True)
    assert (
        load().name == "tiny"
        and np.isfinite(load().params["buffers"]["prompt_encoder"]["gaussian"]).all()
    )
