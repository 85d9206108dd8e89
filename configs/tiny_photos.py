"""The bundled model, third run: everything again, on photographs that count alike.

    python -m train --config configs/tiny_photos.py --data-root DIR \
        --init-from runs/tiny_boxes/model.safetensors

goes on from `configs/tiny_boxes.py`. A photograph of one person counts as much as one of a hundred
cells (`repeat_masks`), small masks are drawn as often as large ones, and composites are new in
every epoch. 3.8 s a step at 256 px and 4.2 s at 512 px on two CPU cores with AVX2.
"""

import dataclasses
import runpy
from pathlib import Path

from sam_jax.training.config import Stage, TrainConfig


def config() -> TrainConfig:
    """`configs/tiny.py` but for what is here."""
    path = Path(__file__).with_name("tiny.py")
    first: TrainConfig = runpy.run_path(str(path))["config"]()
    return dataclasses.replace(
        first,
        name="tiny_photos",
        init_from="tiny",
        model=first.model.replace(draw_boxes=True, drop_path=0.0),
        structured_start=False,
        stages=(
            Stage(1000, 256, 16, 6, 1, 0, 36, scale_range=(0.7, 1.7), mask_size=128),
            Stage(560, 512, 4, 6, 1, 0, 24, scale_range=(0.6, 1.6), mask_size=256),
        ),
        loss=dataclasses.replace(first.loss, box_on_all=True, iou_weight=2.0),
        prompts=dataclasses.replace(first.prompts, box_probability=0.5, box_noise=0.06),
        optim=dataclasses.replace(first.optim, lr=8e-4, muon_lr=4e-3, warmup=40, ema=0.997),
        photos=(
            ("coco_cc", 1.6),
            ("coco_person_cc", 0.4),
            ("building_facade", 0.3),
            ("dsb2018_bbbc038", 0.6),
        ),
        cut_paste=1.4,
        scenes=0.7,
        mask_area_power=0.0,
        repeat_masks=True,
    )
