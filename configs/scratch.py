"""A small model of the released architecture, from nothing, on a CPU: nothing is fetched.

    python -m train --config configs/scratch.py --data-root DIR

Stages of growing image size; photographs with masks (see sam_jax/assets/TINY.md), composites of
their objects, and procedural scenes, which alone will do: --data-root none. Seen on two busy CPU
cores: 0.8 to 1.2 s a step at 256 px, 2.0 to 2.5 s at 512 px.
"""

from sam_jax.models.config import VIT_TI
from sam_jax.training.config import LossConfig, OptimConfig, PromptConfig, Stage, TrainConfig


def config() -> TrainConfig:
    """The recipe."""
    return TrainConfig(
        name="scratch",
        model=VIT_TI.replace(drop_path=0.05),
        stages=(
            # Large masks first: easier to find than small ones while nothing is known.
            Stage(600, 256, 12, 8, 0, 0, min_mask_pixels=250, scale_range=(0.8, 1.6)),
            Stage(2140, 256, 12, 6, 1, 0, min_mask_pixels=100, scale_range=(0.7, 1.6)),
            Stage(1400, 512, 5, 6, 2, 0, min_mask_pixels=36, scale_range=(0.6, 1.5)),
        ),
        loss=LossConfig(focal_weight=5.0, iou_on_all=True, grouping_weight=0.3),
        prompts=PromptConfig(mask_gradient=False, remat=False),
        structured_start=True,
        optim=OptimConfig(
            name="muon",
            lr=1e-3,
            muon_lr=5e-3,
            betas=(0.9, 0.98),
            weight_decay=0.02,
            layer_decay=1.0,
            # It sums 768 pixels that are alike: at any rate that suits the rest it runs away, and
            # the encoder's output collapses (seen). Frequencies serve as they are.
            frozen=("image_encoder/patch_embed/*",),
            warmup=30,
            schedule="cosine",
            clip=1.0,
            ema=0.998,
        ),
        data_root="../shared/data/train",
        photos=(
            ("coco_cc", 0.9),
            ("coco_person_cc", 0.6),
            ("building_facade", 0.4),
            ("dsb2018_bbbc038", 1.1),
        ),
        cut_paste=1.0,
        scenes=1.4,
        mask_area_power=0.1,
        log_every=20,
        save_every=100,
    )
