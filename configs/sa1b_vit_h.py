"""SAM with a ViT-H encoder on SA-1B, by the paper's recipe (its section A).

    python -m train --config configs/sa1b_vit_h.py --data-root DIR \
        --init-encoder mae_pretrain_vit_huge.pth --devices.coordinator auto

DIR holds `sa1b/`, the tars as they are downloaded or unpacked. Hardware: a v5e:16x16 slice
takes 5.9 of its 17.2 GB a chip, and `python -m train.compile_check` says of any other whether it is
large enough (none has been tried); the paper took 68 hours on 256 A100. --devices.fsdp must divide
the number of devices.

From the paper: AdamW (0.9, 0.999), rate 8e-4 after 250 steps of warmup, divided by 10 after 60,000
and 86,666 of 90,000 steps; batch 256, up to 64 masks an image; weight decay 0.1, drop path 0.4,
layer decay 0.8, decoder dropout 0.1; 20 focal + 1 dice + 1 IoU error; 8 clicks and 2 rounds that
only feed the mask back, 11 rounds in all; the encoder begins as MAE's; no augmentation; masks that
cover over 90% of their image are left out (sam_jax.data does so).

The paper is silent, and whose practice is followed instead:
  focal loss's alpha 0.25 and gamma 2, losses summed over rounds, gradients through
    the fed-back mask, uniform noise on boxes up to 10% and 20 pixels: SAM 2's training code
  weight decay on kernels alone: ViTDet's for B and L, SAM 2's; ViTDet-H decayed everything
  gradient clipping and averaged weights: none, as in ViTDet (SAM 2 clips at 0.1)
  precision: bfloat16 products, float32 parameters, norms, softmax and losses, as in SAM 2
  fitting MAE's weights (patches of 14, 224 pixels): ViTDet (sam_jax.checkpoint.mae)
  masks under 16 pixels are left out, and losses are taken on the 256 x 256 grid: ours
"""

from sam_jax.models.config import VIT_H
from sam_jax.training.config import (
    DevicesConfig,
    OptimConfig,
    PromptConfig,
    Stage,
    TrainConfig,
)


def config() -> TrainConfig:
    """ViT-H: 90,000 steps of 256 images."""
    return TrainConfig(
        name="sa1b_vit_h",
        model=VIT_H.replace(
            dtype="bfloat16", drop_path=0.4, decoder_dropout=0.1, remat=True, scan_blocks=True
        ),
        stages=(
            Stage(
                90_000,
                image_size=1024,
                batch_size=256,
                max_masks=64,
                corrective_clicks=8,
                mask_only_rounds=2,
            ),
        ),
        prompts=PromptConfig(unroll=False),
        optim=OptimConfig(
            lr=8e-4,
            betas=(0.9, 0.999),
            weight_decay=0.1,
            layer_decay=0.8,
            warmup=250,
            schedule="step",
            milestones=(60_000 / 90_000, 86_666 / 90_000),
        ),
        devices=DevicesConfig(fsdp=16),
        photos=(("sa1b", 1.0),),
        augment=False,
        save_every=1000,
    )
