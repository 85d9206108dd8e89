"""Sizes of the released models, to the parameter (PROTOCOLS section 2)."""

import jax
import pytest

from sam_jax.checkpoint.load import ASSETS
from sam_jax.models.config import CONFIGS
from sam_jax.models.sam import init

ENCODERS = {
    "mobile_sam": 5_738_964,
    "vit_b": 89_670_912,
    "vit_l": 308_278_272,
    "vit_h": 637_026_048,
}


def count(tree) -> int:
    return sum(x.size for x in jax.tree.leaves(tree))


@pytest.mark.parametrize("name", ENCODERS)
def test_parameter_counts_are_the_released_ones(name):
    shapes = jax.eval_shape(lambda key: init(CONFIGS[name], key), jax.random.key(0))
    params = shapes["params"]
    assert count(params["image_encoder"]) == ENCODERS[name]
    assert count(params["prompt_encoder"]) == 6_220
    assert count(params["mask_decoder"]) == 4_058_340
    assert [x.shape for x in jax.tree.leaves(shapes["buffers"])] == [(2, 128)]


def test_what_comes_with_the_package_fits_in_16_megabytes():
    assert (ASSETS / "tiny.safetensors").stat().st_size < 16e6
