"""A page that segments in the browser: static files, the model as ONNX, and onnxruntime-web."""

from __future__ import annotations

import json
import tarfile
from importlib import resources
from pathlib import Path
from typing import Any

from sam_jax.checkpoint.fetch import Released, fetched
from sam_jax.inference.export import onnx_files
from sam_jax.inference.export.programs import MANIFEST, Precision, described, hashed

FILES = ("index.html", "style.css", "page.js", "worker.js", "pixels.js")
RUNTIME = Released(
    "https://registry.npmjs.org/onnxruntime-web/-/onnxruntime-web-1.30.0.tgz",
    "d2228df7e4616bc3348bf504ee888f3bec43789a273f0a63f3e68d203ce3bf71",
)
"""Of Microsoft, under the MIT licence; fetched once into the cache folder, and checked."""
RUNTIME_FILES = (
    *("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"),
    "ort.webgpu.min.mjs",
    *("ort-wasm-simd-threaded.asyncify.mjs", "ort-wasm-simd-threaded.asyncify.wasm"),
)
"""For WebAssembly, and for WebGPU."""


def write(
    folder: Path, sam: Any, *, image_size: int | None = None, precision: Precision = "float32"
) -> None:
    """Writes the page; arguments as for `onnx_files.write`.

    Raises:
      ValueError: the package jax2onnx is missing, onnxruntime-web can't be fetched, or the model is
        too large for a browser.
    """
    model, ort = folder / "model", folder / "ort"
    model.mkdir()
    onnx_files.write(model, sam, image_size=image_size, precision=precision)
    if any(model.glob("*.data")):
        raise ValueError(
            f"precision: a model of this size in {precision} is too large for a browser; give "
            "float16 or int8"
        )
    ort.mkdir()
    with tarfile.open(fetched(RUNTIME, "onnxruntime-web")) as archive:
        for name in RUNTIME_FILES:
            (ort / name).write_bytes(archive.extractfile(f"package/dist/{name}").read())
    side = sam.config.image_size if image_size is None else image_size
    manifest = described(sam, side) | {
        "onnx_slots": onnx_files.SLOTS,
        "files": [hashed(file) for file in sorted(model.iterdir())],
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    own = resources.files("sam_jax.inference.export") / "web"
    for name in FILES:
        (folder / name).write_bytes((own / name).read_bytes())
    photo = resources.files("sam_jax") / "assets" / "photo.jpg"
    (folder / "example.jpg").write_bytes(photo.read_bytes())
