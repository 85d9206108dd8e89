"""The bundled model's last minutes: small masks, tighter boxes, a low rate.

    python -m train --config configs/tiny_finish.py --data-root DIR

after `configs/tiny.py`. On a CPU, about 1.6 s a step.
"""

import dataclasses
import runpy
from pathlib import Path

from sam_jax.training.config import Stage, TrainConfig


def config() -> TrainConfig:
    """Boxes of small things fell short of the filled box after `configs/tiny.py`."""
    first = runpy.run_path(str(Path(__file__).with_name("tiny.py")))["config"]()
    return dataclasses.replace(
        first,
        name="tiny_finish",
        init_from="runs/tiny/model.safetensors",
        structured_start=False,
        stages=(Stage(380, 512, 5, 7, 1, 0, min_mask_pixels=16, scale_range=(0.5, 1.3)),),
        prompts=dataclasses.replace(first.prompts, box_probability=0.6, box_noise=0.05),
        optim=dataclasses.replace(first.optim, lr=3e-4, muon_lr=1.5e-3, warmup=10, ema=0.99),
        photos=(
            ("coco_cc", 1.5),
            ("coco_person_cc", 0.5),
            ("building_facade", 0.5),
            ("dsb2018_bbbc038", 0.7),
        ),
        cut_paste=1.2,
        scenes=0.8,
        mask_area_power=-0.3,  # small ones first
    )
