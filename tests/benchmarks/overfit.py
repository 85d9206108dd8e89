"""Learns a few photographs by heart: does training reach what it is shown, and how soon?

    python -m tests.benchmarks.overfit [--data FOLDER] [--init tiny] [--images 8]

Trains on the first photographs of a folder, unchanged, and stops when one click in the middle of
each of their masks gives a mean IoU above 0.9 (the most confident of the three masks), or after
--steps. Exit code 0 when it got there, 1 when it did not.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import jax
import numpy as np

from sam_jax.checkpoint.load import Sam
from sam_jax.data.open_source import open_source
from sam_jax.data.pipeline import PipelineConfig, batches
from sam_jax.evaluation.single_point import measure_source
from sam_jax.inference.compiled import use_compilation_cache
from sam_jax.inference.predictor import Predictor
from sam_jax.models.config import TINY
from sam_jax.models.sam import SamModel
from sam_jax.training.config import LossConfig, OptimConfig, PromptConfig, Stage, TrainConfig
from sam_jax.training.optim import make_optimizer
from sam_jax.training.sharding import global_batch, make_mesh
from sam_jax.training.step import make_step
from train.__main__ import keep_memory
from train.start import initial_state, starting_point

DATA = Path(__file__).parents[3] / "shared" / "data" / "train" / "coco_person_cc"
GOAL = 0.9


class First:
    """The first `count` records of a source."""

    def __init__(self, source, count: int):
        self._source, self._count = source, min(count, len(source))

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int):
        return self._source[index]


def config(init: str, images: int, steps: int) -> TrainConfig:
    """Everything is trained; one click or box, and no augmentation."""
    return TrainConfig(
        model=TINY,
        init_from=init,
        stages=(Stage(steps, 0, images, 8, 0, 0, min_mask_pixels=64),),
        loss=LossConfig(iou_on_all=True),
        prompts=PromptConfig(box_probability=0.2, remat=False),
        optim=OptimConfig(
            lr=5e-4, betas=(0.9, 0.99), weight_decay=0.0, layer_decay=1.0, warmup=10, clip=1.0
        ),
        augment=False,
    )


def main() -> int:
    """Trains and prints until the goal is reached."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", default=str(DATA), help="in any form that is trained on")
    parser.add_argument("--init", default="tiny", help="a model's name or file")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--steps", type=int, default=600, help="at most")
    parser.add_argument("--every", type=int, default=20, help="steps between two measurements")
    args = parser.parse_args()
    use_compilation_cache()
    run, variables, _ = starting_point(config(args.init, args.images, args.steps))
    source, stage = First(open_source(args.data), args.images), run.stages[0]
    mesh = make_mesh(1, jax.devices()[:1])
    optimizer = make_optimizer(run.optim, run.model, args.steps)
    state, shardings = initial_state(run, variables, optimizer, mesh)
    step = make_step(run, stage, optimizer, shardings)
    size = stage.image_size
    data = batches(
        [(source, 1.0)],
        PipelineConfig(
            image_size=size,
            mask_size=size // 4,
            max_masks=stage.max_masks,
            scale_range=(1.0, 1.0),
            flip=False,
            colour_jitter=0.0,
            grey_probability=0.0,
            invert_probability=0.0,
            batch_size=args.images,
        ),
    )
    spent, done, score = 0.0, 0, measure(run, state, source)
    print(f"{args.data}: {len(source)} images; one click {score:.3f} before", flush=True)
    while score <= GOAL and done < args.steps:
        begin = time.perf_counter()
        for _ in range(args.every):
            state, _ = step(state, global_batch(mesh, next(data)), jax.random.key(1))
        jax.block_until_ready(state.step)
        spent, done = spent + time.perf_counter() - begin, done + args.every
        score = measure(run, state, source)
        print(f"step {done}: one click {score:.3f}, {spent:.0f} s of training", flush=True)
    data.close()
    device = jax.devices()[0].device_kind
    reached = f"above {GOAL}" if score > GOAL else f"NOT above {GOAL}"
    print(f"{reached} after {done} steps, {spent:.0f} s with compiling, on {device}")
    return 0 if score > GOAL else 1


def measure(run: TrainConfig, state, source) -> float:
    """Mean IoU of one click over all masks."""
    variables = {"params": state.params, "buffers": state.buffers}
    sam = Sam(SamModel(run.model), jax.device_get(variables), run.model, "overfit")
    rows = measure_source(Predictor(sam), source, clicks=1)
    return float(np.mean([row["1"] for row in rows]))


if __name__ == "__main__":
    keep_memory("tests.benchmarks.overfit")
    sys.exit(main())
