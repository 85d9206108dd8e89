"""The bundled model, fourth run: everything again, for long, on one GPU.

    python -m train --config configs/tiny_gpu.py --data-root DIR --init-from START --workers CORES

START is `configs/tiny_photos.py`'s result averaged with what that run began from (see
sam_jax/assets/TINY.md). At 512 px throughout, two clicks after the first prompt. 13 minutes on one
H200 with 16 cores that make its batches (0.086 s a step), and two to compile, by a script whose
rate went by the clock; 9,277 is what it came to.
"""

import dataclasses
import runpy
from pathlib import Path

from sam_jax.training.config import Stage, TrainConfig


def config() -> TrainConfig:
    """`configs/tiny_photos.py` but for what is here."""
    path = Path(__file__).with_name("tiny_photos.py")
    before: TrainConfig = runpy.run_path(str(path))["config"]()
    return dataclasses.replace(
        before,
        name="tiny_gpu",
        model=before.model.replace(dtype="bfloat16"),
        stages=(Stage(9277, 512, 32, 6, 2, 0, 30, scale_range=(0.6, 1.6), mask_size=256),),
        prompts=dataclasses.replace(before.prompts, unroll=False),
        optim=dataclasses.replace(before.optim, warmup=155, ema=0.998),
        photos=(
            ("coco_cc", 1.6),
            ("coco_person_cc", 0.6),
            ("building_facade", 0.3),
            ("dsb2018_bbbc038", 0.6),
        ),
        cut_paste=1.8,
        scenes=1.0,
    )
