"""How much the stored precision of exported weights changes the masks.

    python -m tests.benchmarks.exported --data ../shared/data/val

Writes the bundled model as ONNX in float32, float16 and int8, asks each for masks from one point
and from one box of every true mask, and prints the mean IoU of its masks with float32's. Needs
`pip install '.[onnx]'`.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
from tqdm import tqdm

import sam_jax
from sam_jax.data.open_source import open_source
from sam_jax.inference.export import onnx_files
from sam_jax.inference.predictor import frames
from sam_jax.inference.prompts import Prompt, to_slots
from sam_jax.models.prompt_encoder import EMPTY, draw_boxes
from sam_jax.ops.clicks import iou
from sam_jax.ops.masks import upscale_masks
from sam_jax.ops.rle import decode

PRECISIONS = ("float32", "float16", "int8")
MOST = 12  # masks of a photo


class Files:
    """The three files of one precision, and masks by them."""

    def __init__(self, folder: Path, sam, precision: str) -> None:
        folder.mkdir()
        onnx_files.write(folder, sam, precision=precision)
        self.config = sam.config
        self.sessions = {
            file.stem: onnxruntime.InferenceSession(file) for file in folder.glob("*.onnx")
        }

    def embed(self, photo: np.ndarray) -> dict:
        """What the decoders take of a photo."""
        images, hw = frames([photo], self.config.image_size)
        session = self.sessions["encoder"]
        names = [x.name for x in session.get_outputs()]
        found = session.run(None, {"images": images, "input_hw": hw})
        return dict(zip(names, found, strict=True)) | {"hw": photo.shape[:2], "frame": hw[0]}

    def mask(self, embedded: dict, prompt: Prompt) -> np.ndarray:
        """bool [H, W]: the likeliest of three."""
        side, patch = self.config.image_size, self.config.patch_size
        prompts = to_slots([prompt], embedded["hw"], side)
        if self.config.draw_boxes:
            prompts = draw_boxes(prompts, (side // patch,) * 2, patch)
        spare = onnx_files.SLOTS - prompts.labels.shape[2]
        fed = {
            "points": np.pad(prompts.points, ((0, 0), (0, 0), (0, spare), (0, 0))),
            "labels": np.pad(prompts.labels, ((0, 0), (0, 0), (0, spare)), constant_values=EMPTY),
        }
        if prompts.masks is not None:
            fed |= {"masks": prompts.masks, "has_mask": prompts.has_mask}
        session = self.sessions["decoder" if prompts.masks is None else "decoder-mask"]
        for one in session.get_inputs():
            fed.setdefault(one.name, embedded.get(one.name))
        logits, scores = session.run(None, fed)
        chosen = logits[0, 0, 1 + scores[0, 0, 1:].argmax()]
        frame = tuple(int(n) for n in embedded["frame"])
        return upscale_masks(chosen, frame, embedded["hw"], side)


def main() -> None:
    """Prints a row for each precision."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, metavar="DIR", help="folders of photos with masks")
    parser.add_argument("--images", type=int, default=15, help="of each folder")
    args = parser.parse_args()
    sam = sam_jax.load("tiny")
    with tempfile.TemporaryDirectory() as place:
        every = {name: Files(Path(place) / name, sam, name) for name in PRECISIONS}
        sizes = {
            name: sum(f.stat().st_size for f in (Path(place) / name).iterdir()) for name in every
        }
        same: dict[tuple[str, str], list[float]] = {}
        folders = sorted(p for p in Path(args.data).iterdir() if p.is_dir())
        for folder in folders:
            source = open_source(folder)
            for index in tqdm(range(min(args.images, len(source))), folder.name, disable=None):
                record = source[index]
                embedded = {name: files.embed(record["image"]) for name, files in every.items()}
                for rle in record["rles"][:MOST]:
                    for kind, prompt in _prompts(decode(rle)).items():
                        masks = {n: f.mask(embedded[n], prompt) for n, f in every.items()}
                        for name in PRECISIONS[1:]:
                            value = iou(masks[name], masks["float32"])
                            same.setdefault((name, kind), []).append(value)
    print("weights | MB | one point | a box | masks\n---|---|---|---|---")
    print(f"float32 | {sizes['float32'] / 1e6:.1f} | | |")
    for name in PRECISIONS[1:]:
        point, box = (same[name, kind] for kind in ("point", "box"))
        print(
            f"{name} | {sizes[name] / 1e6:.1f} | {np.mean(point):.4f} | {np.mean(box):.4f} "
            f"| {len(point)}"
        )


def _prompts(mask: np.ndarray) -> dict[str, Prompt]:
    """A point inside the mask and its box."""
    y, x = np.nonzero(mask)
    middle = int(np.argmin((x - x.mean()) ** 2 + (y - y.mean()) ** 2))
    point = np.array([[x[middle], y[middle]]], np.float64)
    box = np.array([x.min(), y.min(), x.max() + 1, y.max() + 1], np.float64)
    none = np.zeros((0, 2)), np.zeros(0, np.int32)
    return {
        "point": Prompt(point, np.ones(1, np.int32), None, None, None),
        "box": Prompt(*none, box, None, None),
    }


if __name__ == "__main__":
    main()
