"""Automatic masks against the released generator: time, its parts, and peak memory, in one run.

    python -m tests.benchmarks.generator [--model tiny] [--photo FILE] [--size W H] [--repeats 2]

Needs PyTorch and the released package. Both sides have the same weights (of the bundled model, or
for vit_b, vit_l and vit_h random ones under which every part matters; what these find is no
picture, but of the same kind and number of arrays) and the same photo, enlarged to `--size`. Each
side runs in a process of its own, which is where peak resident memory comes from; the processes
take turns. A first call compiles and is not counted. The parts are timed in another call, in which
every step waits for the one before, so they add up to a little more than the whole. The allocator
of both keeps freed memory (`train.__main__.keep_memory`): the released side is slower without.

`--alone` leaves the released side out, for photos or models that it has no memory or time for.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import subprocess
import sys
import time
from collections import defaultdict
from importlib import resources

import numpy as np

from train.__main__ import keep_memory

PARTS = ("encoder", "decoder", "enlarging", "stability, boxes", "NMS", "RLE")


def photo_of(args: argparse.Namespace) -> np.ndarray:
    """The photo, enlarged."""
    from PIL import Image

    path = args.photo or resources.files("sam_jax") / "assets" / "photo.jpg"
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB").resize(tuple(args.size), Image.Resampling.BICUBIC))


def arguments_of(args: argparse.Namespace) -> dict:
    """What both generators are given."""
    return {
        "points_per_side": args.points_per_side,
        "pred_iou_thresh": args.pred_iou_thresh,
        "stability_score_thresh": args.stability_score_thresh,
        "crop_n_layers": args.crop_n_layers,
        "output_mode": args.output_mode,
    }


class Watch:
    """Seconds spent in functions, by part."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._undo: list = []

    def on(self, owner, name: str, part: str, wait=lambda x: x) -> None:
        """Times `owner.name`, with the result made ready by `wait`."""
        function = getattr(owner, name)

        def timed(*args, **kwargs):
            start = time.perf_counter()
            try:
                return wait(function(*args, **kwargs))
            finally:
                self.seconds[part] += time.perf_counter() - start

        setattr(owner, name, timed)
        self._undo.append((owner, name, function))

    @contextlib.contextmanager
    def off_after(self):
        """Takes the timers out in the end."""
        yield
        for owner, name, function in self._undo:
            setattr(owner, name, function)


def ours(args: argparse.Namespace):
    """The generator and a function that puts timers in."""
    import jax

    import sam_jax
    from sam_jax.inference import candidates, generator, views

    if args.model == "tiny":
        sam = sam_jax.load("tiny")
    else:
        from sam_jax.checkpoint.names import from_torch, shapes
        from tests.weights import lively_tensors

        config = sam_jax.CONFIGS[args.model]
        params = from_torch(lively_tensors(shapes(config)), config)
        sam = sam_jax.Sam(sam_jax.SamModel(config), params, config, args.model)
    made = sam_jax.MaskGenerator(sam, **arguments_of(args))

    def timers(watch: Watch) -> None:
        wait = jax.block_until_ready
        watch.on(generator, "encode_views", "encoder", wait)
        watch.on(views.CompiledModel, "decode_points", "decoder", wait)
        watch.on(candidates, "cut_out", "enlarging")
        watch.on(candidates, "measure", "enlarging")
        watch.on(candidates, "paint", "enlarging")
        watch.on(candidates, "nms", "NMS")
        watch.on(candidates.rle, "uncompressed_part", "RLE")

    return made, timers


def released(args: argparse.Namespace):
    """Likewise of the released package."""
    import torch

    import sam_jax
    from sam_jax.checkpoint.names import shapes, to_torch
    from tests.reference import build_reference
    from tests.weights import lively_tensors

    config = sam_jax.CONFIGS[args.model]
    reference = build_reference(config)
    if args.model == "tiny":
        tensors = to_torch(sam_jax.load("tiny").params)
    else:
        tensors = lively_tensors(shapes(config))
    reference.load_state_dict({k: torch.tensor(v) for k, v in tensors.items()}, strict=True)
    del tensors
    from segment_anything import SamAutomaticMaskGenerator
    from segment_anything import automatic_mask_generator as module

    made = SamAutomaticMaskGenerator(reference, **arguments_of(args))

    def timers(watch: Watch) -> None:
        watch.on(reference.image_encoder, "forward", "encoder")
        watch.on(reference.prompt_encoder, "forward", "decoder")
        watch.on(reference.mask_decoder, "forward", "decoder")
        watch.on(reference, "postprocess_masks", "enlarging")
        watch.on(module, "calculate_stability_score", "stability, boxes")
        watch.on(module, "batched_mask_to_box", "stability, boxes")
        watch.on(module, "batched_nms", "NMS")
        watch.on(module, "mask_to_rle_pytorch", "RLE")

    return made, timers


def one_side(args: argparse.Namespace) -> None:
    """In a process of its own: prints what was measured as JSON."""
    photo = photo_of(args)
    made, timers = (ours if args.side == "ours" else released)(args)
    if args.side == "ours":
        made.generate(photo)
    start = time.perf_counter()
    records = made.generate(photo)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    watch = Watch()
    if args.parts:
        with watch.off_after():
            timers(watch)
            made.generate(photo)
    result = {"seconds": seconds, "peak_gb": peak / 1e6, "masks": len(records)}
    result["parts"] = watch.seconds
    print(json.dumps(result))


def measure(side: str, parts: bool, argv: list[str]) -> dict:
    """Runs `one_side` in a new process."""
    command = [sys.executable, "-m", "tests.benchmarks.generator", *argv, "--side", side]
    output = subprocess.run(
        command + ["--parts"] * parts, check=True, stdout=subprocess.PIPE, text=True
    )
    return json.loads(output.stdout.strip().splitlines()[-1])


def main(argv: list[str]) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.generator")
    parser.add_argument("--model", default="tiny", choices=("tiny", "vit_b", "vit_l", "vit_h"))
    parser.add_argument("--photo", help="default: the bundled one")
    parser.add_argument("--size", type=int, nargs=2, default=(1800, 1200), metavar=("W", "H"))
    parser.add_argument("--points-per-side", type=int, default=32)
    parser.add_argument("--pred-iou-thresh", type=float, default=0.88)
    parser.add_argument("--stability-score-thresh", type=float, default=0.95)
    parser.add_argument("--crop-n-layers", type=int, default=0)
    modes = ("uncompressed_rle", "coco_rle", "binary_mask")
    parser.add_argument("--output-mode", default=modes[0], choices=modes)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--alone", action="store_true")
    parser.add_argument("--side", choices=("ours", "released"), help=argparse.SUPPRESS)
    parser.add_argument("--parts", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.side:
        keep_memory("tests.benchmarks.generator")
        return one_side(args)
    sides = ("ours",) if args.alone else ("released", "ours")
    runs = {side: [] for side in sides}
    for k in range(args.repeats):
        for side in sides:
            runs[side].append(measure(side, k == 0, argv))
            print(f"{side}: {runs[side][-1]['seconds']:.1f} s", flush=True)
    print(f"\n{args.model}, {args.size[0]} x {args.size[1]} pixels; best of {args.repeats}\n")
    print("| | seconds | peak GB | masks | " + " | ".join(PARTS) + " |")
    print("|---|---|---|---|" + "---|" * len(PARTS))
    for side in sides:
        best = min(runs[side], key=lambda run: run["seconds"])
        parts = runs[side][0]["parts"]
        cells = [f"{parts[name]:.2f}" if name in parts else "" for name in PARTS]
        peak = max(run["peak_gb"] for run in runs[side])
        print(
            f"| {side} | {best['seconds']:.1f} | {peak:.2f} | {best['masks']} | "
            + " | ".join(cells)
            + " |"
        )
    if not args.alone:
        ratio = [min(run["seconds"] for run in runs[side]) for side in ("ours", "released")]
        print(f"\nours / released: {ratio[0] / ratio[1]:.2f} of the time")


if __name__ == "__main__":
    main(sys.argv[1:])
