"""The bundled model, fifth run: what MobileSAM makes of pictures, learned by the encoder alone.

    python -m train --config configs/tiny_teacher.py --data-root DIR \
        --init-from runs/tiny_gpu/model.safetensors

The decoder is MobileSAM's, which is SAM's, and is not trained yet. First at 256 px, where a picture
takes a fifth of the time of one at 512. The weights that are bundled come from a script like it
(sam_jax/assets/TINY.md); this file has been run for a few steps only.
"""

import dataclasses
import runpy
from pathlib import Path

from sam_jax.training.config import LossConfig, Stage, TrainConfig


def config() -> TrainConfig:
    """`configs/tiny_photos.py` but for what is here."""
    path = Path(__file__).with_name("tiny_photos.py")
    before: TrainConfig = runpy.run_path(str(path))["config"]()
    return dataclasses.replace(
        before,
        name="tiny_teacher",
        model=before.model.replace(dtype="bfloat16", draw_boxes=False),
        teacher="mobile_sam",
        init_decoder="mobile_sam",
        narrow_decoder=1400,
        stages=(
            Stage(1000, 256, 24, 1, 0, 0, scale_range=(0.7, 2.5)),
            Stage(700, 512, 6, 1, 0, 0, scale_range=(0.7, 2.2)),
        ),
        loss=LossConfig(focal_weight=0.0, dice_weight=0.0, iou_weight=0.0, teacher_weight=1.0),
        optim=dataclasses.replace(
            before.optim,
            weight_decay=0.01,
            ema=0.997,
            frozen=("image_encoder/patch_embed/*", "prompt_encoder/*", "mask_decoder/*"),
        ),
        photos=(
            ("coco_cc", 1.6),
            ("coco_person_cc", 1.8),
            ("building_facade", 0.4),
            ("dsb2018_bbbc038", 0.3),
        ),
    )
