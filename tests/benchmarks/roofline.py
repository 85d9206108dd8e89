"""FLOPs and bytes of a stage by formula."""

from __future__ import annotations

from sam_jax.models.config import CONFIGS, SamConfig
from sam_jax.training.config import PromptConfig, Stage, TrainConfig
from sam_jax.training.flops import decoder_flops, encoder_flops, step_flops
from tests.benchmarks.options import Options

TOKENS = {"point": 8, "five": 12, "box": 8}
"""Slots of a prompt together with the decoder's own tokens."""


def train_config(options: Options) -> TrainConfig:
    """The training step that both sides are timed in."""
    config, rounds = CONFIGS[options.model].replace(dtype=options.dtype), options.rounds
    stage = Stage(
        100,
        config.image_size,
        options.batch,
        options.masks,
        corrective_clicks=max(rounds - 3, 0),
        mask_only_rounds=min(rounds - 1, 2),
    )
    return TrainConfig(model=config, stages=(stage,), prompts=PromptConfig(box_probability=0.0))


def flops(options: Options) -> int:
    """Matrix products of one run, each once: what the mathematics asks for."""
    c = CONFIGS[options.model]
    grid = (c.grid, c.grid)
    if options.stage == "train":
        config = train_config(options)
        return step_flops(config, config.stages[0])[0]
    encoder = encoder_flops(c, c.image_size)
    if options.stage == "encoder":
        return options.batch * encoder
    if options.stage == "prompt":
        return decoder_flops(c, grid, TOKENS[options.prompt])
    if options.stage == "prompts":
        return decoder_flops(c, grid, 7, options.count)
    return encoder + decoder_flops(c, grid, 7, 32 * 32)


def least_bytes(options: Options) -> int:
    """What a run moves between memory and chip at least, were every layer one kernel.

    Parameters in float32 once; of an encoder block its input, the four linear layers' inputs and
    outputs; of a prompt the embedding once a layer and its logits. A training step moves three
    times that, and parameters, gradients and two moments once more.
    """
    c = CONFIGS[options.model]
    size = 2 if options.dtype == "bfloat16" else 4
    block = c.grid**2 * c.encoder_width * (2 + 4 + 2 + 2 + 2 * c.encoder_mlp_ratio)
    maps = int(c.encoder_depth * block * size) + 3 * c.image_size**2
    weights = 4 * parameters(c)
    prompt = 4 * c.grid**2 * (c.decoder_depth * c.embed_dim + 16 * c.num_masks)
    if options.stage == "encoder":
        return weights + options.batch * maps
    if options.stage == "prompt":
        return prompt
    if options.stage == "prompts":
        return options.count * prompt
    if options.stage == "generator":
        return weights + maps + 32 * 32 * prompt
    passes = options.batch * (maps + options.rounds * options.masks * prompt)
    return 3 * passes + 6 * weights


def parameters(c: SamConfig) -> int:
    """Of the encoder: nearly all of the model."""
    blocks = c.encoder_depth * c.encoder_width**2 * (4 + 2 * c.encoder_mlp_ratio)
    return int(blocks) + 10 * c.embed_dim**2
