"""One photo, many prompts: `embed` once, `predict` often."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Literal

import jax
import numpy as np

from sam_jax.data.images import read_image
from sam_jax.inference.compiled import POINT_SLOTS, CompiledModel, bucket, use_compilation_cache
from sam_jax.inference.prompts import NO_TEXT_HEAD, Prompt, gather, to_slots
from sam_jax.inference.text import TextTower
from sam_jax.models.config import SamConfig
from sam_jax.ops.masks import upscale_masks
from sam_jax.ops.transforms import pad_to_frame, resize_image, resized_hw


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["features"],
    meta_fields=["image_hw", "input_hw", "is_batch"],
)
@dataclasses.dataclass(frozen=True)
class Embedding:
    """What the image encoder made of one photo or of a batch of B; a pytree.

    Attributes:
      features: float32 [B, h, w, D].
      image_hw: height and width of each photo in pixels.
      input_hw: height and width of each resized photo in the model's frame, in frame pixels.
      is_batch: whether it was made from a list, so that predictions come as a list.
    """

    features: jax.Array
    image_hw: tuple[tuple[int, int], ...]
    input_hw: tuple[tuple[int, int], ...]
    is_batch: bool = False

    def __len__(self) -> int:
        return len(self.image_hw)

    def __getitem__(self, index: int) -> Embedding:
        """The embedding of one photo of a batch."""
        index = range(len(self))[index]
        features = self.features if len(self) == 1 else self.features[index : index + 1]
        return Embedding(features, (self.image_hw[index],), (self.input_hw[index],))


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The masks of one prompt, or of N prompts with one more axis in front.

    Attributes:
      masks: bool [K, H, W] at the photo's size, or [N, K, H, W].
      scores: float32 [K], or [N, K]: the IoU that the model predicts of each mask (it may exceed
        1).
      logits: float32 [K, 4h, 4w], or [N, K, 4h, 4w]: before enlarging; one of them may be the
        `mask_logits` of the next prompt.
    """

    masks: np.ndarray
    scores: np.ndarray
    logits: np.ndarray


class Predictor:
    """Masks for prompts on a photo.

    Args:
      sam: what `sam_jax.load` gives: anything with `config` and `params`.
      image_size: side in pixels of the square frame that photos are scaled to, a multiple of the
        model's patch size; None is the size it was trained for.
      cache: whether to keep compiled programs on disk for the next process; a cache that the user
        has set up in JAX is never replaced.

    Raises:
      ValueError: `image_size` is no positive multiple of the patch size.
    """

    def __init__(self, sam: Any, *, image_size: int | None = None, cache: bool = True) -> None:
        self.image_size = checked_size(sam.config, image_size)
        if cache:
            use_compilation_cache()
        self.config = sam.config
        self.compiled = CompiledModel(sam.config, sam.params, self.image_size)
        self._text, self._cache = getattr(sam, "text", None), cache
        self._phrases: dict[str, np.ndarray] = {}

    @property
    def reads(self) -> bool:
        """Whether prompts may be phrases."""
        return self._text is not None

    @functools.cached_property
    def text_tower(self) -> TextTower:
        """What makes embeddings of phrases.

        Raises:
          ValueError: the model has none, or the package `tokenizers` is missing.
        """
        if not self.config.text_width:
            raise ValueError(NO_TEXT_HEAD)
        if self._text is None:
            raise ValueError(
                "text: this model's file came without the text tower that reads phrases; pass "
                f"embeddings [{self.config.text_width}] of the CLIP that it was trained beside, or "
                "load that one: dataclasses.replace(sam, text=load_clip(PATH))"
            )
        return TextTower(self._text, cache=self._cache)

    def warm_up(
        self, *, prompts: int = 1, points: int = 1, masks: bool = False, text: bool = False
    ) -> None:
        """Compiles now what `embed` and `predict` need, so that the first click is as fast as any.

        Args:
          prompts: so many at once, or fewer down to the next smaller number of slots.
          points: so many points a prompt, and fewer; what up to 7 need is always compiled.
          masks: whether the prompts have masks, or boxes that the model draws as such
            (`SamConfig.draw_boxes`).
          text: whether the prompts have a text.
        """
        embedding = self.embed(np.zeros((self.image_size, self.image_size, 3), np.uint8))
        h, w = embedding.features.shape[1:3]
        logits = np.zeros((prompts, 4 * h, 4 * w)) if masks else None
        words = np.zeros((prompts, self.config.text_width)) if text else None
        if text and self.reads:
            self.text_tower.warm_up()
        most = bucket(max(points + 1, 8), POINT_SLOTS)
        for slots in [size for size in POINT_SLOTS if size < most] + [most]:
            points_xy = np.zeros((prompts, slots - 1, 2))
            self.predict(embedding, points_xy, mask_logits=logits, text=words)

    def embed(self, image: Any) -> Embedding:
        """Encodes a photo, or a list of photos of any sizes.

        Args:
          image: uint8 [H, W, 3], a path or a PIL image, or a list of such.

        Returns:
          An Embedding; of a list, one with `is_batch`.

        Raises:
          ValueError: an image cannot be read, or the list is empty.
        """
        is_batch = isinstance(image, list | tuple)
        sources = list(image) if is_batch else [image]
        if not sources:
            raise ValueError("image: expected at least one photo, got an empty list")
        features, sizes = [], []
        for chunk in _chunks(sources):
            photos = [read_image(source) for source in chunk]
            sizes += [photo.shape[:2] for photo in photos]
            features.append(self.compiled.encode(*frames(photos, self.image_size)))
        joined = features[0] if len(features) == 1 else jax.numpy.concatenate(features)
        input_sizes = tuple(resized_hw(hw, self.image_size) for hw in sizes)
        return Embedding(joined, tuple(sizes), input_sizes, is_batch)

    def predict(
        self,
        embedding: Embedding,
        points_xy: Any = None,
        labels: Any = None,
        boxes_xyxy: Any = None,
        mask_logits: Any = None,
        text: Any = None,
        multimask: bool | Literal["auto"] = "auto",
    ) -> Prediction | list[Prediction]:
        """Masks for one prompt, or for several at once.

        Everything given belongs to the same prompt: points and a box are one prompt with both.
        For several prompts each argument has one more axis, or is a list with one entry a prompt
        (prompts may have different numbers of points, and None for a box). For an embedding of a
        list of photos each argument is a list with one entry a photo.

        Args:
          embedding: what `embed` gave.
          points_xy: [P, 2] in pixels of the photo; for several prompts [N, P, 2].
          labels: [P] or [N, P], 1 foreground, 0 background; None: all foreground.
          boxes_xyxy: [4] as x0, y0, x1, y1 in pixels of the photo, or [N, 4]. A box may reach
            beyond the photo.
          mask_logits: [4h, 4w] or [1, 4h, 4w], logits of an earlier prediction, or [N, 4h, 4w].
          text: a phrase, or a list of N phrases, for models that came with a text tower; or their
            embeddings [T] or [N, T] of length 1, for models with a text head.
          multimask: True: the three masks whole, part and subpart. False: the one mask for prompts
            that leave no doubt. "auto": three for a prompt of a single point, box, mask or text,
            one for a prompt of more (the rule of the paper and of the released ONNX export).
            Where "auto" meets prompts of both kinds in one call, each gets one mask, a single
            point or box the best of its three.

        Returns:
          A Prediction with masks [K, H, W], for several prompts [N, K, H, W], K = 3 or 1; for a
          batch a list of them.

        Raises:
          ValueError: no prompt, a wrong shape, NaN or infinity, a point outside the photo, a box
            with no area, labels that do not match, text for a model that takes none, or a phrase
            that is empty, too long or has an unknown word.
        """
        if not isinstance(multimask, str) and np.ndim(multimask) == 0 and multimask in (0, 1):
            multimask = bool(multimask)  # numpy's too
        elif not isinstance(multimask, str) or multimask != "auto":
            raise ValueError(f"multimask: expected True, False or 'auto', got {multimask!r}")
        arguments = (points_xy, labels, boxes_xyxy, mask_logits, text)
        if not embedding.is_batch:
            return self._predict_one(embedding, arguments, multimask)
        names = ("points_xy", "labels", "boxes_xyxy", "mask_logits", "text")
        for name, value in zip(names, arguments, strict=True):
            if isinstance(value, str):
                raise ValueError(
                    f"{name}: expected a list with one entry for each of {len(embedding)} photos, "
                    f"got the phrase {value!r}"
                )
            if value is not None and len(value) != len(embedding):
                raise ValueError(
                    f"{name}: expected a list with one entry for each of {len(embedding)} photos, "
                    f"got {len(value)}"
                )
        predictions = []
        for i in range(len(embedding)):
            own = [None if value is None else value[i] for value in arguments]
            predictions.append(self._predict_one(embedding[i], own, multimask))
        return predictions

    def _predict_one(self, embedding: Embedding, arguments, multimask) -> Prediction:
        logits, scores, several = self.decode(embedding, arguments, multimask)
        side = embedding.features.shape[1] * self.config.patch_size
        masks = upscale_masks(logits, embedding.input_hw[0], embedding.image_hw[0], side)
        if not several:
            masks, scores, logits = masks[0], scores[0], logits[0]
        return Prediction(masks, scores, logits)

    def decode(
        self, embedding: Embedding, arguments: Sequence, multimask: bool | Literal["auto"] = "auto"
    ) -> tuple[np.ndarray, np.ndarray, bool]:
        """`predict` on one photo without enlarging masks.

        Args:
          embedding: of one photo.
          arguments: points_xy, labels, boxes_xyxy, mask_logits and text of `predict`.
          multimask: as for `predict`.

        Returns:
          float32 logits [N, K, 4h, 4w] and scores [N, K], and whether several prompts were given.

        Raises:
          ValueError: as `predict`.
        """
        h, w = embedding.features.shape[1:3]
        image_hw = embedding.image_hw[0]
        *others, text = arguments
        prompts, several = gather(
            *others,
            self._embedded(text),
            image_hw=image_hw,
            mask_hw=(4 * h, 4 * w),
            text_width=self.config.text_width,
        )
        slots = to_slots(prompts, image_hw, h * self.config.patch_size)
        logits, scores = self.compiled.decode(embedding.features, slots)
        return *choose_masks(logits, scores, prompts, multimask), several

    def _embedded(self, text: Any) -> Any:
        """`text` of `predict` with embeddings in the place of phrases; those are kept."""
        if isinstance(text, np.ndarray) and text.dtype.kind == "U":
            text = text.tolist()
        if isinstance(text, str):
            return self._embedded([text])[0]
        if not isinstance(text, list | tuple):
            return text
        new = list(dict.fromkeys(t for t in text if isinstance(t, str) and t not in self._phrases))
        if new:
            self._phrases |= zip(new, self.text_tower.embed(new, called="text"), strict=True)
        return [self._phrases[t] if isinstance(t, str) else t for t in text]


def checked_size(config: SamConfig, image_size: int | None) -> int:
    """The frame's side in pixels; None: the one that the model was trained for.

    Raises:
      ValueError: no positive multiple of the patch size.
    """
    size = config.image_size if image_size is None else image_size
    if size < config.patch_size or size % config.patch_size:
        raise ValueError(
            f"image_size: expected a positive multiple of the patch size {config.patch_size}, "
            f"got {image_size}"
        )
    return int(size)


def frames(photos: Sequence[np.ndarray], image_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Photos uint8 [H, W, 3] as the encoder takes them.

    Returns:
      uint8 [B, image_size, image_size, 3], padded at the right and the bottom, and int32 [B, 2],
      the height and width in it of each photo.
    """
    resized = [resize_image(photo, image_size) for photo in photos]
    padded = np.stack([pad_to_frame(photo, image_size) for photo in resized])
    return padded, np.array([photo.shape[:2] for photo in resized], np.int32)


def choose_masks(
    logits: np.ndarray, scores: np.ndarray, prompts: Sequence[Prompt], multimask
) -> tuple[np.ndarray, np.ndarray]:
    """Of all masks [N, 4, ...] and scores [N, 4] those that `multimask` asks for: [N, K, ...]."""
    lone = np.array([prompt.is_lone for prompt in prompts])
    if multimask is True or (multimask == "auto" and lone.all()):
        return logits[:, 1:], scores[:, 1:]
    if multimask is False or not lone.any():
        return logits[:, :1], scores[:, :1]
    chosen = np.where(lone, 1 + scores[:, 1:].argmax(1), 0)[:, None]
    rows = np.arange(len(chosen))[:, None]
    return logits[rows, chosen], scores[rows, chosen]


def _chunks(sources: list) -> list[list]:
    """Photos that are encoded together: powers of two up to 8, but one by one on a CPU."""
    limit = 1 if jax.default_backend() == "cpu" else 8
    chunks, start = [], 0
    while start < len(sources):
        size = min(limit, 1 << ((len(sources) - start).bit_length() - 1))
        chunks.append(sources[start : start + size])
        start += size
    return chunks
