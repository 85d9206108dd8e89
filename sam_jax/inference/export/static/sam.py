"""Masks of photos by the programs in this folder. Needs jax and numpy, and nothing else.

    from sam import Sam

    sam = Sam()                                      # or Sam("path/of/this/folder")
    image = sam.embed(photo)                         # uint8 [H, W, 3], red, green, blue
    masks, scores, logits = sam.predict(image, points_xy=[[x, y]], labels=[1])

Coordinates are pixels of the photo. The numbers are those of sam_jax.Predictor on the same device.
"""

import json
import pathlib
import sys

import jax
import numpy as np


class Sam:
    def __init__(self, folder=None, weights=None):
        self.folder = pathlib.Path(folder or pathlib.Path(__file__).parent)
        self.manifest = json.loads((self.folder / "manifest.json").read_text())
        self.side, self.patch = self.manifest["image_size"], self.manifest["patch_size"]
        file = self.manifest["weights"]["file"]
        self.weights = ()  # inside the programs
        if self.manifest["weights"]["where"] == "none" and weights is None:
            raise ValueError(
                "weights: the folder has none; expected {name: array} as in the manifest"
            )
        if weights is not None:
            self.weights = (jax.device_put(weights),)
        elif file:
            arrays = np.load(self.folder / file)
            wide = {k: np.float32(x) if x.dtype == np.float16 else x for k, x in arrays.items()}
            self.weights = (jax.device_put(wide),)
        self._programs = {}

    def program(self, name):
        """A program of the manifest, compiled for each set of shapes that it meets."""
        if name not in self._programs:
            try:
                import flatbuffers  # noqa: F401  jax reads the files with it
            except ImportError:
                sys.path.append(str(self.folder / "vendor"))
            data = (self.folder / self.manifest["programs"][name]["file"]).read_bytes()
            options = self._options() if name.startswith("decoder") else None
            program = jax.export.deserialize(bytearray(data))
            called = jax.jit(program.call, compiler_options=options)
            self._programs[name] = lambda *x: called(*self.weights, *x)
        return self._programs[name]

    def _options(self):
        """What the predictor compiles decoders with on a CPU, if this XLA knows it."""
        options = self.manifest["decoder_on_cpu"]
        try:
            jax.jit(lambda x: x, compiler_options=options)(0.0)
        except jax.errors.JaxRuntimeError:
            return None
        return options

    def embed(self, photo):
        """uint8 [H, W, 3] -> what `predict` takes."""
        photo = np.asarray(photo)
        if photo.dtype != np.uint8 or photo.ndim != 3 or photo.shape[2] != 3:
            raise ValueError(f"photo: expected uint8 [H, W, 3], got {photo.dtype} {photo.shape}")
        scale = self.side / max(photo.shape[:2])
        hw = tuple(max(1, int(n * scale + 0.5)) for n in photo.shape[:2])
        frame = np.zeros((1, self.side, self.side, 3), np.uint8)
        frame[0, : hw[0], : hw[1]] = resize(photo, hw)
        out = self.program("encoder")(frame, np.array([hw], np.int32))
        return {"features": out[0], "parts": out[1:], "hw": photo.shape[:2], "frame_hw": hw}

    def predict(self, image, points_xy=(), labels=None, box_xyxy=None, mask_logits=None, many=None):
        """One prompt: masks bool [K, H, W], scores [K], logits [K, 4h, 4w].

        labels: 1 on the object (all of them, if None), 0 beside it. mask_logits [4h, 4w]: logits of
        an earlier call. many: three masks or one; None: three for a single point, box or mask.
        """
        points = np.array(points_xy, np.float64).reshape(-1, 2)
        given = len(points)
        labels = np.ones(len(points)) if labels is None else np.array(labels)
        boxes = 0 if box_xyxy is None else 1
        if not len(points) and not boxes and mask_logits is None:
            raise ValueError("expected a point, a box or a mask, got none of them")
        if len(labels) != len(points) or not np.isin(labels, (0, 1)).all():
            raise ValueError(f"labels: expected 0 or 1 for each of {len(points)} points")
        alone = len(points) + boxes + (mask_logits is not None) == 1
        if boxes:
            points = np.concatenate([points, np.array(box_xyxy, np.float64).reshape(2, 2)])
            labels = np.append(labels, (2, 3))
        elif len(points):
            points, labels = np.append(points, [[0, 0]], 0), np.append(labels, -1)
        (height, width), hw = image["hw"], image["frame_hw"]
        if len(points) > max(self.manifest["slots"]):
            most = max(self.manifest["slots"]) - (2 if boxes else 1)
            raise ValueError(f"points_xy: expected at most {most} points, got {given}")
        slots = min(s for s in self.manifest["slots"] if s >= len(points))
        xy, kind = np.zeros((1, 1, slots, 2), np.float32), np.full((1, 1, slots), -2, np.int32)
        xy[0, 0, : len(points)] = points * (hw[1] / width, hw[0] / height)
        kind[0, 0, : len(points)] = labels
        if mask_logits is None and boxes and self.manifest["draw_boxes"]:
            mask_logits = self._drawn(*xy[0, 0, len(points) - 2 : len(points)])
        if mask_logits is None:
            out = self.program(f"decoder-{slots}")(xy, kind, image["features"], *image["parts"])
        else:
            mask = np.asarray(mask_logits, np.float32)[None, None]
            has, decode = np.ones((1, 1), bool), self.program(f"decoder-mask-{slots}-single")
            out = decode(xy, kind, image["features"], mask, has)
        chosen = slice(1, None) if (alone if many is None else many) else slice(1)
        logits, scores = (np.asarray(x)[0, 0, chosen] for x in out)
        return enlarge(logits, hw, (height, width), self.side) > 0, scores, logits

    def _drawn(self, low, high):
        """A box, in pixels of the frame, as mask logits."""
        slope, limit = self.manifest["draw_boxes"]
        centre = (np.arange(4 * self.side // self.patch) + 0.5) * (self.patch / 4)
        centre = centre.astype(np.float32)
        x, y = (np.minimum(centre - low[k], high[k] + 1 - centre) for k in (0, 1))
        return np.clip(slope * np.minimum(x, y[:, None]), -limit, limit).astype(np.float32)


def resize(photo, hw):
    """uint8 [H, W, 3] at another size: Pillow's bilinear filter, in its fixed-point arithmetic."""
    for axis in (1, 0):
        old, new = photo.shape[axis], hw[axis]
        if old == new:
            continue
        scale = old / new
        wide = max(scale, 1.0)  # of the filter, in old pixels to each side
        centre = (np.arange(new)[:, None] + 0.5) * scale
        at = np.arange(old)
        first = np.maximum((centre - wide + 0.5).astype(int), 0)
        last = np.minimum((centre + wide + 0.5).astype(int), old)
        weights = np.maximum(1 - abs((at - centre + 0.5) * (1 / wide)), 0)
        weights = np.where((at >= first) & (at < last), weights, 0)
        weights /= weights.cumsum(1)[:, -1:]
        whole = np.floor(weights * 2**22 + 0.5)
        moved = np.moveaxis(photo, axis, 0)
        sums = whole @ moved.reshape(old, -1).astype(np.float64)  # below 2**53: exact
        rounded = np.floor((sums + 2**21) / 2**22)
        photo = np.clip(rounded, 0, 255).astype(np.uint8).reshape(new, *moved.shape[1:])
        photo = np.moveaxis(photo, 0, axis)
    return photo


def enlarge(logits, frame_hw, hw, side):
    """Logits [K, h, w] of the padded frame -> float32 [K, H, W] of the photo, bilinearly."""
    for axis in (2, 1):
        low, crop, size = logits.shape[axis], frame_hw[axis - 1], hw[axis - 1]
        at = np.maximum((np.arange(side) + 0.5) * (low / side) - 0.5, 0.0)
        to_frame = np.float32(_linear(at, low)).astype(np.float64)
        at = (np.arange(size, dtype=np.float32) + np.float32(0.5)) * np.float32(crop / size)
        at = np.maximum(at - np.float32(0.5), 0.0).astype(np.float64)
        first = np.minimum(np.floor(at).astype(int), crop - 1)
        t = (at - first)[:, None]
        second = np.minimum(first + 1, crop - 1)
        matrix = np.float32(to_frame[first] * (1 - t) + to_frame[second] * t)
        taps = np.argsort(matrix == 0, 1, kind="stable")[:, :4]  # what is not 0, in order
        moved, out = np.moveaxis(logits, axis, 0), 0
        for k in range(taps.shape[1]):
            factor = matrix[np.arange(size), taps[:, k]].reshape(-1, 1, 1)
            out = out + factor * moved[taps[:, k]]
        logits = np.moveaxis(out, 0, axis)
    return logits


def _linear(at, old):
    """[len(at), old]: the weights of linear interpolation at places in 0..old - 1."""
    matrix, first = np.zeros((len(at), old)), np.floor(at).astype(int)
    rows = np.arange(len(at))
    np.add.at(matrix, (rows, np.minimum(first, old - 1)), 1 - (at - first))
    np.add.at(matrix, (rows, np.minimum(first + 1, old - 1)), at - first)
    return matrix
