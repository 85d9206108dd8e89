"""The bundled model: from scratch on a CPU, in stages of growing image size.

    python -m train --config configs/tiny.py --data-root DIR

Photographs with masks (see sam_jax/assets/TINY.md), composites of their objects, and procedural
scenes.
"""

from sam_jax.models.config import TINY
from sam_jax.training.config import LossConfig, OptimConfig, PromptConfig, Stage, TrainConfig


def config() -> TrainConfig:
    """The run that made sam_jax/assets/tiny.safetensors."""
    return TrainConfig(
        name="tiny",
        model=TINY.replace(drop_path=0.05),
        stages=(
            # Large masks first: a run that starts with small ones learns nothing for long.
            Stage(500, 256, 12, 6, corrective_clicks=1, mask_only_rounds=0,
                  min_mask_pixels=250, scale_range=(0.8, 1.6)),
            Stage(800, 256, 12, 6, corrective_clicks=1, mask_only_rounds=0,
                  min_mask_pixels=60, scale_range=(0.7, 1.6)),
            Stage(600, 256, 12, 6, corrective_clicks=2, mask_only_rounds=1,
                  min_mask_pixels=36, scale_range=(0.7, 1.6)),
            Stage(900, 512, 6, 6, corrective_clicks=2, mask_only_rounds=1,
                  min_mask_pixels=64, scale_range=(0.7, 1.6)),
        ),
        loss=LossConfig(iou_on_all=True),
        prompts=PromptConfig(mask_gradient=False, remat=False),
        optim=OptimConfig(
            lr=1e-3, betas=(0.9, 0.98), weight_decay=0.05, layer_decay=1.0, warmup=100,
            schedule="cosine", clip=1.0, ema=0.998,
        ),
        data_root="../shared/data/train",
        photos=(
            ("coco_cc", 1.0),
            ("coco_person_cc", 0.8),
            ("building_facade", 0.5),
            ("dsb2018_bbbc038", 0.8),
        ),
        cut_paste=1.0,
        scenes=1.0,
        mask_area_power=0.3,
        log_every=20,
        save_every=100,
    )
