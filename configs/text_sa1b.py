"""Text prompts by the paper's recipe (its section 7.5): ViT-H, CLIP ViT-L/14 at 336 px, SA-1B.

    python -m train --config configs/text_sa1b.py --data-root DIR \
        --text.clip DIR2 --init-encoder mae_pretrain_vit_huge.pth --devices.coordinator auto

DIR2 is a folder of Hugging Face's openai/clip-vit-large-patch14-336 (config.json, tokenizer.json
and weights); its text tower goes into the trained model's file. DIR/sa1b holds as many of SA-1B's
tars as there is patience for: before the first step every crop is embedded once, by one process
(run it with --stages.0.steps 1 first, and the real run finds them), and an image of 100 masks
takes 400 passes of CLIP's tower and 600 kB of disk. Ten tars are a hundred thousand images.

From the paper: CLIP's image embedding of the object, of length 1, is the first prompt, and clicks
follow; masks of at least 100 x 100 pixels; the box grown by 1 to 2, square, 336 px, the
surroundings blanked half of the time, attention in CLIP's last layer to the object alone; 120,000
steps of 128 images, large-scale jitter; everything else as for configs/sa1b_vit_h.py. The paper
used the masks of its data engine's first two stages, which were not published; SA-1B's stand in.

The paper is silent, and ours: one linear layer from CLIP's width to the decoder's, its result a
token of its own without a position; four crops of each mask, one drawn each time; as many masks an
image as without text; what the surroundings are blanked with (see `sam_jax.data.crops`).
"""

import dataclasses
import runpy
from pathlib import Path

from sam_jax.training.config import TextConfig, TrainConfig


def config() -> TrainConfig:
    """ViT-H with text: 120,000 steps of 128 images."""
    start = runpy.run_path(str(Path(__file__).with_name("sa1b_vit_h.py")))["config"]()
    stage = dataclasses.replace(
        start.stages[0], steps=120_000, batch_size=128, scale_range=(0.1, 2.0)
    )
    text = TextConfig(clip="clip-vit-large-patch14-336")
    model = start.model.replace(text_width=768)  # of that CLIP's embeddings
    return dataclasses.replace(start, name="text_sa1b", model=model, stages=(stage,), text=text)
