"""The bundled model, at the end: the head that predicts the IoU alone, on the averaged weights.

    python -m train --config configs/tiny_scores.py --data-root DIR \
        --init-from averaged.safetensors

The head of an average of weights took the middle one of three masks too often. The masks stay to
the bit, which of them is taken changes. Half of the first clicks lie in the middle of a mask (four
of five when it was run, 2.4 s a step on two CPU cores); what is bundled was fitted further
(sam_jax/assets/TINY.md). `coco_person_everything` is made as `configs/tiny_taught.py` says.
"""

import dataclasses
import runpy
from pathlib import Path

from sam_jax.training.config import Stage, TrainConfig


def config() -> TrainConfig:
    """`configs/tiny_taught.py` but for what is here."""
    path = Path(__file__).with_name("tiny_taught.py")
    before: TrainConfig = runpy.run_path(str(path))["config"]()
    masks = "mask_decoder/"
    return dataclasses.replace(
        before,
        name="tiny_scores",
        model=before.model.replace(drop_path=0.0),
        teacher="",
        stages=(Stage(300, 512, 8, 12, 1, 0, 20, scale_range=(0.9, 1.3), mask_size=128),),
        loss=dataclasses.replace(before.loss, teacher_weight=0.0),
        prompts=dataclasses.replace(
            before.prompts, box_probability=0.4, box_noise=0.04, centre_probability=0.5
        ),
        optim=dataclasses.replace(
            before.optim,
            name="adamw",
            lr=1e-3,
            warmup=20,
            ema=0.95,
            frozen=(
                "image_encoder/*",
                "prompt_encoder/*",
                masks + "transformer/*",
                masks + "[!i]*",
                masks + "iou_token*",
            ),
        ),
        photos=(
            ("coco_cc", 1.5),
            ("coco_person_cc", 0.4),
            ("coco_person_everything", 1.5),
            ("building_facade", 0.2),
            ("dsb2018_bbbc038", 0.8),
        ),
        cut_paste=0.0,
        scenes=0.0,
        mask_area_power=0.0,
    )
