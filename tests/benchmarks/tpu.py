"""Memory traffic and arithmetic of each form of attention on a TPU, with no TPU at hand.

    python -m tests.benchmarks.tpu [--topology v5e:1x1] [--model vit_b vit_h]

Compiles the encoder, and a training step of one photo with 8 masks (blocks computed again in the
backward pass), by the TPU's own compiler (`pip install libtpu`) for one chip, with forms for
windows and for whole maps, and prints what XLA counts: bytes moved between HBM and the chip, FLOPs,
and temporaries. A kernel counts its operands, results and products. XLA counts what is in a loop
once: attention by rows takes more than the numbers that a ">" stands before.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from sam_jax.models import attention
from sam_jax.models.config import CONFIGS
from sam_jax.models.sam import SamModel
from sam_jax.training.optim import make_optimizer
from sam_jax.training.sharding import replicated, state_shardings
from sam_jax.training.step import make_step
from tests.benchmarks.__main__ import line, table
from tests.benchmarks.options import Options
from tests.benchmarks.roofline import train_config
from train.compile_check import QUIET, batch_shapes, overflow, slice_mesh, state_shapes

STAGES = ("encoder", "train")
FORMS = {
    "folded": attention._folded,
    "by rows": attention._by_rows,
    "kernel": attention._kernel_tpu,
}
PAIRS = (("folded", "folded"), ("folded", "by rows"), ("folded", "kernel"), ("kernel", "kernel"))
"""Of windows and whole maps."""
HEAD = ("program", "model", "windows", "whole maps", "GB moved", "TFLOP", "GB temporary")


def lowered(options: Options, remat: bool, mesh: Mesh) -> jax.stages.Lowered:
    """The encoder or the training step of the options, for a chip."""
    config = train_config(options)
    config = dataclasses.replace(config, model=config.model.replace(remat=remat))

    def place(shapes, shardings=None):
        shardings = shardings or jax.tree.map(lambda x: replicated(mesh), shapes)
        return jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings
        )

    state, (stage,) = state_shapes(config), config.stages
    batch = batch_shapes(config, stage)
    if options.stage == "train":
        optimizer = make_optimizer(config.optim, config.model, config.total_steps)
        shardings = state_shardings(mesh, state)
        step = make_step(config, stage, optimizer, shardings)
        key = jax.eval_shape(lambda: jax.random.key(0))
        return step.lower(place(state, shardings), place(batch), place(key))
    model = SamModel(config.model)
    variables = {"params": state.params, "buffers": state.buffers}
    program = jax.jit(lambda variables, x: model.apply(variables, x, method="encode"))
    images = jax.ShapeDtypeStruct(batch["image"].shape, jnp.float32)
    return program.lower(place(variables), place(images))


def row(options: Options, pair: tuple[str, str], mesh: Mesh) -> list[str]:
    """The cells under HEAD for a pair of forms."""
    attention.WINDOWS["tpu"], attention.WHOLE_MAPS["tpu"] = (FORMS[name] for name in pair)
    jax.clear_caches()
    cells = ["encoder" if options.stage == "encoder" else "training step", options.model, *pair]
    try:
        made = lowered(options, options.stage == "train", mesh).compile()
    except jax.errors.JaxRuntimeError as error:
        size = overflow(str(error))
        if size is None:
            raise
        return [*cells, "does not fit", "", f"{size / 1e9:.1f}"]
    counted, memory = made.cost_analysis(), made.memory_analysis()
    more = ">" if "by rows" in pair else ""
    return [
        *cells,
        f"{more}{counted['bytes accessed'] / 1e9:.1f}",
        f"{more}{counted['flops'] / 1e12:.2f}",
        f"{memory.temp_size_in_bytes / 1e9:.2f}",
    ]


def main() -> int:
    """The command: 0 at the end, 2 for wrong input."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], prog="python -m tests.benchmarks.tpu"
    )
    parser.add_argument("--topology", default="v5e:1x1")
    parser.add_argument(
        "--model",
        nargs="+",
        default=["vit_b", "vit_h"],
        choices=[name for name, c in CONFIGS.items() if c.encoder == "vit"],
    )
    parser.add_argument("--stage", nargs="+", default=list(STAGES), choices=STAGES)
    args = parser.parse_args()
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    jax.config.update("jax_platforms", "cpu")  # what compiles needs no device
    try:
        mesh = slice_mesh(args.topology, 1)
    except ValueError as error:
        print(f"tests.benchmarks.tpu: {error}", file=sys.stderr)
        return 2
    print(table(HEAD, []), flush=True)
    for stage in args.stage:
        for model in args.model:
            for pair in PAIRS:
                options = Options(stage, model=model, dtype="bfloat16")
                print(line(row(options, pair, mesh)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
