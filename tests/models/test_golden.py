"""The model against values that the released code computed (tests/golden/make.py)."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from sam_jax.models.sam import SamModel
from tests.golden.make import FOLDER, SMALL
from tests.models.stages import KINDS, difference, image, to_prompts, user_prompt
from tests.weights import lively_variables

pytestmark = pytest.mark.optimised


@pytest.fixture(scope="module")
def golden():
    return np.load(FOLDER / "small.npz")


@pytest.fixture(scope="module")
def variables():
    return lively_variables(SMALL, seed=3)


def test_embedding(golden, variables):
    ours = jax.jit(lambda v, x: SamModel(SMALL).apply(v, x, method="encode"))(
        variables, image(SMALL)
    )
    assert difference(ours, golden["embedding"]) < 1e-5


@pytest.mark.parametrize("empty", [0, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_masks_and_scores(golden, variables, kind, empty):
    decode = jax.jit(lambda v, z, p: SamModel(SMALL).apply(v, z, p, method="decode"))
    prompts = to_prompts(user_prompt(SMALL, kind), empty)
    logits, iou = decode(variables, golden["embedding"], prompts)
    assert difference(logits[:, 0], golden[f"logits {kind}"]) < 1e-5
    assert difference(iou[:, 0], golden[f"iou {kind}"]) < 1e-5
