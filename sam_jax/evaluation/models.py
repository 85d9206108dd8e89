"""`--model` arguments: a name or a file, and perhaps the precision to compute in."""

from __future__ import annotations

from typing import Any

HELP = (
    "tiny, mobile_sam, vit_b, vit_l, vit_h, or a file; @bfloat16 or @float32 behind it sets the "
    "precision, @int8 rounds the encoder's weights"
)
PRECISIONS: dict[str, dict[str, Any]] = {
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "int8": {"encoder_weights": "int8"},
}


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
        name = text
    sam = load(name, **PRECISIONS.get(precision, {}))
    about = {"model": text, "weights": fingerprint(sam.params), "dtype": sam.config.dtype}
    if sam.text is not None:
        about["text tower"] = fingerprint(sam.text.params)
    return Predictor(sam), about


def images_at_once(predictor: Any) -> int:
    """How many images are worth encoding in one call: several on an accelerator, one on a CPU."""
    compiled = getattr(predictor, "compiled", None)
    return 1 if compiled is None or compiled.on_cpu else 8


def embed_each(predictor: Any, records: list[dict[str, Any]]) -> list[Any]:
    """The embedding of each record's image, encoded together; None for those without a mask."""
    from sam_jax.ops.rle import area

    wanted = [i for i, record in enumerate(records) if any(map(area, record["rles"]))]
    images = [records[i]["image"] for i in wanted]
    found: list[Any] = [None] * len(records)
    batch = predictor.embed(images) if len(images) > 1 else list(map(predictor.embed, images))
    for k, i in enumerate(wanted):
        found[i] = batch[k]
    return found
