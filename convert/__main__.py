"""`python -m convert SRC DST [--verify] [--format pth|safetensors|hf|orbax] [--half|--int8]`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

SHOWN = 20
"""Lines about single tensors that an error shows here; `CheckpointError` itself has them all."""


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m convert",
        description="Converts a checkpoint of Segment Anything from one format to another.",
        epilog="examples: python -m convert tiny tiny.pth --verify; "
        "python -m convert sam_vit_b_01ec64.pth vit_b --format hf",
    )
    parser.add_argument(
        "src",
        metavar="SRC",
        help="a model's name (tiny, mobile_sam, vit_b, vit_l, vit_h), a .pth or .pt, a "
        ".safetensors (this project's or Hugging Face's), an Orbax folder or a Hugging Face folder",
    )
    parser.add_argument(
        "dst",
        metavar="DST",
        help="a .pth (PyTorch), a .safetensors (this project's), or a folder (Orbax)",
    )
    parser.add_argument(
        "--format",
        choices=("pth", "safetensors", "hf", "orbax"),
        help="what DST is, if its suffix doesn't say; hf is a folder for transformers.SamModel",
    )
    smaller = parser.add_mutually_exclusive_group()
    smaller.add_argument(
        "--half", action="store_true", help="store float16 numbers (.safetensors only)"
    )
    smaller.add_argument(
        "--int8", action="store_true", help="kernels in eight bits, all else as --half"
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="read DST back, compare it bit for bit, and run both models",
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Converts, prints what was written, and returns the exit code: 0, or 2 after an error."""
    args = parse(argv)
    from sam_jax.checkpoint.strict import CheckpointError

    try:
        convert(args)
    except CheckpointError as error:
        summary, *details = str(error).splitlines()
        print(f"error: {summary}", file=sys.stderr)
        for line in details[:SHOWN]:
            print(line, file=sys.stderr)
        if len(details) > SHOWN:
            print(f"... and {len(details) - SHOWN} more lines", file=sys.stderr)
        return 2
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def convert(args: argparse.Namespace) -> None:
    """Loads, writes, prints and verifies."""
    from convert import report
    from sam_jax.checkpoint import names
    from sam_jax.checkpoint.infer import describe
    from sam_jax.checkpoint.load import format_of, load, save

    dst = Path(args.dst)
    kind = args.format or format_of(dst)
    sam = load(args.src)
    save(sam, dst, kind, half=args.half, int8=args.int8)
    flat = names.flatten(sam.params)
    written = {"pth": names.to_torch, "hf": names.to_hf}.get(kind, names.flatten)(sam.params)
    print(f"{args.src}: {describe(sam.config)} -> {dst} ({kind})")
    print(report.tensor_table(written))
    print(report.part_table(flat))
    print(report.digest(dst, flat))
    if args.verify:
        verify(sam, dst, args.half, args.int8)
    if kind == "pth":
        print(f"\nTo open it with PyTorch:\n\n{report.pytorch_lines(sam.config, dst)}")


def verify(sam, path: Path, half: bool = False, int8: bool = False) -> None:
    """Reads `path` back and compares its numbers and its answers with those of `sam`.

    Raises:
      ValueError: they differ, or the answers are not finite.
    """
    import numpy as np

    from sam_jax.checkpoint import files, names
    from sam_jax.checkpoint.stored import as_stored, widened

    back = files.read(path)
    flat = {name: np.asarray(array) for name, array in names.flatten(sam.params).items()}
    want, got = widened(as_stored(flat, half, int8)), names.flatten(back.variables)
    if sam.text is not None:
        tower = as_stored(sam.text.bundle().tensors, half or int8)
        read = back.text_tower.tensors if back.text_tower else {}
        want |= {f"{files.TEXT_TOWER}/{name}": array for name, array in tower.items()}
        got |= {f"{files.TEXT_TOWER}/{name}": array for name, array in read.items()}
    differing = [
        name
        for name, array in want.items()
        if name not in got
        or array.astype(np.float32).tobytes() != np.asarray(got[name], np.float32).tobytes()
    ]
    if differing or want.keys() != got.keys():
        raise ValueError(f"{path}: {len(differing)} tensors differ from the source: {differing}")
    rounding = "eight bits" if int8 else "float16"
    what = f"the source rounded to {rounding}" if half or int8 else "the source"
    with_tower = "" if sam.text is None else f", {len(tower)} of them the text tower's"
    print(f"verified: {len(want)} tensors are those of {what}, bit for bit{with_tower}")
    if back.config.decoder_heads != sam.config.decoder_heads:
        print(
            f"note: this format doesn't say how many heads the decoder has; {path} is taken for "
            f"one of {back.config.decoder_heads}, unless load(path, config=...) says "
            f"{sam.config.decoder_heads}, as the source has"
        )
    if back.config.draw_boxes != sam.config.draw_boxes:
        says, source = (
            "draws boxes" if c.draw_boxes else "draws no boxes" for c in (back.config, sam.config)
        )
        print(
            f"note: this format doesn't say whether boxes are drawn; {path} is taken for a model "
            f"that {says}, where the source {source}: give load() its config (sam.config of the "
            "source)"
        )
    if back.config.image_size != sam.config.image_size:
        print(
            f"note: this format doesn't say for what image size the model was trained; {path} is "
            f"taken for one of {back.config.image_size}, where the source says "
            f"{sam.config.image_size}: give load() its config, or Predictor() its image_size"
        )
    first, second = _answers(sam.config, sam.params, back.variables)
    for name, a in first.items():
        largest, difference = np.abs(a).max(), np.abs(a - second[name]).max()
        print(f"  {name:16} largest {largest:10.4g}   largest difference {difference:.3g}")
        if not np.isfinite(a).all() or (difference > 0 and not half and not int8):
            raise ValueError(f"{path}: {name} differs from the source's or is not finite")


def _answers(config, *models: dict) -> list[dict]:
    """What each of some variables says of one random picture, with a point and with a box.

    The picture has at most 16 x 16 patches: enough for every number of the model to matter.
    """
    import jax
    import numpy as np

    from sam_jax.models.prompt_encoder import Prompts
    from sam_jax.models.sam import SamModel

    side = config.patch_size * min(config.grid, 16)
    image = np.random.default_rng(0).standard_normal((1, side, side, 3), np.float32)
    box = np.array([[0.2, 0.3], [0.7, 0.8]], np.float32) * side
    prompts = Prompts(
        points=np.stack([[box.mean(0), [0, 0]], box])[None].astype(np.float32),
        labels=np.array([[[1, -1], [2, 3]]], np.int32),
    )
    model = SamModel(config)
    encode = jax.jit(lambda v: model.apply(v, image, method="encode"))
    decode = jax.jit(lambda v, z: model.apply(v, z, prompts, method="decode"))
    answers = []
    for variables in models:
        embedding = encode(variables)
        logits, iou = decode(variables, embedding)
        found = {"embedding": embedding, "mask logits": logits, "predicted IoU": iou}
        answers.append({name: np.asarray(array) for name, array in found.items()})
    return answers


if __name__ == "__main__":
    raise SystemExit(main())
