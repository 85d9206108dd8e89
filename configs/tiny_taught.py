"""The bundled model, sixth to eighth run: masks, with MobileSAM still looking on.

    sam-jax generate DIR/coco_person_cc --out DIR/coco_person_everything --model mobile_sam \
        --points-per-side 16 --pred-iou-thresh 0.84 --stability-score-thresh 0.9 \
        --box-nms-thresh 0.75 --max-area-ratio 0.95
    python -m train --config configs/tiny_taught.py --data-root DIR \
        --init-from runs/tiny_teacher/model.safetensors

Of everything in the photographs of which one person's mask is known MobileSAM makes masks first.
3.5 s a step on two CPU cores. As the eighth run was; the other two were shorter and without the
masks of everything. What is bundled is an average of these (sam_jax/assets/TINY.md).
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
        model=before.model.replace(dtype="bfloat16"),
        teacher="mobile_sam",
        stages=(Stage(820, 512, 5, 5, 1, 0, 20, scale_range=(0.7, 1.6), mask_size=256),),
        loss=dataclasses.replace(
            before.loss, box_on_all=False, grouping_weight=0.0, teacher_weight=1.0
        ),
        optim=dataclasses.replace(before.optim, lr=2e-4, muon_lr=1.5e-3, warmup=30, ema=0.99),
        photos=(
            ("coco_cc", 2.0),
            ("coco_person_everything", 1.8),
            ("building_facade", 0.2),
            ("dsb2018_bbbc038", 0.9),
        ),
        cut_paste=1.2,
        scenes=0.3,
        mask_area_power=0.15,
    )
