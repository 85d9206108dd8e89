"""Files that run without this package: the model as jax.export programs, as ONNX, as a web page.

--out DIR gets the encoder and the decoders as programs for CPU, CUDA and TPU, the weights, a
manifest, a module that runs them with jax and numpy alone, and a README. --onnx adds encoder.onnx
and decoder.onnx. --web DIR gets a page that segments in the browser, from any file server.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `sam-jax export`."""
    add = parser.add_argument
    add("--out", metavar="DIR", help="folder for the programs; it must be new or empty")
    add(
        "--model",
        default="tiny",
        metavar="NAME",
        help="tiny (bundled, the default), vit_b, vit_l, vit_h, or a checkpoint file or folder",
    )
    add(
        "--image-size",
        type=int,
        metavar="PIXELS",
        help="side of the frame that photos are scaled to; default: the model's own",
    )
    add("--onnx", action="store_true", help="ONNX files too, for one photo and one prompt")
    add(
        "--weights",
        choices=("beside", "inside", "none"),
        default="beside",
        help="in a file beside the programs (the default), in the programs, or left out",
    )
    add(
        "--precision",
        choices=("float32", "float16", "int8"),
        default="float32",
        help="how weights are stored; int8: the encoder's kernels",
    )


def run(args: argparse.Namespace) -> None:
    """Runs `sam-jax export`.

    Raises:
      ValueError, OSError: bad input, in one clear sentence.
    """
    if not args.out:
        raise ValueError("--out: expected a folder; give --out DIR")
    from sam_jax.checkpoint.load import load
    from sam_jax.inference.export import onnx_files, programs
    from sam_jax.inference.predictor import checked_size
    from sam_jax.storage import replacing

    sam = load(args.model)
    side = checked_size(sam.config, args.image_size)
    with replacing(Path(args.out)) as folder:
        folder.mkdir()
        manifest = programs.write(
            folder, sam, image_size=side, weights=args.weights, precision=args.precision
        )
        if args.onnx:
            onnx_files.write(folder, sam, image_size=side, precision=args.precision)
    total = sum(file.stat().st_size for file in Path(args.out).rglob("*") if file.is_file())
    print(f"wrote {len(manifest['programs'])} programs to {args.out}, {total / 1e6:.1f} MB in all")
