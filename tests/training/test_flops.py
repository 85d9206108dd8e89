"""FLOPs by formula, against the products of the traced program, XLA's count and known totals."""

import dataclasses
import functools

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import pytest
from jax.interpreters.partial_eval import dce_jaxpr

from sam_jax.models.config import VIT_B, VIT_H, VIT_L, SamConfig
from sam_jax.models.prompt_encoder import Prompts
from sam_jax.models.sam import SamModel, init
from sam_jax.training.chips import chip_of
from sam_jax.training.config import PromptConfig, Stage, TrainConfig
from sam_jax.training.flops import decoder_flops, encoder_flops, step_flops
from sam_jax.training.step import batch_loss
from tests.training.test_step import SMALL

pytestmark = pytest.mark.optimised

WIDE = SamConfig(
    256, 2, 4, (1,), image_size=128, window_size=5, embed_dim=64, decoder_mlp_width=128
)


def products(jaxpr) -> int:
    """FLOPs of all matrix products and convolutions of a jaxpr, loops counted as they run."""
    total = 0
    read = {v for eqn in jaxpr.eqns for v in eqn.invars if isinstance(v, jax.extend.core.Var)}
    read |= {v for v in jaxpr.outvars if isinstance(v, jax.extend.core.Var)}
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (contract, _), _ = eqn.params["dimension_numbers"]
            inner = np.prod([eqn.invars[0].aval.shape[i] for i in contract])
            total += 2 * int(inner) * eqn.outvars[0].aval.size
        elif eqn.primitive.name == "conv_general_dilated":
            spec = eqn.params["dimension_numbers"]
            kernel = eqn.invars[1].aval
            out_features = kernel.shape[spec.rhs_spec[0]]
            total += 2 * eqn.outvars[0].aval.size * kernel.size // out_features
        else:
            times = eqn.params.get("length", 1) if eqn.primitive.name == "scan" else 1
            if eqn.primitive.name == "pallas_call":
                times = int(np.prod(eqn.params["grid_mapping"].grid))
            inner = jax.extend.core.jaxprs_in_params(eqn.params)
            if "branches" in eqn.params:
                # Of forms for several platforms the first is the TPU's. What nobody reads of it
                # is left out by XLA, here too.
                inner = [dce_jaxpr(next(iter(inner)), [v in read for v in eqn.outvars])[0]]
            total += times * sum(map(products, inner))
    return total


def shapes(config: SamConfig):
    return jax.eval_shape(functools.partial(init, config), jax.random.key(0))


def batch_shapes(config: SamConfig, stage: Stage) -> dict:
    b, n, s = stage.batch_size, stage.max_masks, stage.image_size
    m = 4 * s // config.patch_size
    shape = jax.ShapeDtypeStruct
    return {
        "image": shape((b, s, s, 3), jnp.uint8),
        "image_hw": shape((b, 2), jnp.int32),
        "masks": shape((b, n, m, m), jnp.uint8),
        "boxes_xyxy": shape((b, n, 4), jnp.float32),
        "mask_valid": shape((b, n), jnp.bool_),
    }


def encode(config: SamConfig):
    model = SamModel(config)
    return lambda variables, images: model.apply(variables, images, method="encode")


def test_the_released_encoders_take_what_is_known_of_them():
    # PERFORMANCE's "Counts and floors": B 0.75 to 1.0 TFLOP, H 5.9
    assert encoder_flops(VIT_B, 1024) == 972_077_334_528
    assert encoder_flops(VIT_L, 1024) == 2_985_680_306_176
    assert encoder_flops(VIT_H, 1024) == 5_961_082_830_848
    # and a prompt of the released decoder 3.9 GFLOP, elementwise work included
    assert 3.5e9 < decoder_flops(VIT_B, (64, 64), 7) < 3.9e9


def test_the_encoder_counts_every_product_that_is_traced():
    images = jax.ShapeDtypeStruct((3, 128, 128, 3), jnp.float32)
    traced = products(jax.make_jaxpr(encode(WIDE))(shapes(WIDE), images).jaxpr)
    # The one-hot columns of folded attention: 4 windows of 25 padded tokens, one map of 64.
    fold = 2 * 4 * (4 * 25 * 25 * 10 + 64 * 64 * 16)
    assert traced == 3 * (encoder_flops(WIDE, 128) + fold)


@pytest.mark.parametrize("masks", [False, True])
def test_the_decoder_counts_every_product_that_is_traced(masks):
    n, slots = 5, 11
    prompts = Prompts(
        jax.ShapeDtypeStruct((1, n, slots, 2), jnp.float32),
        jax.ShapeDtypeStruct((1, n, slots), jnp.int32),
        masks=jax.ShapeDtypeStruct((1, n, 24, 32), jnp.float32) if masks else None,
    )
    embedding = jax.ShapeDtypeStruct((1, 6, 8, 64), jnp.float32)
    model = SamModel(WIDE)
    decode = jax.make_jaxpr(lambda v, *args: model.apply(v, *args, method="decode"))
    traced = products(decode(shapes(WIDE), embedding, prompts).jaxpr)
    # Positions are products too: of the map's pixels once, of every point.
    positions = 2 * 2 * 32 * (6 * 8 + n * slots)
    assert traced == decoder_flops(WIDE, (6, 8), 16, n, masks) + positions


def test_xla_counts_the_encoder_alike():
    config = VIT_B.replace(encoder_depth=2, global_blocks=(1,), image_size=256)
    images = jax.ShapeDtypeStruct((1, 256, 256, 3), jnp.float32)
    compiled = jax.jit(encode(config)).lower(shapes(config), images).compile()
    counted = compiled.cost_analysis()["flops"]
    # XLA adds the elementwise work and the folded columns.
    assert 1.0 < counted / encoder_flops(config, 256) < 1.06


@pytest.mark.parametrize("side", [128, 544])  # folded global attention, and by rows
@pytest.mark.parametrize("remat", [False, True])
def test_the_step_counts_every_product_that_is_traced(remat, side):
    stage = Stage(1, side, 2, 3, corrective_clicks=1, mask_only_rounds=1)
    config = TrainConfig(
        model=WIDE.replace(remat=remat, image_size=side, scan_blocks=remat, draw_boxes=remat),
        stages=(stage,),
        prompts=PromptConfig(remat=remat, unroll=not remat),
    )
    model, hardware = step_flops(config, stage)
    variables = shapes(config.model)
    gradient = jax.grad(lambda *args: batch_loss(*args, SamModel(config.model), config, stage)[0])
    key = jax.eval_shape(lambda: jax.random.key(0))
    batch = batch_shapes(config.model, stage)
    traced = products(
        jax.make_jaxpr(gradient)(variables["params"], variables["buffers"], batch, key).jaxpr
    )
    assert 0.99 < traced / hardware < 1.01
    assert hardware / model > (1.2 if remat else 1.0)


def test_a_step_is_proportional_to_its_batch_and_three_forward_passes():
    stage = Stage(1, 1024, 256, 64)
    model, hardware = step_flops(TrainConfig(model=VIT_H.replace(remat=True)), stage)
    half, _ = step_flops(TrainConfig(model=VIT_H), dataclasses.replace(stage, batch_size=128))
    assert model == 2 * half
    encoder = 256 * encoder_flops(VIT_H, 1024)
    assert 3 * encoder < model < 1.5 * 3 * encoder
    assert 4 / 3 * 0.9 < hardware / model < 4 / 3
    tiny = Stage(1, 32, 2, 3)
    assert step_flops(TrainConfig(model=SMALL), tiny)[0] > 0


def test_chips_are_known_by_their_kind():
    v5e = chip_of("TPU v5 lite")
    assert (v5e.peak_flops, v5e.hbm_bytes, v5e.hbm_bandwidth) == (197e12, 2**34, 819e9)
    assert chip_of("TPU v5").name == "v5p" and chip_of("TPU v6 lite").peak_flops == 918e12
    assert chip_of("cpu") is None and chip_of("NVIDIA H200").hbm_bandwidth == 4.8e12
