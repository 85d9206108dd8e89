"""What a user may pass as prompts -> checked prompts -> the model's slots, on the host.

Every argument comes in two forms: for one prompt, and with one more axis (or as a list, one entry
a prompt, None where a prompt has none) for several.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from sam_jax.models.prompt_encoder import BOTTOM_RIGHT, EMPTY, NOT_A_POINT, TOP_LEFT, Prompts
from sam_jax.ops.transforms import scale_boxes, scale_points

NO_TEXT_HEAD = "text: this model has no text head (text_width is 0); use points or boxes"


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One prompt in pixels of the photo.

    Attributes:
      points_xy: float64 [P, 2], P may be 0.
      labels: int32 [P], 1 foreground, 0 background.
      box_xyxy: float64 [4] or None.
      mask: float32 logits [4h, 4w] or None.
      text: float32 [T] or None.
    """

    points_xy: np.ndarray
    labels: np.ndarray
    box_xyxy: np.ndarray | None = None
    mask: np.ndarray | None = None
    text: np.ndarray | None = None

    @property
    def is_lone(self) -> bool:
        """Whether it is one point, one box, one mask or one text, so that it may be ambiguous."""
        others = (self.box_xyxy, self.mask, self.text)
        return len(self.points_xy) + sum(x is not None for x in others) == 1


def gather(
    points_xy, labels, boxes_xyxy, mask_logits, text, *, image_hw, mask_hw, text_width
) -> tuple[list[Prompt], bool]:
    """Checks a user's arguments and sorts them by prompt.

    Args:
      points_xy, labels, boxes_xyxy, mask_logits, text: as for `Predictor.predict`.
      image_hw: the photo's height and width in pixels.
      mask_hw: the height and width of the model's low-resolution logits.
      text_width: of the model's text embeddings; 0 where it takes none.

    Returns:
      The prompts, and whether they came in the form for several.

    Raises:
      ValueError: whatever is wrong, in one sentence that names the argument.
    """
    if text is not None and not text_width:
        raise ValueError(NO_TEXT_HEAD)
    if points_xy is not None and _is_empty(points_xy):
        points_xy, labels = None, None if labels is None or _is_empty(labels) else labels
    if labels is not None and points_xy is None:
        raise ValueError("labels: given without points_xy; pass the points that they belong to")
    given = {
        "points_xy": (points_xy, 2),
        "boxes_xyxy": (boxes_xyxy, 1),
        "mask_logits": (mask_logits, 2),
        "text": (text, 1),
    }
    columns, labels, count = _by_prompt(given, labels)
    prompts = []
    for i in range(count or 1):
        points, box, mask, words = (
            None if column is None else column[i] for column in columns.values()
        )
        prompts.append(
            _prompt(
                points,
                None if labels is None else labels[i],
                box,
                mask,
                words,
                name=f" of prompt {i}" if count else "",
                image_hw=image_hw,
                mask_hw=mask_hw,
                text_width=text_width,
            )
        )
    return prompts, count is not None


def _by_prompt(given: dict[str, tuple[Any, int]], labels):
    """Each argument as a list with one entry a prompt, and their number (None: the one form)."""
    depths = {name: _depth(x) for name, (x, _) in given.items() if x is not None}
    if not depths:
        raise ValueError("no prompt: expected points_xy, boxes_xyxy, mask_logits or text")
    counts = {}
    for name, depth in depths.items():
        value, plain = given[name]
        extra = depth - plain
        if name == "mask_logits" and extra == 1 and len(value) == 1 and not isinstance(value, list):
            continue  # [1, 4h, 4w] is one mask, as the released code wants it, or several
        if extra == 1 or (name == "mask_logits" and extra == 2):
            counts[name] = len(value)
        elif extra != 0:
            raise ValueError(
                f"{name}: expected {plain} axes for one prompt or {plain + 1} for several, "
                f"got {depth}"
            )
        else:
            counts[name] = None
    if len(set(counts.values())) > 1:
        listing = ", ".join(f"{name} {'one' if n is None else n}" for name, n in counts.items())
        raise ValueError(
            f"prompts: every argument must be for the same number of prompts, got {listing}; "
            "points of several prompts are [N, P, 2] and their boxes [N, 4]"
        )
    count = next(iter(counts.values()), None)
    columns = {}
    for name, (value, plain) in given.items():
        if value is None:
            columns[name] = None
        elif count is None:
            columns[name] = [value[0] if depths[name] > plain else value]
        else:
            columns[name] = list(value)
    if labels is not None:
        labels = [labels] if count is None else list(labels)
        if count is not None and len(labels) != count:
            raise ValueError(
                f"labels: expected one list for each of {count} prompts, got {len(labels)}"
            )
    for name, column in columns.items():
        if column is not None and len(column) != (count or 1):
            raise ValueError(f"{name}: expected {count} prompts, got {len(column)}")
    return columns, labels, count


def _prompt(points, labels, box, mask, text, *, name, image_hw, mask_hw, text_width) -> Prompt:
    points, labels = checked_points(points, labels, image_hw, f"points_xy{name}", f"labels{name}")
    if box is not None:
        box = checked_box(box, image_hw, f"boxes_xyxy{name}")
    if mask is not None:
        mask = _numbers(mask, f"mask_logits{name}").astype(np.float32)
        if mask.ndim == 3 and len(mask) == 1:
            mask = mask[0]
        if mask.shape != tuple(mask_hw):
            raise ValueError(
                f"mask_logits{name}: expected the low-resolution logits of an earlier prediction, "
                f"{list(mask_hw)}, got shape {list(mask.shape)}"
            )
    if text is not None:
        text = _numbers(text, f"text{name}").astype(np.float32)
        if text.shape != (text_width,):
            raise ValueError(
                f"text{name}: expected an embedding [{text_width}], got {list(text.shape)}"
            )
    if not len(points) and box is None and mask is None and text is None:
        raise ValueError(f"no prompt{name}: expected a point, a box, a mask or a text")
    return Prompt(points, labels, box, mask, text)


def checked_points(
    points_xy, labels, image_hw: tuple[int, int], name: str = "points_xy", labels_name="labels"
) -> tuple[np.ndarray, np.ndarray]:
    """The points of one prompt as float64 [P, 2] and int32 [P].

    Args:
      points_xy: [P, 2] in pixels of the photo, or None.
      labels: [P] of 1 and 0, or None: all 1.
      image_hw: the photo's height and width in pixels.
      name, labels_name: what the error messages call them.

    Raises:
      ValueError: a wrong shape, NaN or infinity, a point outside the photo, another label, another
        number of labels than of points.
    """
    if points_xy is None or len(points_xy) == 0:
        points_xy = np.zeros((0, 2))
    points = _numbers(points_xy, name)
    if points.ndim != 2 or points.shape[1] != 2:
        raise ValueError(f"{name}: expected [P, 2], got shape {list(points.shape)}")
    height, width = image_hw
    for x, y in points:
        if not (0 <= x < width and 0 <= y < height):
            raise ValueError(
                f"{name}: the point ({x:g}, {y:g}) is outside the photo, which is "
                f"{width} x {height} pixels"
            )
    if labels is None:
        return points, np.ones(len(points), np.int32)
    labels = _numbers(labels, labels_name)
    if labels.shape != points.shape[:1]:
        raise ValueError(
            f"{labels_name}: expected one for each point, {len(points)} in all, got "
            f"{len(labels) if labels.ndim == 1 else f'shape {list(labels.shape)}'}"
        )
    if not np.isin(labels, (0, 1)).all():
        raise ValueError(
            f"{labels_name}: expected 1 (foreground) or 0 (background), got {labels.tolist()}"
        )
    return points, labels.astype(np.int32)


def checked_box(box_xyxy, image_hw: tuple[int, int], name: str = "boxes_xyxy") -> np.ndarray:
    """One box as float64 [4]; it may reach beyond the photo but not lie outside.

    Args:
      box_xyxy: x0, y0, x1, y1 in pixels of the photo.
      image_hw: the photo's height and width in pixels.
      name: what the error messages call it.

    Raises:
      ValueError: a wrong shape, NaN or infinity, no area, or wholly outside the photo.
    """
    box = _numbers(box_xyxy, name)
    if box.size == 4:
        box = box.reshape(4)
    if box.shape != (4,):
        raise ValueError(f"{name}: expected x0, y0, x1, y1, got shape {list(box.shape)}")
    x0, y0, x1, y1 = box
    text = f"({x0:g}, {y0:g}, {x1:g}, {y1:g})"
    if x1 <= x0 or y1 <= y0:
        raise ValueError(
            f"{name}: the box {text} has no area; x1 must be above x0, and y1 above y0"
        )
    height, width = image_hw
    if x1 <= 0 or y1 <= 0 or x0 >= width or y0 >= height:
        raise ValueError(
            f"{name}: the box {text} is outside the photo, which is {width} x {height} pixels"
        )
    return box


def _numbers(value, name: str) -> np.ndarray:
    try:
        array = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{name}: expected numbers, got {_brief(value)}") from None
    if not np.isfinite(array).all():
        raise ValueError(f"{name}: expected finite numbers, got NaN or infinity")
    return array


def _depth(value) -> int:
    """Axes of an array, or how deep lists are nested."""
    if hasattr(value, "ndim"):
        return value.ndim
    if isinstance(value, list | tuple):
        return 1 + max((_depth(x) for x in value if x is not None), default=0)
    return 0


def _is_empty(value) -> bool:
    return hasattr(value, "__len__") and len(value) == 0


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def to_slots(prompts: list[Prompt], image_hw: tuple[int, int], side: int) -> Prompts:
    """Prompts as the model's arrays, B = 1: coordinates in pixels of the frame of that side.

    A prompt's points come first, then either its box's corners or, where there are points and
    neither box nor text, the one "not a point" token of the released code. Clicks that follow a
    text have none in training either (`sam_jax.training.step.first_prompts`).
    """
    tokens = [_tokens(prompt, image_hw, side) for prompt in prompts]
    count, slots = len(prompts), max(len(labels) for _, labels in tokens)
    points = np.zeros((1, count, slots, 2), np.float32)
    labels = np.full((1, count, slots), EMPTY, np.int32)
    for i, (xy, label) in enumerate(tokens):
        points[0, i, : len(xy)], labels[0, i, : len(label)] = xy, label
    masks, has_mask = _stack([prompt.mask for prompt in prompts])
    text, has_text = _stack([prompt.text for prompt in prompts])
    return Prompts(points, labels, masks, has_mask, text, has_text)


def _tokens(prompt: Prompt, image_hw, side) -> tuple[np.ndarray, np.ndarray]:
    points, labels = scale_points(prompt.points_xy, image_hw, side), prompt.labels
    if prompt.box_xyxy is not None:
        corners = scale_boxes(prompt.box_xyxy, image_hw, side).reshape(2, 2)
        return np.concatenate([points, corners]), np.append(labels, (TOP_LEFT, BOTTOM_RIGHT))
    if len(points) and prompt.text is None:
        return np.concatenate([points, np.zeros((1, 2))]), np.append(labels, NOT_A_POINT)
    return points, labels


def _stack(values: list[np.ndarray | None]) -> tuple[np.ndarray | None, np.ndarray | None]:
    """[1, N, ...] with zeros for None, and which are not None [1, N]; None, None if all are."""
    first = next((value for value in values if value is not None), None)
    if first is None:
        return None, None
    filled = [np.zeros_like(first) if value is None else value for value in values]
    return np.stack(filled)[None], np.array([[value is not None for value in values]])
