"""Masks again, from the end of `configs/tiny_teacher.py`, with MobileSAM still looking on.

    python -m train --config configs/tiny_taught.py --data-root DIR --teacher mobile_sam.pt \
        --init-from runs/tiny_teacher/model.safetensors

Tried, and not shipped: sam_jax/assets/TINY.md. 3.4 s a step on two CPU cores.
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
        name="tiny_taught",
        model=before.model.replace(dtype="bfloat16", draw_boxes=False),
        stages=(Stage(600, 512, 5, 5, 1, 0, 24, scale_range=(0.7, 1.6), mask_size=256),),
        loss=dataclasses.replace(
            before.loss, box_on_all=False, grouping_weight=0.0, teacher_weight=1.0
        ),
        optim=dataclasses.replace(before.optim, lr=2e-4, muon_lr=1.5e-3, warmup=30, ema=0.99),
        photos=(
            ("coco_cc", 1.6),
            ("coco_person_cc", 0.6),
            ("building_facade", 0.2),
            ("dsb2018_bbbc038", 0.7),
        ),
        cut_paste=1.2,
        scenes=0.3,
    )
