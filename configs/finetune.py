"""Fine-tuning a trained model on your own masks, on one small GPU or a few CPU cores.

    python -m train --config configs/finetune.py --data-root DIR --photos FOLDER 1.0

starts from the bundled model unless --init-from names another (mobile_sam, vit_b, vit_l, vit_h, or
a file) and ends with runs/finetune/model.safetensors, which sam_jax.load and every command read.
FOLDER holds masks in any form that `python -m train.check_data DIR/FOLDER` recognises. Three ways:

Low-rank adapters on the encoder's and the decoder's attention, merged at the end: the line above.

The decoder alone, every picture encoded once before training (quickest by far):

    ... --lora.rank 0 --optim.frozen 'image_encoder/*' --cache-embeddings --no-augment
        --optim.lr 2e-4

Everything (the most memory, and the most data needed):

    ... --lora.rank 0 --optim.frozen --optim.lr 1e-4

--validation.data FOLDER2 measures on masks that are kept out of training, at every 200 steps;
--stages.0.steps sets how long. For ViT-B on a GPU --model.dtype bfloat16 halves time and memory;
where that is still too much, --devices.accumulate 2 or 4 computes batches in parts.
"""

from sam_jax.models.config import VIT_TI
from sam_jax.training.config import (
    LoraConfig,
    LossConfig,
    OptimConfig,
    PromptConfig,
    Stage,
    TrainConfig,
    ValidationConfig,
)


def config() -> TrainConfig:
    """Adapters on the bundled model."""
    return TrainConfig(
        name="finetune",
        model=VIT_TI,  # its sizes are those of init_from, whatever stands here
        init_from="tiny",
        stages=(Stage(300, 0, 4, 8, corrective_clicks=1, mask_only_rounds=0, mask_size=256),),
        lora=LoraConfig(rank=8),
        loss=LossConfig(iou_on_all=True, box_on_all=True),
        prompts=PromptConfig(mask_gradient=False),
        optim=OptimConfig(
            lr=5e-4,
            betas=(0.9, 0.99),
            weight_decay=0.0,
            layer_decay=1.0,
            frozen=("image_encoder/*", "prompt_encoder/*", "mask_decoder/*"),
            warmup=20,
            schedule="cosine",
            clip=1.0,
        ),
        validation=ValidationConfig(every=200),
        log_every=10,
        save_every=100,
    )
