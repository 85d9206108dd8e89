"""`--model` arguments: a name or a file, and perhaps the precision to compute in."""

from __future__ import annotations

from typing import Any

HELP = "tiny, vit_b, vit_l, vit_h, or a file; @bfloat16 or @float32 behind it sets the precision"
PRECISIONS = ("float32", "bfloat16")


def open_model(text: str) -> tuple[Any, dict[str, Any]]:
    """A Predictor, and what of it results depend on, ready for a journal's settings.

    Args:
      text: see HELP, for example "vit_b@bfloat16".

    Raises:
      ValueError: there is no such model, or it cannot be read.
    """
    from sam_jax.checkpoint.load import load
    from sam_jax.inference.generate import fingerprint
    from sam_jax.inference.predictor import Predictor

    name, _, precision = text.rpartition("@")
    if precision not in PRECISIONS:
        name, precision = text, None
    sam = load(name, dtype=precision)
    about = {"model": text, "weights": fingerprint(sam.params), "dtype": sam.config.dtype}
    return Predictor(sam), about


def images_at_once(predictor: Any) -> int:
    """How many images are worth encoding in one call: several on an accelerator, one on a CPU."""
    compiled = getattr(predictor, "compiled", None)
    return 1 if compiled is None or compiled.on_cpu else 8


def embed_each(predictor: Any, images: list[Any]) -> list[Any]:
    """The embedding of each of some photos uint8 [H, W, 3], encoded together."""
    if len(images) < 2:
        return [predictor.embed(image) for image in images]
    batch = predictor.embed(images)
    return [batch[i] for i in range(len(images))]
