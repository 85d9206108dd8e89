"""Text prompts for the bundled model, on drawn scenes and on a CPU: the whole chain, small.

    python -m train.contrastive --out runs/clip
    python -m train --config configs/text.py
    sam-jax segment PHOTO --text "the striped red star" --model runs/text/model.safetensors

The first makes a tiny CLIP from drawn objects and their phrases; the second trains on CLIP's
embeddings of objects' crops, and never sees a word. configs/text_sa1b.py is the paper's, which
needs CLIP's released weights and SA-1B. The README's scores are of a run that began with an earlier
bundled model, a plain ViT; with the present one it has been run for a few steps only. On masks of
your own: --text.clip CLIP --data-root DIR --photos FOLDER 1.0 --described 0.
"""

from sam_jax.models.config import VIT_TI
from sam_jax.training.config import (
    LossConfig,
    OptimConfig,
    PromptConfig,
    Stage,
    TextConfig,
    TrainConfig,
    ValidationConfig,
)


def config() -> TrainConfig:
    """The bundled model, all of it trained further."""
    return TrainConfig(
        name="text",
        model=VIT_TI.replace(dtype="bfloat16"),  # its sizes are those of init_from
        init_from="tiny",
        stages=(
            Stage(2800, 256, 8, 6, 0, 0, scale_range=(0.8, 2.0)),
            Stage(200, 256, 8, 6, 1, 0, scale_range=(0.8, 2.0)),
            Stage(250, 512, 4, 6, 1, 0, scale_range=(0.9, 1.1)),  # as it will be used
        ),
        # Masks' pixels are told from one another by their own crops: what the decoder is asked for
        # by a phrase then lies apart in the embedding.
        loss=LossConfig(iou_on_all=True, text_on_all=True, text_weight=1.0, matching_weight=1.0),
        prompts=PromptConfig(mask_gradient=False, remat=False),
        # A quarter of the first prompts stay clicks and boxes, which else would be forgotten.
        text=TextConfig(
            clip="runs/clip/clip.safetensors",
            share=0.75,
            blends=4,
            min_area=200,
            noise=0.5,
            scenes=3000,
        ),
        optim=OptimConfig(
            name="muon",
            lr=1e-3,
            muon_lr=2.5e-3,
            betas=(0.9, 0.98),
            weight_decay=0.02,
            layer_decay=1.0,
            warmup=50,
            schedule="cosine",
            clip=1.0,
            ema=0.99,
        ),
        data_root="none",
        described=1.0,
        validation=ValidationConfig(every=200, drawn=15),
        log_every=20,
        save_every=100,
    )
