"""Simulated annotators: they know the true masks and work through the server's own routes."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np

from sam_jax.ops.clicks import centre_click, corrective_click, iou
from sam_jax.ops.rle import decode, uncompressed


class Server:
    """`sam-jax annotate` in a process of its own; use it as a context."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        command = [sys.executable, "-m", "sam_jax", "annotate", str(folder), "--port", "0"]
        self.process = subprocess.Popen(
            [*command, "--no-browser", *arguments], stdout=subprocess.PIPE, text=True
        )
        self.url = ""
        for line in self.process.stdout:
            if line.startswith("http"):
                self.url = line.strip().rstrip("/")
                return
        raise RuntimeError("the server did not start")

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: Any) -> None:
        self.process.terminate()
        self.process.wait()
        self.process.stdout.close()


class Annotator:
    """One person.

    Args:
      url: of the server.
      name: of the person.
      enough: IoU from which on a mask is left as it is.
      patience: clicks on a mask before the brush is taken.

    Attributes:
      clicks: seconds that each answer to a click took.
      saved: ids of the masks that the server said were saved.
    """

    def __init__(self, url: str, name: str, enough: float = 0.85, patience: int = 5) -> None:
        self.url, self.name, self.enough, self.patience = url, name, enough, patience
        self.clicks: list[float] = []
        self.saved: list[str] = []

    def call(self, path: str, body: dict[str, Any] | None = None, **query: str) -> dict[str, Any]:
        """The answer of a route; an answer that is no success is raised with its sentence.

        Nobody clicks so fast that the server's limit counts, but who is simulated does, and waits.
        """
        address = f"{self.url}{path}" + (f"?{urllib.parse.urlencode(query)}" if query else "")
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", "X-Annotator": self.name}
        request = urllib.request.Request(address, data, headers)
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            if error.code == 429:
                time.sleep(0.1)
                return self.call(path, body, **query)
            raise RuntimeError(f"{path}: {error.code} {error.read().decode()}") from None

    def open(self, photo: str) -> dict[str, Any]:
        """Waits until the model and the pre-filled masks are there."""
        while True:
            answer = self.call("/api/ready", photo=photo, wait="1")
            if answer["ready"] and answer["filled"]:
                return self.call("/api/photo", photo=photo)
            time.sleep(0.05)

    def think(self) -> None:
        """What a person does before a click."""

    def segment(self, photo: str, true: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
        """Clicks until the mask is good enough or patience ends; the mask, and its prompts."""
        points, labels = [list(centre_click(true))], [1]
        mask, previous = np.zeros_like(true), None
        for _ in range(self.patience):
            self.think()
            start = time.perf_counter()
            body = {"photo": photo, "points": points, "labels": labels, "previous": previous}
            found = self.call("/api/predict", body)["candidates"]
            self.clicks.append(time.perf_counter() - start)
            masks = [decode(one) for one in found]
            best = int(np.argmax([iou(one, true) for one in masks]))
            mask, previous = masks[best], found[best]["token"]
            if iou(mask, true) >= self.enough:
                break
            xy, label = corrective_click(mask, true)
            points, labels = [*points, list(xy)], [*labels, label]
        used = min(len(points), self.patience)
        return mask, {"points": points[:used], "labels": labels[:used]}

    def annotate(self, photo: str, true: np.ndarray, replaces: str | None = None) -> None:
        """Saves a mask of something, by clicks, and where these do not do by the brush."""
        start = time.perf_counter()
        mask, prompts = self.segment(photo, true)
        if iou(mask, true) < self.enough:
            y, x = np.nonzero(true != mask)
            painted = [[float(x[0]), float(y[0])], [float(x[-1]), float(y[-1])]]
            prompts["strokes"] = [{"tool": "brush", "radius": 3, "points": painted}]
            mask = true
        body = {"photo": photo, "mask": uncompressed(mask), "prompts": prompts}
        body |= {"seconds": time.perf_counter() - start, "replaces": replaces}
        self.saved.append(self.call("/api/masks", body)["id"])

    def work_on(self, photo: str, trues: list[np.ndarray]) -> dict[str, int]:
        """Looks through what is there, rejects or corrects it, adds the rest, says it is done.

        Returns:
          How many masks were "kept", "corrected", "rejected" and "added".
        """
        counts = dict.fromkeys(("kept", "corrected", "rejected", "added"), 0)
        left = list(range(len(trues)))
        for one in self.open(photo)["masks"]:
            mask = decode(one)
            ious = [iou(mask, trues[k]) for k in left]
            best = int(np.argmax(ious)) if ious else -1
            if best < 0 or ious[best] < 0.5:
                self.call("/api/masks/remove", {"photo": photo, "id": one["id"]})
                counts["rejected"] += 1
                continue
            k = left.pop(best)
            if ious[best] < self.enough:
                self.annotate(photo, trues[k], replaces=one["id"])
                counts["corrected"] += 1
            else:
                counts["kept"] += 1
        for k in left:
            self.annotate(photo, trues[k])
            counts["added"] += 1
        self.call("/api/done", {"photo": photo, "done": True, "seconds": 1.0})
        return counts
