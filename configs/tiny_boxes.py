"""The bundled model, second run: the decoder alone, on finer masks and drawn boxes.

    python -m train --config configs/tiny_boxes.py --data-root DIR \
        --init-from runs/tiny/model.safetensors

goes on from `configs/tiny.py`. A box is also given as a mask from here on
(`SamConfig.draw_boxes`), losses are taken on a grid twice as fine as the decoder's, so that edges
come to lie between its cells, and a box trains all masks. 1.25 s a step on two CPU cores.
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
        name="tiny_boxes",
        init_from="tiny",
        model=first.model.replace(draw_boxes=True),
        structured_start=False,
        stages=(
            Stage(
                900,
                image_size=512,
                batch_size=4,
                max_masks=12,
                corrective_clicks=1,
                mask_only_rounds=0,
                min_mask_pixels=16,
                scale_range=(0.6, 1.5),
                mask_size=256,
            ),
        ),
        loss=dataclasses.replace(first.loss, grouping_weight=0.0, box_on_all=True),
        prompts=dataclasses.replace(first.prompts, box_probability=0.6, box_noise=0.04),
        optim=dataclasses.replace(
            first.optim,
            lr=4e-4,
            muon_lr=1e-3,
            frozen=("image_encoder/*",),
            warmup=20,
            ema=0.99,
        ),
        photos=(
            ("coco_cc", 1.6),
            ("coco_person_cc", 0.3),
            ("building_facade", 0.3),
            ("dsb2018_bbbc038", 0.6),
        ),
        cut_paste=0.8,
        scenes=0.5,
        mask_area_power=0.0,
    )
