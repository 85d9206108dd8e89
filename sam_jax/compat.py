"""The names of the released package, so that a script changes one import line.

    from segment_anything import sam_model_registry, SamPredictor, SamAutomaticMaskGenerator
    from sam_jax.compat import sam_model_registry, SamPredictor, SamAutomaticMaskGenerator

Arguments, defaults, shapes, fields and numbers are those of the released code. Where that returns
tensors, PyTorch tensors come back if tensors were given, otherwise numpy arrays; PyTorch is never
imported here. What differs: bad arguments raise ValueError where the released code asserts, and
all runs where JAX runs, so `.to(device)` moves the model only to a device that JAX has.
"""

from __future__ import annotations

import sys
import types
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from sam_jax.checkpoint.infer import describe, same_shapes
from sam_jax.checkpoint.load import NAMES, load
from sam_jax.inference.arrays import as_given, host
from sam_jax.inference.compiled import CompiledModel, use_compilation_cache
from sam_jax.inference.generator import MaskGenerator
from sam_jax.inference.longest_side import ResizeLongestSide
from sam_jax.models.config import CONFIGS, SamConfig
from sam_jax.models.prompt_encoder import BOTTOM_RIGHT, NOT_A_POINT, TOP_LEFT, Prompts
from sam_jax.models.sam import PIXEL_MEAN, PIXEL_STD, SamModel, init
from sam_jax.ops.masks import upscale_logits, upscale_masks
from sam_jax.ops.transforms import pad_to_frame

__all__ = [
    "ResizeLongestSide",
    "Sam",
    "SamAutomaticMaskGenerator",
    "SamPredictor",
    "build_sam",
    "build_sam_mobile_sam",
    "build_sam_tiny",
    "build_sam_vit_b",
    "build_sam_vit_h",
    "build_sam_vit_l",
    "sam_model_registry",
]


class Sam:
    """A model in the shape that the released scripts expect.

    Args:
      config: SamConfig.
      params: variables {"params", "buffers"}.

    Attributes:
      mask_threshold, image_format: as released, 0.0 and "RGB".
      image_encoder: has `img_size`.
    """

    mask_threshold: float = 0.0
    image_format: str = "RGB"

    def __init__(self, config: SamConfig, params: Mapping, name: str = "") -> None:
        self.config, self.params, self.name = config, params, name
        self.model = SamModel(config)
        self.image_encoder = types.SimpleNamespace(img_size=config.image_size)
        self.pixel_mean, self.pixel_std = (
            np.array(values, np.float32)[:, None, None] for values in (PIXEL_MEAN, PIXEL_STD)
        )
        self._compiled: CompiledModel | None = None

    @property
    def compiled(self) -> CompiledModel:
        """The compiled halves of the model, made when first used."""
        if self._compiled is None:
            use_compilation_cache()
            self._compiled = CompiledModel(self.config, self.params)
        return self._compiled

    @property
    def device(self) -> str:
        """Where the model runs, in a word that PyTorch understands where it is in use."""
        leaf = jax.tree.leaves(self.params)[0]
        platform = (
            next(iter(leaf.devices())).platform
            if isinstance(leaf, jax.Array)
            else (jax.default_backend())
        )
        torch = sys.modules.get("torch")
        if platform == "gpu":
            return "cuda" if torch is None or torch.cuda.is_available() else "cpu"
        return "cpu" if torch is not None else platform

    def to(self, device: Any = None, *args: Any, **kwargs: Any) -> Sam:
        """Moves to "cpu", "cuda" or "tpu" if JAX has it; warns and stays where it is if not."""
        kind = str(device).split(":")[0].lower()
        kind = {"cuda": "gpu"}.get(kind, kind)
        try:
            target = jax.devices(kind)[0]
        except RuntimeError:
            warnings.warn(
                f"JAX has no device {device!s}; the model stays on {jax.default_backend()}",
                stacklevel=2,
            )
            return self
        self.params = jax.device_put(self.params, target)
        self._compiled = None
        return self

    def cuda(self) -> Sam:
        """`.to("cuda")`."""
        return self.to("cuda")

    def cpu(self) -> Sam:
        """`.to("cpu")`."""
        return self.to("cpu")

    def eval(self) -> Sam:
        """Itself: there is no other mode here."""
        return self

    def postprocess_masks(self, masks: Any, input_size: Any, original_size: Any) -> Any:
        """Low-resolution logits BxCxhxw -> logits BxCxHxW without padding, at the original size."""
        side = self.image_encoder.img_size
        hw = tuple(int(n) for n in original_size)
        return as_given(upscale_logits(host(masks), tuple(input_size), hw, side), masks)

    def __call__(
        self, batched_input: list[dict[str, Any]], multimask_output: bool
    ) -> list[dict[str, Any]]:
        """Masks for a batch of images with their prompts, as the released `Sam.forward`.

        Args:
          batched_input: for each image "image" 3xHxW already resized, "original_size" (H, W), and
            any of "point_coords" BxNx2, "point_labels" BxN, "boxes" Bx4, "mask_inputs" Bx1xhxw,
            coordinates in pixels of the resized image.
          multimask_output: three masks a prompt, or one.

        Returns:
          For each image {"masks" bool BxCxHxW, "iou_predictions" BxC, "low_res_logits" BxCxhxw}.
        """
        outputs = []
        for record in batched_input:
            predictor = SamPredictor(self)
            predictor.set_torch_image(record["image"][None], record["original_size"])
            found = predictor.predict_torch(
                record.get("point_coords"),
                record.get("point_labels"),
                record.get("boxes"),
                record.get("mask_inputs"),
                multimask_output,
            )
            # As tensors too where the image alone is one.
            masks, scores, logits = (as_given(host(v), *record.values()) for v in found)
            outputs.append({"masks": masks, "iou_predictions": scores, "low_res_logits": logits})
        return outputs

    forward = __call__


class SamPredictor:
    """The released predictor: `set_image` once, `predict` often."""

    def __init__(self, sam_model: Any) -> None:
        if not isinstance(sam_model, Sam):
            sam_model = Sam(sam_model.config, sam_model.params, getattr(sam_model, "name", ""))
        self.model = sam_model
        self.transform = ResizeLongestSide(sam_model.image_encoder.img_size)
        self.reset_image()

    def reset_image(self) -> None:
        """Forgets the image."""
        self.is_image_set = False
        self._features: jax.Array | None = None
        self.original_size: tuple[int, int] | None = None
        self.input_size: tuple[int, int] | None = None

    @property
    def device(self) -> str:
        """The model's."""
        return self.model.device

    @property
    def features(self) -> Any:
        """The image embedding, 1xCxhxw float32, or None; may be set to one that was kept."""
        if self._features is None:
            return None
        return as_given(np.asarray(self._features).transpose(0, 3, 1, 2))

    @features.setter
    def features(self, value: Any) -> None:
        array = None if value is None else host(value).astype(np.float32)
        if array is None:
            self._features = None
            return
        if array.ndim != 4 or array.shape[:2] != (1, self.model.config.embed_dim):
            raise ValueError(
                f"features: expected 1x{self.model.config.embed_dim}xhxw, got {array.shape}"
            )
        self._features = jax.numpy.asarray(array.transpose(0, 2, 3, 1))

    def set_image(self, image: np.ndarray, image_format: str = "RGB") -> None:
        """Encodes an image.

        Args:
          image: uint8 HxWx3.
          image_format: order of its channels, "RGB" or "BGR".

        Raises:
          ValueError: another format, shape or dtype.
        """
        if image_format not in ("RGB", "BGR"):
            raise ValueError(f"image_format: expected 'RGB' or 'BGR', got {image_format!r}")
        image = np.asarray(image)
        if image_format != self.model.image_format:
            image = image[..., ::-1]
        resized = self.transform.apply_image(image)
        self.set_torch_image(resized.transpose(2, 0, 1)[None], image.shape[:2])

    def set_torch_image(self, transformed_image: Any, original_image_size: Any) -> None:
        """Encodes an image that has been resized already.

        Args:
          transformed_image: 1x3xHxW in 0..255, its longer side the model's `img_size`.
          original_image_size: (H, W) before resizing.

        Raises:
          ValueError: another shape.
        """
        image, side = host(transformed_image), self.model.image_encoder.img_size
        if image.ndim != 4 or image.shape[:2] != (1, 3) or max(image.shape[2:]) != side:
            raise ValueError(
                f"transformed_image: expected 1x3xHxW with long side {side}, got {image.shape}"
            )
        self.reset_image()
        self.original_size = tuple(int(n) for n in original_image_size)
        self.input_size = tuple(image.shape[2:])
        frame = pad_to_frame(image[0].transpose(1, 2, 0), side)[None]
        if frame.dtype != np.uint8:
            frame = frame.astype(np.float32)
        self._features = self.model.compiled.encode(frame, np.array([self.input_size]))
        self.is_image_set = True

    def predict(
        self,
        point_coords: np.ndarray | None = None,
        point_labels: np.ndarray | None = None,
        box: np.ndarray | None = None,
        mask_input: np.ndarray | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Masks for one prompt on the image.

        Args:
          point_coords: Nx2, (x, y) in pixels.
          point_labels: N, 1 foreground, 0 background.
          box: 4, x0, y0, x1, y1 in pixels.
          mask_input: 1xhxw low-resolution logits of an earlier call.
          multimask_output: three masks, or one.
          return_logits: logits in place of masks.

        Returns:
          Masks bool (or logits float32) CxHxW, predicted IoU float32 C, low-resolution logits
          float32 Cxhxw.

        Raises:
          RuntimeError: no image has been set.
          ValueError: points without labels, or wrong shapes.
        """
        self._require_image()
        if point_coords is not None:
            if point_labels is None:
                raise ValueError("point_labels: expected one for each of point_coords, got None")
            scaled = self.transform.apply_coords(point_coords, self.original_size)
            point_coords, point_labels = scaled[None], np.asarray(point_labels)[None]
        if box is not None:
            box = self.transform.apply_boxes(np.asarray(box), self.original_size)
        if mask_input is not None:
            mask_input = np.asarray(mask_input)[None]
        results = self.predict_torch(
            point_coords, point_labels, box, mask_input, multimask_output, return_logits
        )
        masks, scores, logits = (host(result)[0] for result in results)
        return masks.view(np.ndarray), scores.view(np.ndarray), logits.view(np.ndarray)

    def predict_torch(
        self,
        point_coords: Any,
        point_labels: Any,
        boxes: Any = None,
        mask_input: Any = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> tuple[Any, Any, Any]:
        """Masks for B prompts on the image, coordinates in pixels of the *resized* image.

        Args:
          point_coords: BxNx2 or None.
          point_labels: BxN, 1, 0, or -1 for "not a point".
          boxes: Bx4 or None.
          mask_input: Bx1xhxw or None.
          multimask_output, return_logits: as `predict`.

        Returns:
          Masks bool (or logits float32) BxCxHxW, predicted IoU BxC, low-resolution logits BxCxhxw.

        Raises:
          RuntimeError: no image has been set.
          ValueError: wrong shapes or labels.
        """
        self._require_image()
        given = (point_coords, point_labels, boxes, mask_input)
        prompts = _prompts(*(None if value is None else host(value) for value in given))
        logits, scores = self.model.compiled.decode(self._features, prompts)
        kept = slice(1, None) if multimask_output else slice(0, 1)
        logits, scores = logits[:, kept], scores[:, kept]
        sizes = (self.input_size, self.original_size, self.model.image_encoder.img_size)
        if return_logits:
            masks = upscale_logits(logits, *sizes)
        else:
            masks = upscale_masks(logits, *sizes, self.model.mask_threshold)
        masks, scores, logits = (as_given(value, *given) for value in (masks, scores, logits))
        return masks, scores, logits

    def get_image_embedding(self) -> Any:
        """The embedding of the image, 1xCxhxw float32.

        Raises:
          RuntimeError: no image has been set.
        """
        self._require_image()
        return self.features

    def _require_image(self) -> None:
        if not self.is_image_set:
            raise RuntimeError("no image has been set: call set_image(...) first")


def _prompts(points, labels, boxes, masks) -> Prompts:
    """The released prompt arrays -> the model's slots: points, then "not a point" or corners."""
    if points is not None and (
        labels is None
        or points.ndim != 3
        or points.shape[2] != 2
        or labels.shape != points.shape[:2]
        or not np.isin(labels, (-1, 0, 1)).all()
    ):
        raise ValueError(
            "point_coords and point_labels: expected BxNx2 and BxN with labels 1, 0 or -1, got "
            f"{points.shape} and {None if labels is None else labels.shape}"
        )
    counts = [len(value) for value in (points, boxes, masks) if value is not None] or [1]
    count = counts[0]
    slots = [] if points is None else [(points, labels)]
    if boxes is not None:
        boxes = boxes.reshape(-1, 2, 2)
        slots.append((boxes, np.tile((TOP_LEFT, BOTTOM_RIGHT), (len(boxes), 1))))
    elif points is not None:
        slots.append((np.zeros((count, 1, 2)), np.full((count, 1), NOT_A_POINT)))
    slots = slots or [(np.zeros((count, 0, 2)), np.zeros((count, 0)))]
    if len({len(xy) for xy, _ in slots}) > 1 or counts[-1] not in (1, count):
        raise ValueError(f"prompts: expected the same number B of each kind, got {counts}")
    if masks is not None:
        if masks.ndim != 4 or masks.shape[1] != 1:
            raise ValueError(f"mask_input: expected Bx1xhxw logits, got {masks.shape}")
        shape = (1, count, *masks.shape[2:])
        masks = np.broadcast_to(masks[:, 0].astype(np.float32), shape)
    xy, kinds = (np.concatenate(parts, 1)[None] for parts in zip(*slots, strict=True))
    has_mask = None if masks is None else np.ones((1, count), bool)
    return Prompts(xy.astype(np.float32), kinds.astype(np.int32), masks, has_mask)


class SamAutomaticMaskGenerator(MaskGenerator):
    """The released generator: arguments, defaults and records are those of `MaskGenerator`."""


def _builder(name: str) -> Callable[..., Sam]:
    config = CONFIGS[name]

    def build(checkpoint: Any = None) -> Sam:
        if checkpoint is None:
            params = jax.jit(init, static_argnums=0)(config, jax.random.key(0))
            return Sam(config, params, name)
        named = isinstance(checkpoint, str) and checkpoint in NAMES
        loaded = load(checkpoint, config=None if named else config)
        if not same_shapes(loaded.config, config):
            raise ValueError(
                f"checkpoint: expected weights of {name}, got those of {describe(loaded.config)} "
                f"in {checkpoint}"
            )
        return Sam(loaded.config, loaded.params, name)

    build.__name__ = build.__qualname__ = f"build_sam_{name}"
    build.__doc__ = (
        f"{name} with the weights of `checkpoint` (a .pth or any other that `sam_jax.load` takes), "
        "or with fresh random ones."
    )
    return build


build_sam_vit_h = _builder("vit_h")
build_sam_vit_l = _builder("vit_l")
build_sam_vit_b = _builder("vit_b")
build_sam_mobile_sam = _builder("mobile_sam")
build_sam_tiny = _builder("tiny")
build_sam = build_sam_vit_h

sam_model_registry = {
    "default": build_sam_vit_h,
    "vit_h": build_sam_vit_h,
    "vit_l": build_sam_vit_l,
    "vit_b": build_sam_vit_b,
    "mobile_sam": build_sam_mobile_sam,
    "vit_t": build_sam_mobile_sam,  # as MobileSAM's own package calls it
    "tiny": build_sam_tiny,
}
