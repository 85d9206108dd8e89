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
        "--web",
        metavar="DIR",
        help="folder for a page that segments in the browser; it must be new or empty",
    )
    add(
        "--model",
        default="tiny",
        metavar="NAME",
        help="tiny (bundled, the default), mobile_sam, vit_b, vit_l, vit_h, or a checkpoint file "
        "or folder",
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
    if not args.out and not args.web:
        raise ValueError("--out: expected a folder; give --out DIR, or --web DIR for a page")
    from sam_jax.checkpoint.load import load
    from sam_jax.inference.export import onnx_files, page, programs
    from sam_jax.inference.predictor import checked_size
    from sam_jax.storage import replacing

    sam = load(args.model)
    how = {
        "image_size": checked_size(sam.config, args.image_size),
        "precision": args.precision,
    }
    if args.out:
        with replacing(Path(args.out)) as folder:
            folder.mkdir()
            programs.write(folder, sam, weights=args.weights, **how)
            if args.onnx:
                onnx_files.write(folder, sam, **how)
        print(f"wrote {args.out}, {_megabytes(args.out)}; its README.md says how to use it")
    if args.web:
        with replacing(Path(args.web)) as folder:
            folder.mkdir()
            page.write(folder, sam, **how)
        print(
            f"wrote {args.web}, {_megabytes(args.web)}; look at it with "
            f"python -m http.server --directory {args.web}"
        )


def _megabytes(folder: str) -> str:
    files = [file for file in Path(folder).rglob("*") if file.is_file()]
    return f"{sum(file.stat().st_size for file in files) / 1e6:.1f} MB"
