"""Every route: what it answers, and that garbage gets 4xx with a sentence."""

from __future__ import annotations

import io
import json
import re
import zipfile
from urllib.parse import quote, urlsplit

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("starlette", reason="the page needs starlette: pip install 'sam_jax[annotate]'")
from starlette.testclient import TestClient  # noqa: E402

from sam_jax.data.store import MODEL, Store  # noqa: E402
from sam_jax.engine import server  # noqa: E402
from sam_jax.engine.annotate import link_to  # noqa: E402
from sam_jax.engine.annotation import Annotation  # noqa: E402
from sam_jax.engine.assistant import Assistant  # noqa: E402
from sam_jax.ops.rle import decode, encode, uncompressed  # noqa: E402
from tests.engine.conftest import HW, rectangle  # noqa: E402
from tests.small import reading_sam  # noqa: E402

POSTS = (
    "/api/predict",
    "/api/masks",
    "/api/masks/remove",
    "/api/masks/restore",
    "/api/masks/label",
    "/api/done",
)


@pytest.fixture
def client(store, assistant):
    app = server.make_app(Annotation(store, assistant, "small"), {"testserver"})
    with TestClient(app, headers={"X-Annotator": "ann"}) as client:
        yield client


def body(**more):
    return {"photo": "a.png", "mask": uncompressed(rectangle(3, 4, 20, 30)), **more}


def test_what_there_is(client, photos):
    info = client.get("/api/info").json()
    assert info["model"]["name"] == "small" and info["model"]["ready"] is True
    assert info["model"]["reads"] is False
    assert info["stage"] == "assisted" and info["hint_seconds"] == 30
    names = [one["name"] for one in client.get("/api/photos").json()["photos"]]
    assert names == ["a.png", "c.jpg", "deep/b.jpg"]
    photo = client.get("/api/photo", params={"photo": "a.png"}).json()
    assert (photo["width"], photo["height"]) == HW[::-1] and photo["masks"] == []
    assert client.get("/api/ready", params={"photo": "a.png", "wait": 1}).json()["ready"] is True
    image = client.get("/api/image", params={"photo": "a.png"})
    assert image.headers["content-type"] == "image/png"
    assert image.content == (photos / "a.png").read_bytes()
    assert "default-src 'self'" in image.headers["content-security-policy"]


def test_words_where_the_model_reads(photos, store):
    assistant = Assistant(reading_sam, photos)
    assistant.start()
    try:
        assert assistant.ready("a.png", 60)[0]
        app = server.make_app(Annotation(store, assistant, "reading"), {"testserver"})
        with TestClient(app, headers={"X-Annotator": "ann"}) as client:
            assert client.get("/api/info").json()["model"]["reads"] is True
            ask = {"photo": "a.png", "text": "the red circle"}
            found = client.post("/api/predict", json=ask).json()["candidates"]
            assert len(found) == 3
            click = ask | {"points": [[5, 6]], "labels": [0], "previous": found[0]["token"]}
            assert len(client.post("/api/predict", json=click).json()["candidates"]) == 1
            other = client.post("/api/predict", json=ask | {"text": "a green square"}).json()
            assert other["candidates"][0]["score"] != found[0]["score"]
            unknown = client.post("/api/predict", json=ask | {"text": "fluffy"})
            assert unknown.status_code == 400 and "does not know 'fluffy'" in unknown.text
            made = client.post("/api/masks", json=body(prompts={"text": "the red circle"}))
            (mask,) = store.alive().values()
            assert made.status_code == 201 and mask.event["prompts"]["text"] == "the red circle"
    finally:
        assistant.stop()


def test_pictures_that_browsers_do_not_show_and_turned_ones(client, photos):
    picture = Image.fromarray(np.full((30, 20, 3), 90, np.uint8))
    picture.save(photos / "d.tif")
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(photos / "e.jpg", exif=exif)
    shown = client.get("/api/image", params={"photo": "d.tif"})
    assert shown.headers["content-type"] == "image/jpeg"
    assert Image.open(io.BytesIO(shown.content)).size == (20, 30)
    turned = client.get("/api/photo", params={"photo": "e.jpg"}).json()
    assert (turned["width"], turned["height"]) == (30, 20)


def test_a_session(client, store):
    prompt = {"photo": "a.png", "points": [[20, 30]], "labels": [1], "box": None}
    found = client.post("/api/predict", json=prompt).json()
    assert len(found["candidates"]) == 3 and found["ms"] > 0
    best = found["candidates"][0]
    more = prompt | {"points": [[20, 30], [2, 2]], "labels": [1, 0], "previous": best["token"]}
    assert len(client.post("/api/predict", json=more).json()["candidates"]) == 1
    painted = prompt | {"mask": uncompressed(rectangle(3, 4, 20, 30))}
    assert len(client.post("/api/predict", json=painted).json()["candidates"]) == 1
    stroke = {"tool": "brush", "radius": 3, "points": [[1, 1], [5, 5]]}
    prompts = {"points": [[20, 30]], "labels": [1], "box": [1, 2, 30, 40], "strokes": [stroke]}
    saved = client.post(
        "/api/masks", json=body(prompts=prompts, seconds=3.5, label="cup", score=0.8)
    )
    assert saved.status_code == 201
    key = saved.json()["id"]
    event = store.alive()[key].event
    assert event["who"] == "ann" and event["seconds"] == 3.5 and event["predicted_iou"] == 0.8
    assert event["prompts"]["strokes"] == [stroke | {"radius": 3.0, "points": [[1, 1], [5, 5]]}]
    assert len(event["model"]) == 16 and event["stage"] == "assisted"
    (shown,) = client.get("/api/photo", params={"photo": "a.png"}).json()["masks"]
    assert shown["label"] == "cup" and shown["locked"] is False
    np.testing.assert_array_equal(decode(shown), rectangle(3, 4, 20, 30))
    assert client.post("/api/masks/label", json=body(id=key, label="mug")).json() == {"ok": True}
    assert store.alive()[key].label == "mug"
    assert client.post("/api/masks/remove", json=body(id=key)).status_code == 200
    assert not store.alive()
    assert client.post("/api/masks/restore", json=body(id=key)).status_code == 200
    assert list(store.alive()) == [key]
    assert client.post("/api/done", json=body(done=True, seconds=20)).status_code == 200
    photo = client.get("/api/photos").json()["photos"][0]
    assert photo == {"name": "a.png", "masks": 1, "done": True}


def test_a_locked_mask_is_corrected_once(client, store):
    locked = store.add("mask", "a.png", MODEL, **encode(rectangle(0, 0, 9, 9)), stage="automatic")[
        "id"
    ]
    (shown,) = client.get("/api/photo", params={"photo": "a.png"}).json()["masks"]
    assert shown["locked"] is True
    first = client.post("/api/masks", json=body(replaces=locked))
    assert first.status_code == 201 and list(store.alive()) == [first.json()["id"]]
    second = client.post("/api/masks", json=body(replaces=locked))
    assert second.status_code == 409 and "somebody else" in second.json()["error"]
    assert client.post("/api/masks/remove", json=body(id=locked)).status_code == 409
    assert list(store.alive()) == [first.json()["id"]]


def test_export_and_ledger(client, store):
    client.post("/api/masks", json=body(label="<cup>", seconds=4))
    for form, name in (("sa1b", "a.json"), ("coco", "instances.json"), ("png", "a.png")):
        answer = client.get("/api/export", params={"form": form})
        assert answer.headers["content-type"] == "application/zip"
        with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
            assert archive.namelist() == [name]
            content = archive.read(name)
        if form == "png":
            labels = np.asarray(Image.open(io.BytesIO(content)))
            np.testing.assert_array_equal(labels == 1, rectangle(3, 4, 20, 30))
        else:
            (annotation,) = json.loads(content)["annotations"]
            np.testing.assert_array_equal(
                decode(annotation["segmentation"]), rectangle(3, 4, 20, 30)
            )
            assert annotation["area"] == 17 * 26 and annotation["bbox"] == [3, 4, 17, 26]
    page = client.get("/ledger").text
    assert "<td>ann</td><td>1</td>" in page and "<script" not in page
    assert client.get("/api/export?form=exe").status_code == 400


GARBAGE = [
    b"", b"{", b"[]", b"null", b'"x"', b"[" * 10_000, b"\xff\xfe", b'{"photo": 1}',
    b'{"photo": ""}', b'{"photo": "../../etc/passwd"}', b'{"photo": "a.png\\u0000"}',
    b'{"photo": null, "id": {}}',
    json.dumps({"photo": "x" * 100_000}).encode(),
]  # fmt: skip


@pytest.mark.parametrize("route", POSTS)
def test_garbage_gets_a_sentence(client, store, route):
    json_type = {"Content-Type": "application/json"}
    for content in GARBAGE:
        answer = client.post(route, content=content, headers=json_type)
        assert 400 <= answer.status_code < 500, (route, content[:40], answer.text)
        assert answer.json()["error"] and "\n" not in answer.json()["error"]
    assert (
        client.post(route, content=b"{}", headers={"Content-Type": "text/plain"}).status_code == 415
    )
    huge = client.post(route, content=b" " * (server.MOST_BYTES + 1), headers=json_type)
    assert huge.status_code == 413
    assert client.post(route, json=body(), headers={"Origin": "http://evil"}).status_code == 403
    assert client.get(route).status_code == 405
    assert not store.events()


WRONG = [
    {"points": [[1, 2]]}, {"points": [[1, 2]], "labels": [2]}, {"points": [[1]], "labels": [1]},
    {"points": [["a", 1]], "labels": [1]}, {"points": [[1e400, 1]], "labels": [1]},
    {"points": [[64, 1]], "labels": [1]}, {"points": [[-1, 1]], "labels": [1]},
    {"points": [[1, 1]] * 201, "labels": [1] * 201}, {"points": {"a": 1}, "labels": [1]},
    {"points": [[True, 1]], "labels": [1]}, {"points": [[1, 1]], "labels": [True]},
    {"box": [1, 2, 3]}, {"box": [9, 9, 3, 3]}, {"box": [70, 1, 80, 3]}, {"box": "x"},
    {"points": [[1, 1]], "labels": [1], "previous": 5},
    {"points": [[1, 1]], "labels": [1], "previous": "gone"},
    {"points": [[1, 1]], "labels": [1], "mask": {"size": [1, 1], "counts": [1]}},
    {"points": [[1, 1]], "labels": [1], "mask": {"size": list(HW), "counts": [1]}},
    {"points": [[1, 1]], "labels": [1], "mask": {"size": list(HW), "counts": [-5, 3077]}},
    {"points": [[1, 1]], "labels": [1], "mask": {"size": list(HW), "counts": ["a"]}},
    {"points": [[1, 1]], "labels": [1], "mask": {"size": list(HW), "counts": "\u00e9~~"}},
    {"points": [[1, 1]], "labels": [1], "mask": {"size": list(HW), "counts": [48 * 64]}},
    {"points": [[1, 1]], "labels": [1], "mask": [1]},
    {},
]  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG, ids=range(len(WRONG)))
def test_wrong_prompts_get_a_sentence(client, wrong):
    content = json.dumps({"photo": "a.png", **wrong}).encode()  # 1e400 becomes Infinity
    answer = client.post(
        "/api/predict", content=content, headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 400, answer.text
    assert re.split(r"[:\[]", answer.json()["error"])[0] in (
        "points",
        "labels",
        "box",
        "previous",
        "mask",
    )


@pytest.mark.parametrize(
    "wrong",
    [
        {"mask": None}, {"mask": {"size": list(HW), "counts": [48 * 64]}}, {"seconds": -1},
        {"seconds": "x"}, {"seconds": 1e9}, {"label": "x" * 201}, {"label": 5}, {"score": [1]},
        {"prompts": [1]}, {"prompts": {"strokes": [{"tool": "saw", "points": []}]}},
        {"prompts": {"strokes": [{"tool": "brush"}]}}, {"prompts": {"strokes": "x"}},
        {"prompts": {"strokes": [{"tool": "brush", "points": [[1, 2]] * 200_001}]}},
        {"prompts": {"strokes": [{"tool": "brush", "points": [[1, "y"]]}]}},
        {"prompts": {"strokes": [{"tool": "brush", "radius": -3, "points": []}]}},
        {"prompts": {"points": [[99, 1]], "labels": [1]}}, {"replaces": 7},
    ],
)  # fmt: skip
def test_wrong_masks_are_not_stored(client, store, wrong):
    answer = client.post("/api/masks", json=body(**wrong))
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"] and not store.events()


def test_unknown_photos_masks_and_routes(client, photos, store):
    (photos.parent / "secret.png").write_bytes((photos / "a.png").read_bytes())
    (photos / "link.png").symlink_to(photos.parent / "secret.png")
    for name in (
        "none.png",
        "../secret.png",
        "/etc/passwd",
        "link.png",
        "deep",
        "",
        "sam_jax_store/store.json",
    ):
        for route in ("/api/image", "/api/photo", "/api/ready"):
            answer = client.get(route, params={"photo": name})
            assert answer.status_code == 404, (route, name)
    assert client.get("/api/photo", params={"photo": "c.jpg"}).status_code == 422
    for route in ("/api/masks/remove", "/api/masks/restore", "/api/masks/label"):
        assert client.post(route, json=body(id="none", label="x")).status_code == 404
    assert client.post("/api/masks", json=body(replaces="none")).status_code == 404
    assert client.get("/nowhere").status_code == 404
    assert "error" in client.get("/nowhere").json()
    for name in ("../server.py", "..%2fserver.py", "server.py", "x.css", "index.html.bak"):
        assert client.get(f"/static/{name}").status_code == 404
    assert not store.events()


def test_names_of_annotators(client, store):
    for name in ("model", "a" * 65, "<b>", "a/b", "\u00e9\u00e9;"):
        answer = client.get("/api/info", headers={"X-Annotator": name.encode()})
        assert answer.status_code == 400, name
    names = ["Ann Lee-2", "\u0141ukasz", "\u5c71\u7530"]
    for name in names:  # as the page sends them
        answer = client.post("/api/masks", json=body(), headers={"X-Annotator": quote(name)})
        assert answer.status_code == 201
    assert [event["who"] for event in store.events()] == names


@pytest.mark.parametrize("host", ["0.0.0.0", "::1"])
def test_the_link_that_is_printed_opens_the_page(store, assistant, host):
    token = "a+b&c%41 d"
    link = urlsplit(link_to(host, 8000, token))
    assert link.hostname == host and link.port == 8000
    with TestClient(server.make_app(Annotation(store, assistant, "small"), None, token)) as client:
        opened = client.get(f"/?{link.query}", follow_redirects=False)
        assert opened.status_code == 303 and client.get("/api/photos").status_code == 200
    assert link_to("localhost", 8000, None) == "http://localhost:8000/"


def test_a_correction_is_not_restored_beside_another(client, store):
    first = client.post("/api/masks", json=body()).json()["id"]
    second = client.post("/api/masks", json=body(replaces=first)).json()["id"]
    client.post("/api/masks/remove", json=body(id=second))
    third = client.post("/api/masks", json=body(replaces=first)).json()["id"]
    answer = client.post("/api/masks/restore", json=body(id=second))
    assert answer.status_code == 409 and "another correction" in answer.json()["error"]
    assert list(store.alive()) == [third]
    client.post("/api/masks/remove", json=body(id=third))
    assert client.post("/api/masks/restore", json=body(id=second)).status_code == 200
    assert list(store.alive()) == [second]


def test_another_host_name_and_no_token_get_nothing(store, assistant):
    annotation = Annotation(store, assistant, "small")
    with TestClient(server.make_app(annotation, {"localhost"})) as client:
        assert client.get("/api/photos").status_code == 403
        assert client.get("/api/photos", headers={"Host": "localhost:8321"}).status_code == 200
    with TestClient(server.make_app(annotation, None, "secret")) as client:
        for headers in ({}, {"X-Token": "wrong"}, {"Cookie": "token=wrong"}):
            assert client.get("/api/photos", headers=headers).status_code == 401
            assert client.post("/api/masks", json=body(), headers=headers).status_code == 401
        assert client.get("/api/photos", headers={"X-Token": "secret"}).status_code == 200
        opened = client.get("/?token=secret", follow_redirects=False)
        assert opened.status_code == 303 and "httponly" in opened.headers["set-cookie"].lower()
        assert client.get("/api/photos").status_code == 200, "the cookie is enough now"
    assert not store.events()


def test_too_many_requests_are_told_so(store, assistant, monkeypatch):
    monkeypatch.setattr(server, "BURST", 5.0)
    monkeypatch.setattr(server, "RATE", 0.0)
    with TestClient(server.make_app(Annotation(store, assistant, "small"))) as client:
        codes = [client.get("/api/info").status_code for _ in range(8)]
        assert codes == [200] * 5 + [429] * 3
        other = client.get("/api/info", headers={"X-Annotator": "bob"})
        assert other.status_code == 200


def test_a_full_disk_is_said_and_nothing_is_lost(client, store, monkeypatch):
    import os

    first = client.post("/api/masks", json=body()).json()["id"]
    write = os.write
    monkeypatch.setattr(os, "write", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
    answer = client.post("/api/masks", json=body())
    monkeypatch.setattr(os, "write", write)
    assert answer.status_code == 507 and "No space left" in answer.json()["error"]
    second = client.post("/api/masks", json=body()).json()["id"]
    assert list(Store(store.path).alive()) == [first, second]


def test_two_annotators_do_not_overwrite_each_other(client, store):
    keys = []
    for who in ("ann", "bob") * 5:
        answer = client.post("/api/masks", json=body(), headers={"X-Annotator": who})
        keys.append(answer.json()["id"])
    assert list(store.alive()) == keys
    assert [event["who"] for event in store.events()] == ["ann", "bob"] * 5


def test_the_model_is_read_again(client, assistant):
    answer = client.post("/api/reload", json={})
    assert answer.status_code == 200 and answer.json() == {"hash": assistant.hash}
    assert client.get("/api/ready", params={"photo": "a.png", "wait": 1}).json()["ready"] is True

    def broken():
        raise ValueError("the file is damaged")

    assistant._open_model = broken
    answer = client.post("/api/reload", json={})
    assert answer.status_code == 503 and "the file is damaged" in answer.json()["error"]
    prompt = {"photo": "a.png", "points": [[20, 30]], "labels": [1]}
    assert client.post("/api/predict", json=prompt).status_code == 200, "the old one still helps"
