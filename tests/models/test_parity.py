"""Every stage of the model against the released code, with the same random weights."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from sam_jax.checkpoint.names import from_torch
from sam_jax.models.config import CONFIGS
from sam_jax.models.sam import SamModel
from tests.golden.make import SMALL
from tests.models.stages import KINDS, difference, image, to_prompts, user_prompt

pytestmark = pytest.mark.torch
TOLERANCE = 1e-4  # relative, float32


@pytest.fixture(
    scope="module",
    params=["small", "vit_b", *(pytest.param(n, marks=pytest.mark.slow) for n in ("vit_l", "vit_h"))],
)
def pair(request):
    """A released model, its outputs block by block, and ours with the same weights."""
    import torch

    from tests.reference import build_reference, lively, state

    config = {"small": SMALL, **CONFIGS}[request.param]
    reference = lively(build_reference(config), seed=1)
    x, stages = image(config), {}
    hooks = [
        block.register_forward_hook(lambda _, __, out, i=i: stages.__setitem__(f"block_{i}", out))
        for i, block in enumerate(reference.image_encoder.blocks)
    ]
    with torch.no_grad():
        embedding = reference.image_encoder(torch.from_numpy(x).permute(0, 3, 1, 2))
    for hook in hooks:
        hook.remove()
    stages = {name: out.numpy() for name, out in stages.items()}
    variables = from_torch(state(reference), config)
    return config, reference, variables, x, stages, embedding


def test_every_encoder_block(pair):
    config, _, variables, x, stages, embedding = pair
    encode = jax.jit(
        lambda v, x: SamModel(config).apply(
            v, x, method="encode", mutable="intermediates", capture_intermediates=True
        )
    )
    ours, kept = encode(variables, x)
    blocks = kept["intermediates"]["image_encoder"]
    for name, theirs in stages.items():
        assert difference(blocks[name]["__call__"][0], theirs) < TOLERANCE, name
    assert difference(ours, embedding.numpy().transpose(0, 2, 3, 1)) < TOLERANCE


@pytest.mark.parametrize("kind", KINDS)
def test_every_decoder_stage(pair, kind):
    import torch

    config, reference, variables, _, _, embedding = pair
    prompt = user_prompt(config, kind)
    as_torch = {k: None if v is None else torch.from_numpy(v)[None] for k, v in prompt.items()}
    points = None if prompt["points"] is None else (as_torch["points"], as_torch["labels"])
    mask = None if prompt["mask"] is None else as_torch["mask"][None]
    with torch.no_grad():
        sparse, dense = reference.prompt_encoder(points, as_torch["box"], mask)
        decoder, pe = reference.mask_decoder, reference.prompt_encoder.get_dense_pe()
        logits, iou = decoder.predict_masks(embedding, pe, sparse, dense)
        own = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])[None]
        tokens, _ = decoder.transformer(embedding + dense, pe, torch.cat([own, sparse], 1))

    decode = jax.jit(
        lambda v, z, p: SamModel(config).apply(
            v, z, p, method="decode", mutable="intermediates", capture_intermediates=True
        )
    )
    z = embedding.numpy().transpose(0, 2, 3, 1)
    (ours, our_iou), kept = decode(variables, z, to_prompts(prompt))
    kept = kept["intermediates"]
    our_sparse, _, our_dense = kept["prompt_encoder"]["__call__"][0]
    our_tokens, _ = kept["mask_decoder"]["transformer"]["__call__"][0]
    if sparse.shape[1]:
        assert difference(our_sparse[:, 0], sparse.numpy()) < TOLERANCE
    our_dense = np.broadcast_to(our_dense[:, 0], (1, config.grid, config.grid, config.embed_dim))
    assert difference(our_dense, dense.detach().numpy().transpose(0, 2, 3, 1)) < TOLERANCE
    assert difference(our_tokens[:, 0], tokens.numpy()) < TOLERANCE
    assert difference(ours[:, 0], logits.numpy()) < TOLERANCE
    assert difference(our_iou[:, 0], iou.numpy()) < TOLERANCE
