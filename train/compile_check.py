"""Whether a training step fits a TPU slice, and how long it takes at least, with no TPU at hand.

    python -m train.compile_check --config configs/sa1b_vit_h.py --topology v5e:16x16

compiles the step that `python -m train` would run, by the TPU's own compiler (`pip install
libtpu`), for a slice that exists only by name. Exit code 0: it fits, 1: it does not, 2: wrong
input.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import os
import re
import sys
import time

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from sam_jax.checkpoint.clip import load_clip
from sam_jax.checkpoint.load import load
from sam_jax.models.config import CONFIGS
from sam_jax.models.sam import init
from sam_jax.training.chips import Chip, chip_of
from sam_jax.training.config import Stage, TrainConfig
from sam_jax.training.flops import step_flops
from sam_jax.training.lora import add_adapters
from sam_jax.training.optim import make_optimizer
from sam_jax.training.sharding import batch_sharding, make_mesh, replicated, state_shardings
from sam_jax.training.step import TrainState, init_state, make_step
from train.start import read_config, sized_like, with_decoder_sizes, with_image_sizes, with_text

GB = 1e9
QUIET = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "TPU_LOG_DIR": "disabled",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
"""So that libtpu neither looks for a TPU nor fills the screen."""


@dataclasses.dataclass(frozen=True)
class Report:
    """A step on a slice. Bytes are those of one chip."""

    config: TrainConfig
    stage: Stage
    topology: str
    chip: Chip
    chips: int
    parameters: int
    arguments: float
    """State and batch."""
    temporaries: float
    used: float
    """What the program needs in all; where it does not fit, by the compiler's message."""
    fits: bool
    seconds_to_compile: float

    @property
    def at_once(self) -> int:
        """Images that a chip computes at a time."""
        return self.stage.batch_size // self.config.devices.accumulate // self.chips

    def floors(self) -> dict[str, float]:
        """Seconds that a step takes at least: for its arithmetic, its memory and its links."""
        _, hardware = step_flops(self.config, self.stage)
        return {
            "arithmetic": hardware / self.chips / self.chip.peak_flops,
            "memory": 2 * (self.arguments + self.temporaries) / self.chip.hbm_bandwidth,
            "links": link_bytes(self.config, self.parameters, self.chips)
            / self.chip.link_bandwidth,
        }


def link_bytes(config: TrainConfig, parameters: int, chips: int) -> float:
    """Bytes that a chip receives in a step, in float32, were every parameter split over 'fsdp'.

    A ring of n passes (n - 1) / n of what it gathers or sums: the parameters are gathered for the
    forward and again for the backward pass, gradients are summed into parts, and the parts then
    over the copies along 'data', twice (sum and spread). The first three happen for every part of
    an accumulated batch.
    """
    fsdp, size = config.devices.fsdp, 4.0 * parameters
    copies = chips // fsdp
    shared = 3 * config.devices.accumulate * size * (fsdp - 1) / fsdp
    return shared + 2 * size / fsdp * (copies - 1) / copies


def slice_mesh(topology: str, fsdp: int) -> Mesh:
    """A mesh over the chips of a slice that need not exist.

    Raises:
      ValueError: libtpu is missing, or knows no such slice; or `fsdp` does not divide its chips.
    """
    from jax.experimental import topologies

    if importlib.util.find_spec("libtpu") is None:
        raise ValueError("the TPU compiler is missing: pip install libtpu")
    # A v4 chip's two cores count as one device on real machines too.
    options = {"chip_config_name": "megacore"} if topology.startswith("v4:") else {}
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology, **options)
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"--topology: expected a generation and a shape such as v4:4x4x4, v5e:16x16, "
            f"v5p:4x4x4 or v6e:8x8, got {topology!r} ({reason})"
        ) from error
    return make_mesh(fsdp, found.devices)


def resolved(config: TrainConfig) -> TrainConfig:
    """The config with the sizes that `python -m train` would find in the files that it names.

    Raises:
      ValueError: one of them cannot be read.
    """
    asked = config.model
    if config.init_from:
        known = CONFIGS.get(config.init_from)  # the released weights need not be there
        config = sized_like(config, known or load(config.init_from).config)
    if config.text.clip:
        config = with_text(config, load_clip(config.text.clip))
    if config.init_decoder:
        name = config.init_decoder
        known = CONFIGS.get(name)
        config = with_decoder_sizes(config, known or load(name).config, asked.draw_boxes)
    return with_image_sizes(config)


def state_shapes(config: TrainConfig) -> TrainState:
    """Shapes of the state of a run; nothing is computed."""

    def make(key):
        variables = init(config.model, key)
        if config.lora.rank:
            adapted = add_adapters(variables["params"], config.lora, key)
            variables = variables | {"params": adapted}
        optimizer = make_optimizer(config.optim, config.model, config.total_steps)
        return init_state(variables, optimizer, bool(config.optim.ema))

    return jax.eval_shape(make, jax.random.key(0))


def batch_shapes(config: TrainConfig, stage: Stage) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a batch of the stage, as `train.data.stage_batches` makes them."""
    b, n, side = stage.batch_size, stage.max_masks, stage.image_size
    mask = stage.mask_size or 4 * side // config.model.patch_size
    shapes = {
        "image": ((b, side, side, 3), jnp.uint8),
        "image_hw": ((b, 2), jnp.int32),
        "masks": ((b, n, mask, mask), jnp.uint8),
        "boxes_xyxy": ((b, n, 4), jnp.float32),
        "mask_valid": ((b, n), jnp.bool_),
    }
    grid = side // config.model.patch_size
    if config.cache_embeddings:
        shapes["embedding"] = ((b, grid, grid, config.model.embed_dim), jnp.float16)
        del shapes["image"]
    if config.text.clip:
        shapes["text"] = shapes["look"] = ((b, n, config.model.text_width), jnp.float32)
    if config.loss.teacher_weight:  # the teacher's own program is another one
        shapes["teacher"] = ((b, grid, grid, config.model.embed_dim), jnp.float32)
    if config.loss.answers_weight:
        shapes["points"], shapes["labels"] = ((b, n, 2, 2), jnp.float32), ((b, n, 2), jnp.int32)
        shapes["answers"] = ((b, n, 4, 4 * grid, 4 * grid), jnp.float32)
        shapes["answers_iou"] = ((b, n, 4), jnp.float32)
    return {name: jax.ShapeDtypeStruct(*shape) for name, shape in shapes.items()}


def _placed(shapes, shardings):
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings
    )


def check_division(config: TrainConfig, stage: Stage, chips: int) -> None:
    """ValueError where the images of a step cannot be shared equally by the chips."""
    parts = config.devices.accumulate
    if stage.batch_size % (parts * chips):
        advice = "a smaller slice" if stage.batch_size < parts * chips else "another slice"
        advice += " or a lower --devices.accumulate" if parts > 1 else ""
        raise ValueError(
            f"stages: {stage.batch_size} images a step in {parts} parts are no equal number for "
            f"{chips} chips; every chip takes whole images, so take {advice}, or another "
            f"batch_size (--devices.fsdp shares parameters, not images)"
        )


def compile_step(config: TrainConfig, stage: Stage, topology: str) -> Report:
    """Compiles the step of a stage for a slice.

    Raises:
      ValueError: wrong input, see `slice_mesh` and `check_division`.
    """
    mesh = slice_mesh(topology, config.devices.fsdp)
    chip = chip_of(mesh.devices.flat[0].device_kind)
    if chip is None:
        raise ValueError(f"--topology: nothing is known of {mesh.devices.flat[0].device_kind}")
    check_division(config, stage, mesh.size)
    shapes = state_shapes(config)
    shardings = state_shardings(mesh, shapes)
    optimizer = make_optimizer(config.optim, config.model, config.total_steps)
    step = make_step(config, stage, optimizer, shardings)
    key = jax.eval_shape(lambda: jax.random.key(0))
    batch = batch_shapes(config, stage)
    batch = _placed(batch, {name: batch_sharding(mesh) for name in batch})
    lowered = step.lower(_placed(shapes, shardings), batch, _placed(key, replicated(mesh)))
    start = time.time()
    arguments = temporaries = 0.0
    try:
        memory = lowered.compile().memory_analysis()
        arguments = memory.argument_size_in_bytes
        temporaries = memory.temp_size_in_bytes
        outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
        used, fits = arguments + temporaries + max(outputs, 0), True
    except jax.errors.JaxRuntimeError as error:
        used, fits = overflow(str(error)), False
        if used is None:
            raise
    return Report(
        config,
        stage,
        topology,
        chip,
        mesh.size,
        sum(x.size for x in jax.tree.leaves(shapes.params)),
        arguments,
        temporaries,
        used,
        fits and used <= chip.hbm_bytes,
        time.time() - start,
    )


def overflow(message: str) -> float | None:
    """The bytes that a program wants, out of the compiler's complaint; None for another one."""
    for pattern in (
        r"Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm",
        r"HLO temporaries \(([\d.]+)([KMGT]?)\) exceeds available HBM",  # at least that
    ):
        if found := re.search(pattern, message):
            return float(found[1]) * 1024.0 ** " KMGT".index(found[2] or " ")
    return None


def knobs(report: Report) -> list[str]:
    """What to change where a step does not fit, most useful first."""
    config, chips = report.config, report.chips
    found = []
    if not config.model.remat and config.model.encoder == "vit":
        found.append("--model.remat True: encoder blocks are computed again in the backward pass")
    if not config.prompts.remat:
        found.append("--prompts.remat True: so are the decoder's rounds")
    if config.prompts.unroll:
        found.append("--prompts.unroll False: the rounds in a loop share their memory")
    if report.at_once > 1:
        parts = config.devices.accumulate * report.at_once
        found.append(f"--devices.accumulate {parts}: one image a chip at a time")
    if config.devices.fsdp < chips:
        found.append(
            f"--devices.fsdp {min(chips, 4 * config.devices.fsdp)}: more chips share one copy of "
            "parameters and optimiser"
        )
    found.append(f"fewer than {report.stage.max_masks} masks an image (max_masks of the stage)")
    return [*found, "a slice of chips with more memory"]


def describe(report: Report) -> str:
    """The report as a short table, and advice where the step does not fit."""
    config, stage, chip = report.config, report.stage, report.chip
    model, hardware = step_flops(config, stage)
    fsdp, hbm = config.devices.fsdp, chip.hbm_bytes
    lines = {
        "slice": f"{report.topology}: {report.chips} {chip.name} chips, "
        f"data {report.chips // fsdp} x fsdp {fsdp}",
        "images": f"{stage.batch_size} a step, {report.at_once} a chip at a time, "
        f"{config.devices.accumulate} time(s)",
        "parameters": f"{report.parameters / 1e6:.1f} M",
    }
    if report.fits:
        floors = report.floors()
        slowest = max(floors.values())
        lines |= {
            "bytes a chip": f"{report.used / GB:.2f} GB of {hbm / GB:.2f}: "
            f"arguments {report.arguments / GB:.2f}, temporaries {report.temporaries / GB:.2f}",
            "TFLOP a step": f"{model / 1e12:.1f}, {hardware / 1e12:.1f} with what is done twice",
            "roofline": f"{slowest:.3f} s a step: the most of "
            + ", ".join(f"{name} {seconds:.3f}" for name, seconds in floors.items()),
            "images/s": f"at most {stage.batch_size / slowest:.0f}",
        }
    lines["compiled in"] = f"{report.seconds_to_compile:.0f} s"
    if report.fits:
        lines["fits"] = "yes"
    else:
        over = report.used - hbm
        lines["fits"] = f"no: it needs {report.used / GB:.2f} GB a chip, {over / GB:.2f} too many"
    text = "\n".join(f"{name:14}{value}" for name, value in lines.items())
    if not report.fits:
        text += "\nTurn one of these:\n" + "\n".join(f"  {knob}" for knob in knobs(report))
    return text


HEAD = (
    "| config | slice | chips | fsdp | accumulate | GB a chip | of | TFLOP a step | "
    "roofline s | images/s |\n|---|---|---|---|---|---|---|---|---|---|"
)


def row(report: Report) -> str:
    """The report as a row under HEAD."""
    devices, chip = report.config.devices, report.chip
    cells = [report.config.name, report.topology, report.chips, devices.fsdp, devices.accumulate]
    cells += [f"{report.used / GB:.1f}", f"{chip.hbm_bytes / GB:.1f}"]
    cells.append(f"{step_flops(report.config, report.stage)[0] / 1e12:.0f}")
    if report.fits:
        slowest = max(report.floors().values())
        cells += [f"{slowest:.2f}", f"{report.stage.batch_size / slowest:.0f}"]
    else:
        cells += ["does not fit", ""]
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def suited(config: TrainConfig, stage: Stage, chips: int) -> TrainConfig:
    """The config with one image a chip at a time, and parameters shared by up to 16 chips."""
    fsdp = next(n for n in (16, 8, 4, 2, 1) if chips % n == 0)
    devices = dataclasses.replace(
        config.devices, fsdp=fsdp, accumulate=max(stage.batch_size // chips, 1)
    )
    return dataclasses.replace(config, devices=devices)


def _arguments(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        prog="python -m train.compile_check",
        description=__doc__.split("\n\n")[0],
        epilog="Further options are fields of the config, as for python -m train.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", required=True, metavar="FILE")
    parser.add_argument(
        "--topology", required=True, nargs="+", metavar="SLICE", help="v5e:16x16, v4:4x4x4, ..."
    )
    parser.add_argument("--stage", type=int, default=1, help="which of the config's, from 1")
    parser.add_argument(
        "--table",
        action="store_true",
        help="rows in Markdown, slice after slice until one fits, with devices.fsdp and "
        "devices.accumulate chosen for each",
    )
    return parser.parse_known_args(argv)


def run(argv: list[str]) -> int:
    """The command but for its errors: 0 where the step fits one of the slices, else 1."""
    args, fields = _arguments(argv)
    config = resolved(read_config(["--config", args.config, *fields]))
    if not 1 <= args.stage <= len(config.stages):
        raise ValueError(f"--stage: expected 1 to {len(config.stages)}, got {args.stage}")
    stage = config.stages[args.stage - 1]
    if args.table:
        print(HEAD, flush=True)
    fit = False
    for topology in args.topology:
        if args.table:
            config = suited(config, stage, slice_mesh(topology, 1).size)
        report = compile_step(config, stage, topology)
        fit |= report.fits
        print(row(report) if args.table else describe(report), flush=True)
        if args.table and fit:
            break
    return 0 if fit else 1


def main() -> int:
    """The command: 0 where it fits, 1 where it does not, 2 for wrong input."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    jax.config.update("jax_platforms", "cpu")  # what compiles needs no device
    try:
        return run(sys.argv[1:])
    except ValueError as error:
        print(f"train.compile_check: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
