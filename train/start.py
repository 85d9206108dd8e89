"""How a run begins: its config, its first weights, its state on the devices."""

from __future__ import annotations

import dataclasses
import runpy
from pathlib import Path

import jax
import numpy as np
import optax
import tyro
from jax.sharding import Mesh

from sam_jax.checkpoint.clip import Clip
from sam_jax.checkpoint.load import load
from sam_jax.checkpoint.mae import load_mae
from sam_jax.models import sam as sam_model
from sam_jax.models.config import SamConfig
from sam_jax.training.config import TrainConfig
from sam_jax.training.lora import add_adapters
from sam_jax.training.scratch import structured_start
from sam_jax.training.sharding import state_shardings
from sam_jax.training.step import TrainState, init_state

DECODERS = (
    *("embed_dim", "mask_channels", "decoder_depth", "decoder_heads", "decoder_mlp_width"),
    *("attention_downsample", "num_multimask", "iou_head_depth", "iou_head_width"),
)
"""Fields of a model's config that are sizes of its decoder."""
COMPUTED = ("dtype", "drop_path", "decoder_dropout", "remat", "scan_blocks")
"""Fields of a model's config that change how it is computed with, not what it is."""


def read_config(argv: list[str]) -> TrainConfig:
    """The config that FILE's `config()` returns, with the fields changed that `argv` names."""
    if argv in ([], ["-h"], ["--help"]):
        raise SystemExit(
            "usage: python -m train --config FILE [--field value ...]\n"
            "       python -m train --config FILE --help    lists the fields"
        )
    if argv[0] != "--config" or len(argv) < 2:
        raise ValueError("--config: expected first, with the path of a config file")
    if not Path(argv[1]).is_file():
        raise ValueError(f"--config: no such file: {argv[1]}")
    found = runpy.run_path(argv[1])
    if not callable(found.get("config")):
        raise ValueError(f"--config: {argv[1]} has no function config() -> TrainConfig")
    return tyro.cli(TrainConfig, default=found["config"](), args=argv[2:], prog="python -m train")


def starting_point(
    config: TrainConfig, clip: Clip | None = None
) -> tuple[TrainConfig, dict, Clip | None]:
    """Fresh weights, with `init_encoder`'s encoder, or those of `init_from`, whatever their sizes.

    In the place of their decoder comes that of `init_decoder`.

    Args:
      config: the run's.
      clip: that of `config.text`; the model gets a text head for it where it has none.

    Returns:
      The config, its `model` with the sizes of `init_from` where that is given and its stages with
      an image size; the variables {"params", "buffers"}; and the text tower that belongs to them.

    Raises:
      ValueError: nothing that loads is there, a field only makes sense for fresh weights, or a
        stage's image size does not suit the model.
    """
    text, asked = clip and clip.text_tower(), config.model
    if clip is not None and not config.init_from:
        config = with_text(config, clip)
    if config.init_encoder:
        if config.init_from:
            raise ValueError("init_encoder: expected alone, not together with init_from")
        variables = load_mae(config.init_encoder, config.model, jax.random.key(config.seed))
    elif config.init_from:
        if config.structured_start:
            raise ValueError(
                "structured_start: is about fresh weights, and init_from gives trained ones; leave "
                "one of them out (--no-structured-start or --init-from '')"
            )
        start = load(config.init_from)
        config = sized_like(config, start.config)
        variables, text = dict(start.params), text or start.text
        if clip is not None and config.model.text_width != clip.config.embed_dim:
            config = with_text(config, clip)
            key = jax.random.key(config.seed)
            fresh = sam_model.init(config.model, key)["params"]
            prompts = variables["params"]["prompt_encoder"]
            prompts = prompts | {"text_proj": fresh["prompt_encoder"]["text_proj"]}
            variables["params"] = variables["params"] | {"prompt_encoder": prompts}
    else:
        key = jax.random.key(config.seed)
        variables = sam_model.init(config.model, key)
        if config.structured_start:
            variables = structured_start(variables, config.model)
    if config.init_decoder:
        config, variables = with_decoder(config, variables, asked.draw_boxes)
    return with_image_sizes(config), variables, text


def with_decoder(config: TrainConfig, variables: dict, draws: bool) -> tuple[TrainConfig, dict]:
    """Config and variables with the prompt encoder and mask decoder of `config.init_decoder`.

    Args:
      config: the run's, its `model` with the sizes of the variables.
      variables: {"params", "buffers"}, of which the encoder stays, and its neck if it fits.
      draws: whether boxes are drawn whatever that decoder is used to.

    Raises:
      ValueError: nothing that loads is there, or one of the models has a text head.
    """
    name = config.init_decoder
    try:
        start = load(name)
        taken, sizes = jax.device_get(start.params), start.config
    except ValueError as error:
        raise ValueError(f"init_decoder: {error}") from error
    fits = config.model.embed_dim == sizes.embed_dim
    config = with_decoder_sizes(config, sizes, draws)
    parts = {part: x for part, x in taken["params"].items() if part != "image_encoder"}
    for layer in parts["mask_decoder"]["transformer"].values():
        if "lin1" in layer:
            layer |= narrowed(layer, config.model.decoder_mlp_width)
    encoder = variables["params"]["image_encoder"]
    if not fits:
        fresh = sam_model.init(config.model, jax.random.key(config.seed))["params"]["image_encoder"]
        encoder = encoder | {part: x for part, x in fresh.items() if part.startswith("neck")}
    return config, taken | {"params": parts | {"image_encoder": encoder}}


def with_decoder_sizes(config: TrainConfig, sizes: SamConfig, draws: bool) -> TrainConfig:
    """The config whose model has another one's decoder, as narrow as `narrow_decoder` asks.

    Raises:
      ValueError: one of the models has a text head.
    """
    if config.model.text_width or sizes.text_width:
        raise ValueError(
            "init_decoder: a text head belongs to its own decoder, and one of the two models has "
            "one (by init_from, init_decoder or text.clip); leave it or init_decoder out"
        )
    changes = {field: getattr(sizes, field) for field in DECODERS}
    changes["draw_boxes"] = draws or sizes.draw_boxes
    if config.narrow_decoder:
        changes["decoder_mlp_width"] = min(sizes.decoder_mlp_width, config.narrow_decoder)
    return dataclasses.replace(config, model=config.model.replace(**changes))


def narrowed(layer: dict, width: int) -> dict:
    """An MLP's "lin1" [D, H] and "lin2" [H, D] with `width` of its units, in their order.

    Those stay whose weights, into them and out of them, have the largest product of lengths.
    """
    into, out = (np.asarray(layer[name]["kernel"]) for name in ("lin1", "lin2"))
    weight = np.linalg.norm(into, axis=0) * np.linalg.norm(out, axis=1)
    kept = np.sort(np.argsort(-weight, kind="stable")[:width])
    return {
        "lin1": {"kernel": into[:, kept], "bias": np.asarray(layer["lin1"]["bias"])[kept]},
        "lin2": layer["lin2"] | {"kernel": out[kept]},
    }


def sized_like(config: TrainConfig, model: SamConfig) -> TrainConfig:
    """The config with the sizes of another model, computed with as it says."""
    given = {name: getattr(config.model, name) for name in COMPUTED}
    given["draw_boxes"] = config.model.draw_boxes or model.draw_boxes
    try:
        return dataclasses.replace(config, model=model.replace(**given))
    except ValueError as error:
        raise ValueError(
            f"init_from: {error}; the model that it names takes no other (--model.drop-path 0, "
            "--model.remat False, --model.scan-blocks False)"
        ) from error


def with_image_sizes(config: TrainConfig) -> TrainConfig:
    """The config with the model's image size in stages that have none.

    MobileSAM's encoder has no position tables: its image size becomes that of the last stage that
    has steps.

    Raises:
      ValueError: a stage's image size does not suit the model.
    """
    size = config.model.image_size
    stages = tuple(dataclasses.replace(s, image_size=s.image_size or size) for s in config.stages)
    for number, stage in enumerate(stages):
        if stage.image_size % config.model.patch_size:
            raise ValueError(
                f"stages: stage {number + 1} has an image_size of {stage.image_size}; expected a "
                f"multiple of the model's patch size {config.model.patch_size}"
            )
    model = config.model
    if model.encoder == "tiny_vit":
        trained = [stage.image_size for stage in stages if stage.steps]
        model = model.replace(image_size=(trained or [size])[-1])
    return dataclasses.replace(config, model=model, stages=stages)


def with_text(config: TrainConfig, clip: Clip) -> TrainConfig:
    """The config with a text head of the CLIP's width.

    Raises:
      ValueError: the model has one of another width.
    """
    width, wanted = config.model.text_width, clip.config.embed_dim
    if width not in (0, wanted):
        raise ValueError(
            f"text.clip: its embeddings have a width of {wanted}, and the model takes {width}; "
            "give the CLIP that it was trained beside"
        )
    return dataclasses.replace(config, model=config.model.replace(text_width=wanted))


def initial_state(
    config: TrainConfig, variables: dict, optimizer: optax.GradientTransformation, mesh: Mesh
) -> tuple[TrainState, TrainState]:
    """The state before step 0 and its shardings, on the mesh's devices.

    Args:
      config: as `starting_point` gives it.
      variables: likewise; they get adapters where the config has them.
      optimizer: of the run.
      mesh: of the devices.
    """
    if config.lora.rank:
        key = jax.random.key(config.seed + 2)
        variables = variables | {"params": add_adapters(variables["params"], config.lora, key)}
    variables = jax.device_get(variables)
    averaged = bool(config.optim.ema)
    shapes = jax.eval_shape(lambda v: init_state(v, optimizer, averaged), variables)
    shardings = state_shardings(mesh, shapes)
    make = jax.jit(lambda v: init_state(v, optimizer, averaged), out_shardings=shardings)
    return make(variables), shardings
