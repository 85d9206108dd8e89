"""A small model with odd sizes, shared by the tests of checkpoints."""

import numpy as np

from sam_jax.checkpoint.load import Sam
from sam_jax.checkpoint.names import flatten, own_shapes, unflatten
from sam_jax.models.config import SamConfig
from sam_jax.models.sam import SamModel

ODD = SamConfig(
    36,
    3,
    3,
    (1,),
    image_size=77,
    patch_size=7,
    window_size=4,
    encoder_mlp_ratio=2.5,
    embed_dim=24,
    mask_channels=12,
    decoder_depth=2,
    decoder_heads=4,
    decoder_mlp_width=20,
    num_multimask=2,
    iou_head_depth=4,
    iou_head_width=10,
)
"""No two sizes alike, so that a wrong transposition has a wrong shape."""


def random_variables(config: SamConfig, seed: int = 0) -> dict:
    """Variables of float32 NumPy arrays, every number different."""
    rng = np.random.default_rng(seed)
    return unflatten(
        {name: rng.standard_normal(shape, np.float32) for name, shape in own_shapes(config).items()}
    )


def random_sam(config: SamConfig = ODD, name: str = "odd") -> Sam:
    """A model of such variables."""
    return Sam(SamModel(config), random_variables(config), config, name)


def assert_same_bits(got: dict, want: dict) -> None:
    """Nested variables with the same names, shapes, kinds and bits."""
    got, want = flatten(got), flatten(want)
    assert got.keys() == want.keys()
    for name, array in want.items():
        a, b = np.asarray(got[name]), np.asarray(array)
        assert (a.shape, a.dtype) == (b.shape, b.dtype), name
        assert a.tobytes() == b.tobytes(), name
