"""The bundled model: MobileSAM, made to see at 512 px what it sees at 1024.

    python -m train --config configs/tiny.py --data-root DIR

The whole model goes on from MobileSAM (fetched once, 39 MB), with boxes drawn. MobileSAM is its
teacher too, shown the same pictures at twice the size: its embeddings, and its answers to the first
prompts, are learned beside the true masks of photographs (see sam_jax/assets/TINY.md), composites
of their objects, and procedural scenes. Later clicks, and finer edges, come in a second stage.
8 to 10 s a step on two CPU cores, so 60 to 70 minutes. The bundled weights are of these stages, run
one after the other; as one run it reproduces their scores to 0.014 at one click and from a box (see
the card).
"""

from sam_jax.models.config import TINY
from sam_jax.training.config import LossConfig, OptimConfig, PromptConfig, Stage, TrainConfig


def config() -> TrainConfig:
    """The bundled model's recipe."""
    return TrainConfig(
        name="tiny",
        model=TINY.replace(dtype="bfloat16"),
        init_from="mobile_sam",
        teacher="mobile_sam",
        teacher_enlarge=2,
        stages=(
            Stage(320, 512, 4, 6, 1, 0, 20, scale_range=(0.7, 1.6), mask_size=128),
            Stage(100, 512, 4, 6, 4, 0, 20, scale_range=(0.7, 1.6), mask_size=256),
        ),
        loss=LossConfig(
            focal_weight=5.0,
            iou_weight=2.0,
            iou_on_all=True,
            teacher_weight=0.5,
            answers_weight=1.0,
        ),
        # Half of the clicks in the middle of a mask, where people click and the paper measures.
        prompts=PromptConfig(
            mask_gradient=False,
            remat=False,
            box_probability=0.45,
            box_noise=0.05,
            centre_probability=0.5,
        ),
        optim=OptimConfig(
            lr=2e-4,
            betas=(0.9, 0.98),
            weight_decay=0.02,
            layer_decay=1.0,
            warmup=20,
            schedule="cosine",
            clip=1.0,
            ema=0.98,
        ),
        data_root="../shared/data/train",
        photos=(
            ("coco_cc", 2.0),
            ("coco_person_cc", 0.8),
            ("building_facade", 0.3),
            ("dsb2018_bbbc038", 1.8),
        ),
        cut_paste=0.8,
        scenes=0.2,
        mask_area_power=0.15,
        repeat_masks=True,
        log_every=10,
        save_every=20,
    )
