"""SAM with a ViT-L encoder on SA-1B, by the paper's recipe (its section A).

    python -m train --config configs/sa1b_vit_l.py --data-root DIR \
        --init-encoder mae_pretrain_vit_large.pth --devices.coordinator auto

DIR holds `sa1b/`, the tars as they are downloaded or unpacked. Hardware: a slice of up to 128
chips (`python -m train.compile_check` says whether it is large enough; none has been tried); the
paper took 128 GPUs. --devices.fsdp must divide the number of devices.

From the paper: 180,000 steps of 128 images, rate 4e-4, layer decay 0.8, drop path 0.4; the rest as
for ViT-H (sa1b_vit_h.py, which also lists what the paper leaves open and whom it then follows).

By inference: the paper gives the steps at which the rate falls for ViT-H alone. Here they are the
same fractions of the run, 120,000 and 173,332 of 180,000 steps.
"""

from sam_jax.models.config import VIT_L
from sam_jax.training.config import (
    DevicesConfig,
    OptimConfig,
    PromptConfig,
    Stage,
    TrainConfig,
)


def config() -> TrainConfig:
    """ViT-L: 180,000 steps of 128 images."""
    return TrainConfig(
        name="sa1b_vit_l",
        model=VIT_L.replace(
            dtype="bfloat16", drop_path=0.4, decoder_dropout=0.1, remat=True, scan_blocks=True
        ),
        stages=(
            Stage(
                180_000,
                image_size=1024,
                batch_size=128,
                max_masks=64,
                corrective_clicks=8,
                mask_only_rounds=2,
            ),
        ),
        prompts=PromptConfig(unroll=False),
        optim=OptimConfig(
            lr=4e-4,
            betas=(0.9, 0.999),
            weight_decay=0.1,
            layer_decay=0.8,
            warmup=250,
            schedule="step",
            milestones=(120_000 / 180_000, 173_332 / 180_000),
        ),
        devices=DevicesConfig(fsdp=8),
        photos=(("sa1b", 1.0),),
        augment=False,
        save_every=1000,
    )
