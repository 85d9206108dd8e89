"""Lower precision beside float32: masks of real photographs, and the kernels' embeddings."""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np
import pytest

import sam_jax
from sam_jax.data.open_source import open_source
from sam_jax.inference.predictor import Predictor
from sam_jax.models import attention
from sam_jax.models.config import VIT_TI
from sam_jax.models.sam import SamModel
from sam_jax.ops.rle import decode
from tests.benchmarks.options import photo_of
from tests.conftest import SHARED
from tests.weights import lively_variables, unrounded

pytestmark = pytest.mark.optimised

PRECISIONS = {
    "bfloat16": {"dtype": "bfloat16"},
    "int8": {"encoder_weights": "int8"},
    "bfloat16 and int8": {"dtype": "bfloat16", "encoder_weights": "int8"},
}
KERNELS = {
    "kernels for GPUs": (attention._windows_gpu, attention._kernel_gpu),
    "kernel for TPUs": (attention._kernel_tpu, attention._kernel_tpu),
}
"""Of windows and whole maps; run as plain JAX."""


def boxes_of(record: dict, count: int = 12) -> list[list[int]]:
    found = []
    for rle in record["rles"][:count]:
        ys, xs = np.nonzero(decode(rle))
        found.append([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
    return found


def masks_of(sam, records) -> list[np.ndarray]:
    predictor = Predictor(sam, cache=False)
    found = []
    for record in records:
        embedding = predictor.embed(record["image"])
        found.append(np.asarray(predictor.predict(embedding, boxes_xyxy=boxes_of(record)).masks))
    return found


@pytest.fixture(scope="module")
def exact(tmp_path_factory):
    """Photographs, the bundled model's file as if it had not been rounded, and its masks."""
    records = []
    for folder in sorted((SHARED / "val").iterdir()):
        if folder.is_dir():
            source = open_source(str(folder))
            records += [source[i] for i in range(0, len(source), max(1, len(source) // 6))][:6]
    # The bundled encoder is of eight bits already.
    tiny, path = sam_jax.load("tiny"), tmp_path_factory.mktemp("exact") / "m.safetensors"
    sam_jax.save(dataclasses.replace(tiny, params=unrounded(tiny.params)), path)
    return records, path, masks_of(sam_jax.load(path), records)


@pytest.mark.shared
@pytest.mark.parametrize("name", PRECISIONS)
def test_masks_are_those_of_float32(name, exact):
    records, path, expected = exact
    ours = masks_of(sam_jax.load(path, **PRECISIONS[name]), records)
    ious = []
    for a, b in zip(ours, expected, strict=True):
        both, either = (x.sum((-2, -1)) for x in (a & b, a | b))
        ious.append((np.where(either, both, 1) / np.where(either, either, 1)).ravel())
    ious = np.concatenate(ious)
    print(f"{name}: mean IoU with float32 {ious.mean():.4f} over {len(ious)} masks")
    assert len(ious) > 100 and 0.99 <= ious.mean() < 1


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_stay_as_near_to_float32_as_plain_bfloat16(name, monkeypatch):
    """Of a whole encoder with windows and whole maps."""
    photo = np.asarray(photo_of((512, 512)), np.float32)[None] / 128 - 1

    def embedding(dtype):
        config = VIT_TI.replace(dtype=dtype)
        encode = functools.partial(SamModel(config).apply, method="encode")
        return np.asarray(jax.jit(encode)(lively_variables(VIT_TI), photo))

    exact, plain = embedding("float32"), embedding("bfloat16")
    monkeypatch.setattr(attention, "FOLD_LIMIT", 512)  # beyond it a map is a whole one
    for forms, kernel in zip((attention.WINDOWS, attention.WHOLE_MAPS), KERNELS[name], strict=True):
        monkeypatch.setitem(forms, "cpu", functools.partial(kernel, interpret=True))
    ours = embedding("bfloat16")
    far = np.abs(plain - exact).mean()
    assert 0 < far < 0.05 * np.abs(exact).mean()
    assert (ours != plain).any() and np.abs(ours - exact).mean() < 1.2 * far
