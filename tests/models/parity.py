"""Differences to the released code, stage by stage: `python -m tests.models.parity [vit_b ...]`."""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

import jax
import numpy as np

from sam_jax.checkpoint.names import from_torch
from sam_jax.models.config import CONFIGS, SamConfig
from sam_jax.models.sam import SamModel
from tests.golden.make import SMALL
from tests.models.stages import KINDS, difference, image, to_prompts, user_prompt


class Pair(NamedTuple):
    """A released model and ours with the same weights, and what the released encoder gave."""

    config: SamConfig
    reference: Any
    variables: dict
    image: np.ndarray
    blocks: dict[str, np.ndarray]
    embedding: Any


def make_pair(name: str, depth: int | None = None) -> Pair:
    """The released model of that name ("small" is the golden tests'), its encoder run.

    With a `depth`, its first blocks alone.
    """
    import torch

    from tests.reference import build_reference, lively, state

    config = {"small": SMALL, **CONFIGS}[name]
    if depth is not None:
        blocks = tuple(i for i in config.global_blocks if i < depth)
        config = config.replace(encoder_depth=depth, global_blocks=blocks)
    reference = lively(build_reference(config), seed=1)
    x, blocks = image(config), {}
    for i, block in enumerate(reference.image_encoder.blocks):
        block.register_forward_hook(
            lambda _, __, out, i=i: blocks.__setitem__(f"block_{i}", out.numpy())
        )
    with torch.no_grad():
        embedding = reference.image_encoder(torch.from_numpy(x).permute(0, 3, 1, 2))
    return Pair(config, reference, from_torch(state(reference), config), x, blocks, embedding)


def _compared(module, method) -> bool:
    """Whether what a module gives is compared: with all that ViT-H computes, memory is full."""
    return method == "__call__" and module.name.startswith(("block", "prompt", "transformer"))


def _run(config, method):
    model = SamModel(config)
    return jax.jit(
        lambda *args: model.apply(
            *args, method=method, mutable="intermediates", capture_intermediates=_compared
        )
    )


def encoder_differences(pair: Pair) -> dict[str, float]:
    """Relative difference of every block's output and of the embedding."""
    ours, kept = _run(pair.config, "encode")(pair.variables, pair.image)
    blocks = kept["intermediates"]["image_encoder"]
    found = {k: difference(blocks[k]["__call__"][0], x) for k, x in pair.blocks.items()}
    return found | {"embedding": difference(ours, pair.embedding.numpy().transpose(0, 2, 3, 1))}


def decoder_differences(pair: Pair, kind: str) -> dict[str, float]:
    """Relative differences of the stages from a prompt of that kind to masks and scores."""
    import torch

    config, reference, embedding = pair.config, pair.reference, pair.embedding
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

    z = embedding.numpy().transpose(0, 2, 3, 1)
    (ours, our_iou), kept = _run(config, "decode")(pair.variables, z, to_prompts(prompt))
    kept = kept["intermediates"]
    our_sparse, _, our_dense = kept["prompt_encoder"]["__call__"][0]
    our_tokens, _ = kept["mask_decoder"]["transformer"]["__call__"][0]
    our_dense = np.broadcast_to(our_dense[:, 0], (1, config.grid, config.grid, config.embed_dim))
    found = {"prompt tokens": difference(our_sparse[:, 0], sparse)} if sparse.shape[1] else {}
    return found | {
        "dense prompt": difference(our_dense, dense.detach().numpy().transpose(0, 2, 3, 1)),
        "transformer": difference(our_tokens[:, 0, : tokens.shape[1]], tokens),
        "mask logits": difference(ours[:, 0], logits),
        "predicted IoU": difference(our_iou[:, 0], iou),
    }


def main(names: list[str]) -> None:
    """Prints a row of a Markdown table for each model: the largest difference of each stage."""
    stages = [
        "blocks",
        "embedding",
        "prompt tokens",
        "dense prompt",
        "transformer",
        "mask logits",
        "predicted IoU",
    ]
    print(f"| model | {' | '.join(stages)} |")
    print("|---" * (len(stages) + 1) + "|")
    for name in names or ["vit_b", "vit_l", "vit_h"]:
        pair = make_pair(name)
        encoder = encoder_differences(pair)
        found = {"embedding": encoder.pop("embedding"), "blocks": max(encoder.values())}
        for kind in KINDS:
            for stage, value in decoder_differences(pair, kind).items():
                found[stage] = max(value, found.get(stage, 0.0))
        print(f"| {name} | {' | '.join(f'{found[s]:.1e}' for s in stages)} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
