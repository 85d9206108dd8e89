"""Data in SA-1B's form, and predictors whose answers are known."""

from __future__ import annotations

import json
import types
from pathlib import Path

import numpy as np
from PIL import Image

from sam_jax.ops.rle import encode

HW = (60, 90)


def rectangle(x0, y0, x1, y1, hw=HW):
    mask = np.zeros(hw, bool)
    mask[y0:y1, x0:x1] = True
    return mask


TRUE = np.stack([rectangle(10, 10, 40, 40), rectangle(50, 20, 80, 50)])


def write_sa1b(folder: Path, names=("a", "b"), masks=TRUE, broken=()) -> Path:
    """A picture of each name (which its brightness tells) with the masks; some unreadable."""
    folder.mkdir(parents=True, exist_ok=True)
    for k, name in enumerate([*names, *broken]):
        image = np.full((*masks.shape[1:], 3), 20 + 10 * k, np.uint8)
        image[masks.any(0)] = 220
        Image.fromarray(image).save(folder / f"{name}.png")
        document = {
            "image": {
                "file_name": f"{name}.png",
                "height": image.shape[0],
                "width": image.shape[1],
            },
            "annotations": [{"id": i, "segmentation": encode(m)} for i, m in enumerate(masks)],
        }
        (folder / f"{name}.json").write_text(json.dumps(document))
    for name in broken:
        (folder / f"{name}.png").write_bytes(b"no picture")
    return folder


def small_models(monkeypatch):
    """`--model NAME[@bfloat16]` opens a small model with random weights."""
    from sam_jax.evaluation import models
    from sam_jax.inference.predictor import Predictor
    from tests.small import CONFIG, small_sam

    def open_model(name):
        dtype = "bfloat16" if name.endswith("@bfloat16") else "float32"
        return Predictor(small_sam(CONFIG.replace(dtype=dtype))), {"model": name}

    monkeypatch.setattr(models, "open_model", open_model)


class Knows:
    """Answers with the true mask that a click or a box is about, moved to the right.

    Of three masks the second is that, and has the highest score; the first is never better.

    Args:
      masks: bool [M, H, W] of every image.
      moved: pixels.
    """

    def __init__(self, masks=TRUE, moved: int = 0):
        self.masks, self.moved, self.embedded = masks, moved, 0

    def embed(self, image):
        self.embedded += 1
        return None

    def predict(
        self,
        embedding,
        points_xy=None,
        labels=None,
        boxes_xyxy=None,
        mask_logits=None,
        multimask=True,
    ):
        prompts = boxes_xyxy if points_xy is None else points_xy
        single = np.ndim(prompts) == (1 if points_xy is None else 2)
        prompts = [prompts] if single else prompts
        found = []
        for prompt in prompts:
            if points_xy is not None:
                x, y = np.asarray(prompt)[0].astype(int)
            else:
                x, y = np.asarray(prompt)[:2].astype(int)
            found.append(next(mask for mask in self.masks if mask[y, x]))
        right = np.zeros_like(np.array(found))
        right[..., self.moved :] = np.array(found)[..., : right.shape[-1] - self.moved]
        if multimask:
            masks = np.stack([~right, right, np.zeros_like(right)], 1)
            scores = np.tile(np.float32([0.5, 0.9, 0.1]), (len(right), 1))
        else:
            masks, scores = right[:, None], np.ones((len(right), 1), np.float32)
        logits = masks * np.float32(20) - 10
        if single:
            masks, scores, logits = masks[0], scores[0], logits[0]
        return types.SimpleNamespace(masks=masks, scores=scores, logits=logits)


class Cut(Knows):
    """The true mask without columns on its right, fewer with each click; the third is all true."""

    def predict(self, embedding, points_xy=None, labels=None, **more):
        clicks = 1 if points_xy is None else np.shape(points_xy)[-2]
        out = super().predict(embedding, points_xy, labels, **more)
        whole = out.masks[..., 1 if out.masks.shape[-3] == 3 else 0, :, :].copy()
        cut = whole.copy()
        for mask in cut.reshape(-1, *cut.shape[-2:]):
            right = np.flatnonzero(mask.any(0))[-1]
            mask[:, right - (15 - 5 * clicks) + 1 : right + 1] = False
        if out.masks.shape[-3] == 3:
            out.masks[..., 1, :, :], out.masks[..., 2, :, :] = cut, whole
        else:
            out.masks[..., 0, :, :] = cut
        return out
