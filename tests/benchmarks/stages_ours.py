"""This package's side of the comparison: each stage as a function that can be timed.

python -m tests.benchmarks.stages_ours --stage encoder --model vit_b --dtype bfloat16
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np

from tests.benchmarks.options import Options, photo_of, points_of, stage_options
from tests.benchmarks.pair import serve

Prepared = tuple[Callable[[], object], dict]


def model(options: Options):
    """The model with the weights that both sides have."""
    import sam_jax
    from tests.weights import lively_variables

    config = sam_jax.CONFIGS[options.model].replace(dtype=options.dtype)
    if options.model == "tiny":
        variables = sam_jax.load("tiny").params
    else:
        variables = lively_variables(config)
    return sam_jax.Sam(sam_jax.SamModel(config), variables, config, options.model)


def compiled(options: Options):
    """The model's two programs."""
    from sam_jax.inference.predictor import Predictor

    return Predictor(model(options), cache=False).compiled


def encoder(options: Options) -> Prepared:
    """Photos on the host to embeddings on the device."""
    import jax

    programs = compiled(options)
    side = programs.image_size
    images = np.stack([photo_of((side, side))] * options.batch)
    sizes = np.full((options.batch, 2), side, np.int32)
    return lambda: jax.block_until_ready(programs.encode(images, sizes)), {}


def _embedded(options: Options):
    programs = compiled(options)
    side = programs.image_size
    photo = photo_of((side, side))[None]
    return programs, programs.encode(photo, np.array([[side, side]], np.int32)), side


def prompt(options: Options) -> Prepared:
    """One point, five points or a box, to its masks' logits on the host."""
    from sam_jax.models.prompt_encoder import Prompts

    programs, features, side = _embedded(options)
    points, labels = points_of(options.prompt, side)
    prompts = Prompts(points[None, None], labels[None, None])
    return lambda: programs.decode(features, prompts), {}


def prompts(options: Options) -> Prepared:
    """The grid's points, three masks each, to their logits on the device."""
    import jax

    programs, features, side = _embedded(options)
    count = int(options.count)
    points = np.random.default_rng(0).uniform(0, side, (1, count, 2)).astype(np.float32)
    return lambda: jax.block_until_ready(programs.decode_points(features, points, 64)), {}


def generator(options: Options) -> Prepared:
    """Automatic masks of a photo."""
    from sam_jax.inference.generator import MaskGenerator

    made = MaskGenerator(model(options), output_mode="uncompressed_rle", **options.limits)
    photo = photo_of(options.photo_wh)
    return lambda: made.generate(photo), {"masks": len(made.generate(photo))}


def train(options: Options) -> Prepared:
    """An optimiser step on one photo with a few masks."""
    import jax

    from sam_jax.compiling import compile_ahead
    from sam_jax.training.optim import make_optimizer
    from sam_jax.training.step import init_state, make_step
    from tests.benchmarks.options import masks_of
    from tests.benchmarks.roofline import train_config

    config = train_config(options)
    side, stage = config.model.image_size, config.stages[0]
    optimizer = make_optimizer(config.optim, config.model, config.total_steps)
    state = init_state(model(options).params, optimizer, False)
    step = make_step(config, stage, optimizer)
    masks, boxes = masks_of(side, options.masks)
    batch = {
        "image": np.stack([photo_of((side, side))] * options.batch),
        "image_hw": np.full((options.batch, 2), side, np.int32),
        "masks": np.stack([masks * np.uint8(255)] * options.batch),
        "boxes_xyxy": np.stack([boxes] * options.batch),
        "mask_valid": np.ones((options.batch, options.masks), bool),
    }
    batch, key = jax.device_put(batch), jax.random.key(0)
    state = jax.device_put(state)
    step = compile_ahead(step, state, batch, key)

    def run():
        nonlocal state
        state, metrics = step(state, batch, key)
        return float(metrics["loss"])

    return run, {}


STAGES = {stage.__name__: stage for stage in (encoder, prompt, prompts, generator, train)}


def main() -> None:
    """Serves one stage."""
    options = stage_options(sys.argv[1:])
    import jax

    if options.device == "cpu":
        jax.config.update("jax_platforms", "cpu")

    def prepare():
        run, facts = STAGES[options.stage](options)
        versions = {"device": jax.devices()[0].device_kind, "jax": jax.__version__}
        return run, facts | versions | {"peak_flops": matmul_flops(options)}

    def device_gb() -> float:
        return jax.devices()[0].memory_stats()["peak_bytes_in_use"] / 1e9

    serve("tests.benchmarks.stages_ours", prepare, *([device_gb] * (options.device != "cpu")))


def matmul_flops(options: Options) -> float:
    """FLOP/s of a large matrix product in the options' dtype: the peak that can be measured."""
    import time

    import jax
    import jax.numpy as jnp

    n = 2048 if options.device == "cpu" else 8192
    x = jnp.full((n, n), 0.5, options.dtype)
    program = jax.jit(
        lambda x: jnp.matmul(
            x,
            x,
            precision=jax.lax.Precision.HIGHEST if options.dtype == "float32" else None,
            preferred_element_type=jnp.float32,
        )
    )
    seconds = []
    for _ in range(6):
        start = time.perf_counter()
        jax.block_until_ready(program(x))
        seconds.append(time.perf_counter() - start)
    return 2 * n**3 / min(seconds)


if __name__ == "__main__":
    main()
