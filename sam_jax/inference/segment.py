"""Masks of a photo, from points, boxes, words or nothing.

Points, one box and one text are one prompt. Several boxes or several texts are several prompts, and
so are the entries of --prompts. With a photo and no prompt everything in it is segmented; with no
photo the bundled one is, from two boxes. A prompt of a single point, box or text gets three
candidate masks.

Written, for --out masks.png: masks.png (the photo with the best mask of each prompt),
masks_candidates.png (the candidates side by side), masks_mask.png (the best mask, 0 and 255; of
several prompts a label map, 0 and 1, 2, ...), masks_mask_1.png ... (one prompt's candidates), and
masks.json (every mask as COCO RLE, with its score).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

DEMO_PHOTO = "photo.jpg"
DEMO_PROMPTS: list[dict] = [{"box": [168, 20, 412, 210]}, {"box": [318, 190, 410, 328]}]
"""What is segmented of the bundled photo, in its pixels, when no photo and no prompt is given."""

THRESHOLDS = (0.88, 0.95)
"""Predicted IoU and stability of automatic masks: the released generator's."""
ENOUGH, FAIR, LIKELIEST = 3, (0.5, 0.8), 12
"""Where fewer masks than ENOUGH pass, those that pass FAIR are shown, and at least the LIKELIEST,
by the mean of both."""
MOST = 500  # masks that are compared with each other

PICTURES = (".png", ".jpg", ".jpeg", ".webp")
CANDIDATE_ROWS, CANDIDATE_SIDE = 6, 480
"""The sheet of candidates: so many prompts at most, each panel so many pixels long at most."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `sam-jax segment`."""
    add = parser.add_argument
    add("photo", nargs="?", metavar="PHOTO", help="a picture file; default: the bundled one")
    add(
        "--point",
        nargs=2,
        type=float,
        metavar=("X", "Y"),
        action="append",
        default=[],
        help="a point on the object, in pixels from the top left corner; repeatable",
    )
    add(
        "--not-point",
        nargs=2,
        type=float,
        metavar=("X", "Y"),
        action="append",
        default=[],
        help="a point that is not on the object; repeatable",
    )
    add(
        "--box",
        nargs=4,
        type=float,
        metavar=("X0", "Y0", "X1", "Y1"),
        action="append",
        default=[],
        help="a box around the object; several boxes are several prompts",
    )
    add(
        "--prompts",
        metavar="FILE.json",
        help='several prompts: [{"points": [[x, y]], "labels": [1], "box": [x0, y0, x1, y1], '
        '"text": "words"}, ...]',
    )
    add(
        "--mask",
        metavar="FILE",
        help="a rough mask as a prompt: a picture of the photo's size, "
        "white on the object, or low-resolution logits (.npy)",
    )
    add(
        "--text",
        metavar="WORDS",
        action="append",
        help="what to segment, for models that take text; several are several prompts",
    )
    add(
        "--model",
        default="tiny",
        metavar="NAME",
        help="tiny (bundled, the default), mobile_sam, vit_b, vit_l, vit_h, or a checkpoint file "
        "or folder",
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--multimask", action="store_true", help="always three candidates a prompt")
    how.add_argument("--single", action="store_true", help="always one mask a prompt")
    add("--out", default="masks.png", metavar="FILE.png", help="default: masks.png")


def run(args: argparse.Namespace) -> None:
    """Runs `sam-jax segment`.

    Raises:
      ValueError, OSError: bad input, in one clear sentence.
    """
    from sam_jax.data.images import read_image
    from sam_jax.inference import command_prompts, files

    out = Path(args.out)
    if out.suffix.lower() not in PICTURES:
        raise ValueError(f"--out: expected a name that ends in .png, .jpg or .webp, got {args.out}")
    prompts = command_prompts.prompts_from_arguments(args)
    if args.photo is None:
        name, source = DEMO_PHOTO, resources.files("sam_jax") / "assets" / DEMO_PHOTO
        prompts = prompts or [command_prompts.CommandPrompt(**entry) for entry in DEMO_PROMPTS]
    else:
        name = source = args.photo
    photo = read_image(source)
    prompts = command_prompts.check(prompts, photo.shape[:2])
    _check_out(out, [args.photo, args.mask, args.prompts])
    files.check_writable(out)

    from sam_jax.checkpoint.load import load

    sam = load(args.model)
    print(f"{name}: {photo.shape[1]} x {photo.shape[0]} pixels, model {sam.name}", flush=True)
    result: dict[str, Any] = {
        "image": {
            "file_name": Path(name).name,
            "width": photo.shape[1],
            "height": photo.shape[0],
        },
        "model": sam.name,
    }
    if prompts:
        written = _segment_prompts(args, sam, photo, prompts, out, result)
    else:
        written = _segment_everything(sam, photo, out, result)
    json_path = out.with_suffix(".json")
    files.write_json(json_path, result)
    print("wrote " + ", ".join(str(path) for path in [*written, json_path]))


def _check_out(out: Path, inputs: list[str | None]) -> None:
    """ValueError where a file that would be written is an input, or somebody else's JSON."""
    json_path = out.with_suffix(".json")
    for path in (Path(name) for name in inputs if name is not None):
        ours = path.name in (out.name, json_path.name)
        ours |= path.stem.startswith((f"{out.stem}_mask", f"{out.stem}_candidates"))
        if ours and path.resolve().parent == out.resolve().parent:
            raise ValueError(f"--out: {out} would write over {path}; choose another name")
    if json_path.exists():
        try:
            known = "model" in json.loads(json_path.read_bytes())
        except (ValueError, TypeError):
            known = False
        if not known:
            raise ValueError(
                f"--out: {json_path}, which would be written, holds something else; choose another "
                "name"
            )


def _segment_prompts(args, sam, photo, prompts, out: Path, result: dict) -> list[Path]:
    """Masks for each prompt: printed, drawn and added to `result`; returns the files written."""
    from sam_jax.inference.predictor import Predictor

    predictor = Predictor(sam)
    embedding = predictor.embed(photo)
    prediction = predictor.predict(
        embedding,
        **_predictor_arguments(args, predictor, embedding, prompts),
        multimask=True if args.multimask else False if args.single else "auto",
    )
    best = prediction.scores.argmax(1)
    result["prompts"] = []
    for i, prompt in enumerate(prompts):
        scores = prediction.scores[i]
        order = [int(k) for k in (-scores).argsort(kind="stable")]
        listed = ", ".join(f"{scores[k]:.3f}" for k in order)
        kind = "1 mask" if len(order) == 1 else f"{len(order)} candidates, best first"
        print(f"prompt {i + 1}, {prompt.describe()}: {kind}, predicted IoU {listed}")
        result["prompts"].append(
            {
                "points": prompt.points,
                "labels": prompt.labels,
                "box": prompt.box,
                "text": prompt.text,
                "best": int(best[i]),
                "masks": [_record(prediction.masks[i, k], scores[k]) for k in range(len(scores))],
            }
        )
    return _write_pictures(photo, prompts, prediction, best, out)


def _predictor_arguments(args, predictor, embedding, prompts) -> dict[str, Any]:
    """The prompts in the predictor's form for several."""
    arguments: dict[str, Any] = {}
    if any(prompt.points for prompt in prompts):
        arguments["points_xy"] = [prompt.points for prompt in prompts]
        arguments["labels"] = [prompt.labels for prompt in prompts]
    if any(prompt.box is not None for prompt in prompts):
        arguments["boxes_xyxy"] = [prompt.box for prompt in prompts]
    if args.mask:
        from sam_jax.inference.command_prompts import read_mask

        mask = read_mask(
            Path(args.mask),
            embedding.image_hw[0],
            embedding.input_hw[0],
            4 * embedding.features.shape[1],
            predictor.image_size,
        )
        arguments["mask_logits"] = [mask]
    if any(prompt.text is not None for prompt in prompts):
        arguments["text"] = [prompt.text for prompt in prompts]
    return arguments


def _record(mask, score) -> dict[str, Any]:
    """One mask in the form of the released records: COCO RLE, area, box XYWH and score."""
    from sam_jax.ops import rle
    from sam_jax.ops.boxes import xyxy_to_xywh
    from sam_jax.ops.masks import mask_boxes

    return {
        "segmentation": rle.encode(mask),
        "area": int(mask.sum()),
        "bbox": xyxy_to_xywh(mask_boxes(mask)).tolist(),
        "predicted_iou": round(float(score), 5),
    }


def _write_pictures(photo, prompts, prediction, best, out: Path) -> list[Path]:
    from PIL import Image

    from sam_jax.inference import files, overlay
    from sam_jax.inference.records import to_label_map

    chosen = [masks[k] for masks, k in zip(prediction.masks, best, strict=True)]
    picture = Image.fromarray(overlay.draw_masks(photo, chosen))
    for prompt in prompts:
        overlay.draw_prompt(picture, prompt.points, prompt.labels, prompt.box)
    for i, mask in enumerate(chosen):
        text = f"{prediction.scores[i, best[i]]:.2f}"
        overlay.write_text(picture, overlay.label_place(mask), text, overlay.colour(i))
    files.write_picture(out, picture)
    written = [out]
    candidates = prediction.scores.shape[1]
    if candidates > 1 and len(prompts) <= CANDIDATE_ROWS:
        written.append(out.with_name(f"{out.stem}_candidates{out.suffix}"))
        sheet = overlay.candidate_sheet(photo, prompts, prediction, CANDIDATE_SIDE)
        files.write_picture(written[-1], sheet)
    written.append(out.with_name(f"{out.stem}_mask.png"))
    if len(prompts) > 1:
        shapes = [{"segmentation": mask, "area": int(mask.sum())} for mask in chosen]
        files.write_labels(written[-1], to_label_map(shapes))
        return written
    files.write_mask(written[-1], chosen[0])
    for k in range(candidates if candidates > 1 else 0):
        written.append(out.with_name(f"{out.stem}_mask_{k + 1}.png"))
        files.write_mask(written[-1], prediction.masks[0, k])
    return written


class _Masks(Sequence):
    """RLEs as a sequence of bool [H, W]; one is decoded at a time, so that memory stays small."""

    def __init__(self, rles: list[dict]) -> None:
        self.rles = rles

    def __len__(self) -> int:
        return len(self.rles)

    def __getitem__(self, index):
        from sam_jax.ops import rle

        return rle.decode(self.rles[index])


def _segment_everything(sam, photo, out: Path, result: dict) -> list[Path]:
    """All masks of the photo; returns the files written."""
    from PIL import Image

    from sam_jax.inference import files, overlay
    from sam_jax.inference.predictor import Predictor
    from sam_jax.inference.records import to_label_map

    predictor, show = Predictor(sam), sys.stderr.isatty()
    records = _automatic_masks(predictor, photo, show, *THRESHOLDS)
    sure = len(records) >= ENOUGH
    if not sure:
        records = _likeliest(_automatic_masks(predictor, photo, show, 0, 0, max_area_ratio=0.95))
    pred_iou, stability = THRESHOLDS if sure else (0, 0)
    result["thresholds"] = {"predicted_iou": pred_iou, "stability_score": stability}
    result["annotations"] = records
    scores = sorted(record["predicted_iou"] for record in records)
    span = f"predicted IoU {scores[0]:.3f} to {scores[-1]:.3f}" if scores else "there is none"
    if sure:
        print(f"{len(records)} masks that the model is sure of: {span}")
    else:
        print(
            f"fewer than {ENOUGH} masks that the model is sure of (predicted IoU above "
            f"{THRESHOLDS[0]}, stability of at least {THRESHOLDS[1]}); the likeliest "
            f"{len(records)}: {span}. A point or a box says more"
        )
    masks = _Masks([record["segmentation"] for record in records])
    files.write_picture(out, Image.fromarray(overlay.draw_masks(photo, masks)))
    label_map = out.with_name(f"{out.stem}_mask.png")
    files.write_labels(label_map, to_label_map(records, image_hw=photo.shape[:2]))
    return [out, label_map]


def _automatic_masks(predictor, photo, show: bool, pred_iou: float, stability: float, **more):
    """Records of everything in the photo whose scores pass."""
    from sam_jax.inference.generator import MaskGenerator

    generator = MaskGenerator(
        predictor,
        pred_iou_thresh=pred_iou,
        stability_score_thresh=stability,
        output_mode="coco_rle",
        **more,
    )
    records = generator.generate(photo, progress=show)
    return [record for record in records if record["area"]]


def _likeliest(records: list[dict]) -> list[dict]:
    """The masks of the best scores, but those that mostly lie in a better one."""
    import numpy as np

    from sam_jax.inference.records import remove_overlaps

    def scores(record):
        return record["predicted_iou"], record["stability_score"]

    best = sorted(records, key=lambda record: -sum(scores(record)))[:MOST]
    ranked = [record | {"rank": -k} for k, record in enumerate(best)]
    kept = remove_overlaps(ranked, max_iou=0.5, max_contained=0.7, by="rank")
    kept = [best[-record["rank"]] for record in kept]
    likeliest = kept[:LIKELIEST]
    likeliest += [one for one in kept[LIKELIEST:] if np.greater(scores(one), FAIR).all()]
    return likeliest
