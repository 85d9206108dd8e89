"""The bundled model, fifth run: pictures of many more kinds of things.

python -m train --config configs/tiny_cut_outs.py --data-root DIR --init-from tiny
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
        name="tiny_cut_outs",
        model=before.model.replace(drop_path=0.05, dtype="bfloat16"),
        stages=(Stage(1750, 512, 5, 6, 2, 0, 24, scale_range=(0.6, 1.6), mask_size=256),),
        optim=dataclasses.replace(before.optim, lr=4e-4, muon_lr=2e-3, warmup=50, ema=0.997),
        photos=(
            ("coco_cc", 1.4),
            ("coco_person_cc", 1.0),
            ("building_facade", 0.2),
            ("dsb2018_bbbc038", 0.7),
        ),
        cut_paste=3.0,
        cut_outs=(("emoji3d", 5.0), ("clipart", 3.0)),
        scenes=0.5,
        stretch=0.2,
        blur=0.15,
    )
