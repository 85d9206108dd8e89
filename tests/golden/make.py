"""Makes tests/golden/*.npz out of the released code: `python -m tests.golden.make`.

Needs PyTorch and segment-anything-py. The weights are made from a seed, so that the files hold
only outputs.
"""

from pathlib import Path

import numpy as np

from sam_jax.models.config import SamConfig
from tests.models.stages import KINDS, image, user_prompt

FOLDER = Path(__file__).parent
SMALL = SamConfig(
    24,
    3,
    2,
    (2,),
    image_size=112,
    patch_size=16,
    window_size=4,
    embed_dim=16,
    mask_channels=8,
    decoder_heads=2,
    decoder_mlp_width=32,
    iou_head_width=16,
)
"""Seven patches a side and windows of four: padded windows, odd sizes, two kinds of blocks."""


def golden(config: SamConfig) -> dict[str, np.ndarray]:
    """The released code's outputs for the seeded weights, image and prompts."""
    import torch

    from tests.reference import build_reference, lively

    reference = lively(build_reference(config), seed=3)
    out = {}
    with torch.no_grad():
        z = reference.image_encoder(torch.from_numpy(image(config)).permute(0, 3, 1, 2))
        out["embedding"] = z.permute(0, 2, 3, 1).numpy()
        for kind in KINDS:
            prompt = user_prompt(config, kind)
            t = {k: None if v is None else torch.from_numpy(v)[None] for k, v in prompt.items()}
            points = None if t["points"] is None else (t["points"], t["labels"])
            mask = None if t["mask"] is None else t["mask"][None]
            sparse, dense = reference.prompt_encoder(points, t["box"], mask)
            pe = reference.prompt_encoder.get_dense_pe()
            logits, iou = reference.mask_decoder.predict_masks(z, pe, sparse, dense)
            out[f"logits {kind}"], out[f"iou {kind}"] = logits.numpy(), iou.numpy()
    return out


if __name__ == "__main__":
    np.savez_compressed(FOLDER / "small.npz", **golden(SMALL))
    print(f"wrote {FOLDER / 'small.npz'}")
