"""What the annotation page asks for: photos, prompts, masks, export, ledger.

One method a route. GETs take the request, POSTs their body, both the annotator's name; they give
what is to be said as JSON, or a Response.
"""

from __future__ import annotations

import collections
import functools
import io
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from sam_jax.data.images import image_hw, read_image
from sam_jax.data.store import MODEL, Mask, Store, photo_path
from sam_jax.engine import checks, export, ledger
from sam_jax.engine.assistant import Assistant
from sam_jax.engine.checks import BadRequest
from sam_jax.ops import rle

HINT_SECONDS = 30
"""After which the page suggests to move on (the paper's rule)."""
SHOWN_AS_THEY_ARE = {
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".png": "image/png",
    ".webp": "image/webp",
}


class Annotation:
    """What the server works on.

    Args:
      store: of the folder of photographs.
      assistant: the model that helps.
      model: its name, to be shown.
      stage: "assisted" or "semi-automatic".
      filled: tells whether a photo has its pre-filled masks.
    """

    def __init__(
        self,
        store: Store,
        assistant: Assistant,
        model: str,
        stage: str = "assisted",
        filled: Callable[[str], bool] = lambda photo: True,
    ) -> None:
        self.store, self.assistant, self.model = store, assistant, model
        self.stage, self.filled = stage, filled
        self._names = set(store.names())
        self._writing = threading.Lock()

    def photo(self, name: str) -> tuple[Path, tuple[int, int]]:
        """A photo's file, and its height and width as it is seen.

        Raises:
          HTTPException: 404, there is no such photo.
        """
        path = photo_path(self.store.photos, name)
        if path is None or name not in self._known(name):
            raise HTTPException(404, f"photo: no such photo: {name[:200]}")
        try:
            return path, _size(str(path), path.stat().st_mtime_ns)
        except (OSError, ValueError) as error:
            raise HTTPException(422, f"photo: {name[:200]} can't be read: {error}") from error

    def _known(self, name: str) -> set[str]:
        if name not in self._names:
            self._names = set(self.store.names())
        return self._names

    def info(self, request: Request, who: str) -> dict[str, Any]:
        """GET /api/info."""
        assistant = self.assistant
        ready = assistant.status == "ready"
        about = {"name": self.model, "hash": assistant.hash, "ready": ready}
        about |= {"status": assistant.status, "reads": assistant.reads}
        return {"model": about, "stage": self.stage, "hint_seconds": HINT_SECONDS}

    def photos(self, request: Request, who: str) -> dict[str, Any]:
        """GET /api/photos."""
        self.store.refresh()
        done = self.store.done()
        counts = collections.Counter(m.event["photo"] for m in self.store.alive().values())
        names = self.store.names()
        return {
            "photos": [{"name": n, "masks": counts[n], "done": done.get(n, False)} for n in names]
        }

    def image(self, request: Request, who: str) -> Response:
        """GET /api/image."""
        path, _ = self.photo(request.query_params.get("photo", ""))
        kind = SHOWN_AS_THEY_ARE.get(path.suffix.lower())
        if kind:
            return Response(path.read_bytes(), media_type=kind)
        buffer = io.BytesIO()
        Image.fromarray(read_image(path)).save(buffer, "JPEG", quality=95)
        return Response(buffer.getvalue(), media_type="image/jpeg")

    def about_photo(self, request: Request, who: str) -> dict[str, Any]:
        """GET /api/photo."""
        name = request.query_params.get("photo", "")
        _, (height, width) = self.photo(name)
        self.store.refresh()
        ready, _ = self.assistant.ready(name)
        return {
            "photo": name,
            "width": width,
            "height": height,
            "ready": ready,
            "filled": self.filled(name),
            "done": self.store.done().get(name, False),
            "masks": [_shown(key, mask) for key, mask in self.store.alive(name).items()],
        }

    def ready(self, request: Request, who: str) -> dict[str, Any]:
        """GET /api/ready."""
        name = request.query_params.get("photo", "")
        self.photo(name)
        ready, status = self.assistant.ready(name, 10.0 if "wait" in request.query_params else 0.0)
        return {"ready": ready, "status": status, "filled": self.filled(name)}

    def predict(self, body: dict[str, Any], who: str) -> dict[str, Any]:
        """POST /api/predict."""
        start = time.perf_counter()
        name = checks.text(body, "photo")
        _, hw = self.photo(name)
        places, labels = checks.points(body, hw)
        box, mask = checks.box(body, hw), checks.mask(body, hw)
        previous = checks.text(body, "previous", 64) if body.get("previous") else None
        words = checks.text(body, "text", checks.MOST_LABEL) if body.get("text") else None
        if not places and box is None and words is None:
            raise BadRequest("points: expected a point, a box or a text")
        drawn = None if mask is None or previous else rle.decode(mask)
        found = self.assistant.predict(name, places, labels, box, drawn, previous, words)
        candidates = [
            {**c.rle, "score": c.score, "stability": c.stability, "token": c.token} for c in found
        ]
        return {"candidates": candidates, "ms": 1000 * (time.perf_counter() - start)}

    def save(self, body: dict[str, Any], who: str) -> Response:
        """POST /api/masks."""
        name = checks.text(body, "photo")
        _, hw = self.photo(name)
        mask = checks.mask(body, hw)
        if mask is None:
            raise BadRequest("mask: expected a COCO RLE")
        prompts = body.get("prompts") or {}
        if not isinstance(prompts, dict):
            raise BadRequest("prompts: expected points, labels, box and strokes")
        places, labels = checks.points(prompts, hw)
        kept = {"points": places, "labels": labels, "box": checks.box(prompts, hw)}
        if prompts.get("text"):
            kept["text"] = checks.text(prompts, "text", checks.MOST_LABEL)
        fields = {
            "stage": self.stage,
            "seconds": checks.number(body, "seconds", 0, checks.MOST_SECONDS),
            "model": self.assistant.hash,
            "prompts": kept | {"strokes": checks.strokes(prompts)},
            "label": checks.text(body, "label", checks.MOST_LABEL, ""),
            "predicted_iou": checks.number(body, "score", -10, 10),
        }
        with self._writing:  # nobody else corrects the same mask in between
            replaces = body.get("replaces")
            if replaces is not None:
                self._alive(name, checks.text(body, "replaces", 64))
                fields["replaces"] = replaces
            made = self.store.add("mask", name, who, **mask, **fields)
        return JSONResponse({"id": made["id"]}, 201)

    def remove(self, body: dict[str, Any], who: str) -> dict[str, Any]:
        """POST /api/masks/remove."""
        name, key = checks.text(body, "photo"), checks.text(body, "id", 64)
        with self._writing:
            self._alive(name, key)
            self.store.add("remove", name, who, mask=key)
        return {"ok": True}

    def restore(self, body: dict[str, Any], who: str) -> dict[str, Any]:
        """POST /api/masks/restore."""
        name, key = checks.text(body, "photo"), checks.text(body, "id", 64)
        with self._writing:
            mask = self.store.masks(name).get(key)
            if mask is None:
                raise HTTPException(404, "id: no such mask on this photo")
            if mask.removed_by is not None:
                corrected = self.store.masks(name).get(mask.event.get("replaces"))
                if corrected is not None and corrected.replaced_by is not None:
                    raise HTTPException(
                        409,
                        "id: what this mask corrected has another correction; remove that first",
                    )
                self.store.add("restore", name, who, mask=key)
        return {"ok": True}

    def label(self, body: dict[str, Any], who: str) -> dict[str, Any]:
        """POST /api/masks/label."""
        name, key = checks.text(body, "photo"), checks.text(body, "id", 64)
        label = checks.text(body, "label", checks.MOST_LABEL, "")
        with self._writing:
            self._alive(name, key)
            self.store.add("label", name, who, mask=key, label=label)
        return {"ok": True}

    def done(self, body: dict[str, Any], who: str) -> dict[str, Any]:
        """POST /api/done."""
        name = checks.text(body, "photo")
        self.photo(name)
        if not isinstance(body.get("done"), bool):
            raise BadRequest("done: expected true or false")
        seconds = checks.number(body, "seconds", 0, checks.MOST_SECONDS)
        self.store.add("photo", name, who, done=body["done"], seconds=seconds, stage=self.stage)
        return {"ok": True}

    def reload(self, body: dict[str, Any], who: str) -> dict[str, Any]:
        """POST /api/reload."""
        self.assistant.reload()
        deadline = time.monotonic() + 120
        while self.assistant.status in ("loading", "compiling") and time.monotonic() < deadline:
            time.sleep(0.05)
        if self.assistant.problem or self.assistant.status != "ready":
            raise HTTPException(503, self.assistant.problem or self.assistant.status)
        return {"hash": self.assistant.hash}

    def export(self, request: Request, who: str) -> Response:
        """GET /api/export."""
        form = request.query_params.get("form", "sa1b")
        if form not in export.FORMS:
            raise BadRequest(f"form: expected one of {', '.join(export.FORMS)}")
        self.store.refresh()
        name = f"{self.store.photos.resolve().name or 'masks'}_{form}.zip"
        safe = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "_" for c in name)
        headers = {"Content-Disposition": f'attachment; filename="{safe}"'}
        return Response(
            export.to_zip(self.store, form), media_type="application/zip", headers=headers
        )

    def ledger(self, request: Request, who: str) -> Response:
        """GET /ledger."""
        self.store.refresh()
        return HTMLResponse(ledger.page(self.store))

    def _alive(self, photo: str, key: str) -> Mask:
        mask = self.store.masks(photo).get(key)
        if mask is None:
            raise HTTPException(404, "id: no such mask on this photo")
        if not mask.alive:
            raise HTTPException(
                409, "id: somebody else has changed this mask; open the photo again"
            )
        return mask


def _shown(key: str, mask: Mask) -> dict[str, Any]:
    event = mask.event
    return {
        "id": key,
        "size": event["size"],
        "counts": rle.read_counts(mask.rle).tolist(),
        "label": mask.label,
        "stage": event.get("stage", ""),
        "who": event["who"],
        "locked": event["who"] == MODEL,
        "predicted_iou": event.get("predicted_iou"),
    }


@functools.lru_cache(maxsize=4096)
def _size(path: str, changed: int) -> tuple[int, int]:
    """`image_hw` of a file, read again when it has changed."""
    return image_hw(path)
