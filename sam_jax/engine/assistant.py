"""A model that helps annotators: photos are encoded ahead of time, prompts are answered at once.

One thread loads the model, compiles it and then encodes photos, those that somebody has open before
the rest, and none while prompts come in. Embeddings are kept on disk under the hashes of picture
and weights, so that neither another page nor another start encodes anything twice.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sam_jax.data.images import ImageError, read_image
from sam_jax.data.store import photo_path

IN_MEMORY = 32
"""Embeddings, and twelve times as many logits of candidates, that are held in memory."""
CALM = 0.4
"""Seconds without a prompt before photos that nobody has open are encoded."""


class NotReady(ValueError):
    """The model or the photo's embedding is not there yet; the message says what is being done."""


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One mask that the model proposes.

    Attributes:
      rle: {"size", "counts": list of int} at the photo's size.
      score: the IoU that the model predicts.
      stability: see `MaskGenerator`.
      token: names it in a later prompt.
    """

    rle: dict[str, Any]
    score: float
    stability: float
    token: str


class Assistant:
    """See the module.

    Args:
      open_model: gives what `sam_jax.load` gives; called in the background, again by `reload`.
      photos: the folder of photographs.
      cache: the folder for embeddings, made if it is not there; None: only in memory.

    Attributes:
      status: "loading", "compiling", "ready", or what went wrong.
      hash: of its weights, or "".
      problem: why the model could not be opened the last time, or "".
      reads: whether it takes phrases.
    """

    def __init__(
        self, open_model: Callable[[], Any], photos: Path, cache: Path | None = None
    ) -> None:
        self.photos, self.cache = photos, cache
        self.status, self.hash, self.problem = "loading", "", ""
        self.reads = False
        self._open_model = open_model
        self._predictor: Any = None
        self._changed = threading.Condition()
        self._waiting: collections.deque[str] = collections.deque()
        self._wanted: collections.deque[str] = collections.deque()
        self._embeddings: collections.OrderedDict[str, Any] = collections.OrderedDict()
        self._broken: dict[str, str] = {}
        self._logits: collections.OrderedDict[str, tuple] = collections.OrderedDict()
        self._busy_until, self._stopped, self._reload = 0.0, False, False
        self._deciding = threading.Lock()  # two prompts at once would take twice as long each
        self._thread = threading.Thread(target=self._work, name="assistant", daemon=True)

    def start(self, photos: Sequence[str] = ()) -> None:
        """Starts the work in the background; `photos` are encoded when nothing else is to do."""
        self._waiting.extend(photos)
        self._thread.start()

    def stop(self) -> None:
        """Ends the work; waits for what is being done."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()

    def reload(self) -> None:
        """Opens the model again, as its file has changed; where that fails the old one stays."""
        with self._changed:
            self._reload = True
            self.status = "loading"
            self._changed.notify_all()

    def want(self, photo: str) -> None:
        """Encodes a photo next."""
        with self._changed:
            if photo not in self._embeddings and photo not in self._wanted:
                self._wanted.appendleft(photo)
                self._changed.notify_all()

    def ready(self, photo: str, wait: float = 0.0) -> tuple[bool, str]:
        """Whether prompts on a photo are answered, and in words what is done until they are.

        Args:
          photo: its name.
          wait: seconds to wait for it, at most.
        """
        self.want(photo)
        deadline = time.monotonic() + wait
        with self._changed:
            while True:
                if photo in self._broken:
                    return False, self._broken[photo]
                if self.status != "ready":
                    words = {"loading": "loading the model", "compiling": "compiling the model"}
                    state = False, words.get(self.status, self.status)
                elif photo in self._embeddings:
                    return True, "ready"
                else:
                    state = False, "encoding the photo"
                left = deadline - time.monotonic()
                if left <= 0 or self._stopped:
                    return state
                self._changed.wait(left)

    def calm(self) -> bool:
        """Whether nobody has asked anything for a moment, and nobody waits for a photo."""
        return self.status == "ready" and not self._wanted and time.monotonic() > self._busy_until

    @property
    def predictor(self) -> Any:
        """The model's Predictor, or None before it is compiled."""
        return self._predictor

    def predict(
        self,
        photo: str,
        points_xy: Sequence,
        labels: Sequence[int],
        box_xyxy: Sequence | None = None,
        mask: np.ndarray | None = None,
        previous: str | None = None,
        text: str | None = None,
    ) -> list[Candidate]:
        """Masks for one prompt: three for a lone point, box or text, else one; likeliest first.

        Args:
          photo: its name.
          points_xy, labels, box_xyxy: in pixels of the photo.
          mask: bool [H, W] that the model starts from.
          previous: token of the candidate that it starts from instead.
          text: a phrase, where the model `reads`.

        Raises:
          NotReady: the model or the embedding is not there.
          ValueError: as `Predictor.predict`, or an unknown token.
        """
        ready, state = self.ready(photo)
        with self._changed:
            embedding, predictor = self._embeddings.get(photo), self._predictor
            if not ready or embedding is None or predictor is None:
                raise NotReady(state)
            self._embeddings.move_to_end(photo)
            self._busy_until = time.monotonic() + CALM
            logits = None
            if previous is not None:
                if self._logits.get(previous, ("",))[0] != photo:
                    raise ValueError("previous: no such candidate any more; leave it out")
                logits = self._logits[previous][1]
        if mask is not None:
            logits = drawn_logits(mask, embedding, predictor)
        with self._deciding:
            points = np.reshape(points_xy, (-1, 2)) if len(points_xy) else None
            # A mask or an earlier answer does not make a lone click less ambiguous than a click.
            count = len(points_xy) + (box_xyxy is not None) + (text is not None)
            multimask = logits is None and count == 1
            arguments = (points, labels if len(labels) else None, box_xyxy, logits, text)
            found, scores, _ = predictor.decode(embedding, arguments, multimask)
            side = embedding.features.shape[1] * predictor.config.patch_size
            return self._candidates(photo, embedding, side, found[0], scores[0])

    def _candidates(self, photo: str, embedding: Any, side: int, logits, scores) -> list[Candidate]:
        from sam_jax.ops import rle
        from sam_jax.ops.cutouts import cut_out, measure, paint
        from sam_jax.ops.masks import axes

        image_hw = embedding.image_hw[0]
        both = axes(logits.shape[-2:], embedding.input_hw[0], image_hw, side)
        result = []
        for k in np.argsort(-scores, kind="stable"):
            cutout = cut_out(logits[k], -1.0, both)
            stability = float(np.nan_to_num(measure(cutout, both, 0.0, 1.0).stability))
            if cutout is None:
                mask = {"size": list(image_hw), "counts": [image_hw[0] * image_hw[1]]}
            else:
                corner = cutout.at[0].start, cutout.at[1].start
                mask = rle.uncompressed_part(paint(cutout, both, 0.0), corner, image_hw)
            token = secrets.token_hex(8)
            result.append(Candidate(mask, float(scores[k]), stability, token))
            with self._changed:
                self._logits[token] = photo, np.array(logits[k])
                while len(self._logits) > 12 * IN_MEMORY:
                    self._logits.popitem(last=False)
        return result

    def _work(self) -> None:
        self._reload = True
        while True:
            with self._changed:
                while not self._stopped and not self._reload and not (photo := self._next()):
                    self._changed.wait(CALM / 2)
                if self._stopped:
                    return
                again, self._reload = self._reload, False
            if again:
                self._load()
            elif self._predictor is not None:
                self._encode(photo)

    def _next(self) -> str | None:
        """The photo to encode now; None while prompts come in and nobody waits for one."""
        if self._predictor is None:
            return None
        while self._wanted:
            photo = self._wanted.popleft()
            if photo not in self._embeddings and photo not in self._broken:
                return photo
        if time.monotonic() < self._busy_until:
            return None
        while self._waiting:
            photo = self._waiting.popleft()
            if photo not in self._embeddings:
                return photo
        return None

    def _load(self) -> None:
        from sam_jax.inference.generate import fingerprint
        from sam_jax.inference.predictor import Predictor

        try:
            sam = self._open_model()
            predictor = Predictor(sam)
            self._say("compiling")
            predictor.warm_up()
            predictor.warm_up(points=9)
            predictor.warm_up(masks=True)
            reads = predictor.reads and self._warm_up_text(predictor)
        except Exception as error:  # whatever it is, the page says it and the brush still works
            self.problem = f"the model can't be loaded: {error}"
            self._say("ready" if self._predictor else self.problem)
            return
        self.problem = ""
        with self._changed:
            self._predictor, self.hash = predictor, fingerprint(sam.params)
            self.reads = reads
            self._wanted.extendleft(reversed(self._embeddings))
            self._embeddings.clear()
            self._logits.clear()
            self._broken.clear()  # perhaps they can be read by now
        self._say("ready")

    def _warm_up_text(self, predictor: Any) -> bool:
        """Whether phrases can be read; where not, clicks can do without them."""
        try:
            predictor.warm_up(text=True)
            predictor.warm_up(masks=True, text=True)
        except ValueError as error:
            print(f"the page is without words: {error}")
            return False
        return True

    def _say(self, status: str) -> None:
        with self._changed:
            self.status = status
            self._changed.notify_all()

    def _encode(self, photo: str) -> None:
        try:
            path = photo_path(self.photos, photo)
            if path is None:
                raise ImageError("no such picture")
            embedding = self._embedding(path)
        except Exception as error:  # one photo must not stop the others
            with self._changed:
                self._broken[photo] = f"the photo can't be read: {error}"
                self._changed.notify_all()
            return
        with self._changed:
            self._embeddings[photo] = embedding
            while len(self._embeddings) > IN_MEMORY:
                self._embeddings.popitem(last=False)
            self._changed.notify_all()

    def _embedding(self, path: Path) -> Any:
        """From the disk, or from the encoder and then to the disk."""
        from sam_jax.inference.predictor import Embedding

        if self.cache is None:
            return self._predictor.embed(read_image(path))
        digest = hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
        file = self.cache / f"{self.hash}_{self._predictor.image_size}" / f"{digest}.npz"
        try:
            with np.load(file, allow_pickle=False) as kept:
                sizes = [tuple(int(v) for v in kept[key]) for key in ("image_hw", "input_hw")]
                features = np.array(kept["features"])
            import jax

            return Embedding(jax.device_put(features), *((size,) for size in sizes))
        except FileNotFoundError:
            pass
        except Exception as error:  # numpy and zipfile raise whatever damaged bytes lead to
            print(f"{file.name} is damaged and made again: {error!r}")
        embedding = self._predictor.embed(read_image(path))
        self._keep(file, embedding)
        return embedding

    def _keep(self, file: Path, embedding: Any) -> None:
        from sam_jax.inference.files import write_atomically

        arrays = {
            "features": np.asarray(embedding.features),
            "image_hw": np.array(embedding.image_hw[0]),
            "input_hw": np.array(embedding.input_hw[0]),
        }
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, lambda out: np.savez(out, **arrays))
        except OSError as error:  # a full disk costs time, not work
            print(f"embeddings are not kept: {error}")
            self.cache = None


def drawn_logits(mask: np.ndarray, embedding: Any, predictor: Any) -> np.ndarray:
    """A mask bool [H, W] as the decoder takes it: float32 [4h, 4w], +-8 where it is clear."""
    from PIL import Image

    h, w = embedding.features.shape[1:3]
    side = h * predictor.config.patch_size
    rows, columns = (max(1, round(n * 4 * h / side)) for n in embedding.input_hw[0])
    small = Image.fromarray(np.where(mask, np.uint8(255), np.uint8(0)))
    small = small.resize((columns, rows), Image.Resampling.BOX)
    logits = np.full((4 * h, 4 * w), -8.0, np.float32)
    logits[:rows, :columns] = np.asarray(small, np.float32) * (16 / 255) - 8
    return logits
