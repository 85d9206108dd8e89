"""What a conversion prints: tables, digests, and the PyTorch lines that open the result."""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from sam_jax.checkpoint.fetch import sha256
from sam_jax.checkpoint.infer import model_name
from sam_jax.checkpoint.mobile_sam import CLASSES
from sam_jax.models.config import SamConfig
from sam_jax.models.tiny_vit import DEPTHS, HEAD_DIM, WIDTHS, WINDOWS

_INDEX = re.compile(r"(?<=[._])(\d+)(?=[./])")


def tensor_table(tensors: Mapping[str, np.ndarray]) -> str:
    """Names and shapes; tensors that differ in one index and have one shape share a line."""
    groups: dict[tuple[str, tuple[int, ...]], list[int]] = defaultdict(list)
    for name, array in tensors.items():
        index = _INDEX.search(name)
        if index:
            name = f"{name[: index.start()]}*{name[index.end() :]}"
        groups[name, tuple(array.shape)].append(int(index[1]) if index else -1)
    lines = []
    for (name, shape), indices in groups.items():
        if indices != [-1]:
            name = name.replace("*", _ranges(sorted(indices)), 1)
        lines.append((name, " x ".join(map(str, shape)) or "scalar", len(indices)))
    wide = max(len(name) for name, _, _ in lines)
    return "\n".join(
        f"  {name:{wide}}  {shape:>20}" + (f"  ({count} tensors)" if count > 1 else "")
        for name, shape, count in lines
    )


def _ranges(indices: list[int]) -> str:
    """[0, 1, 2, 5] -> "{0-2,5}"; a single one as it is."""
    runs: list[list[int]] = []
    for i in indices:
        if runs and i == runs[-1][-1] + 1:
            runs[-1].append(i)
        else:
            runs.append([i])
    text = ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
    return text if len(indices) == 1 else f"{{{text}}}"


def part_table(flat: Mapping[str, np.ndarray]) -> str:
    """Tensors and numbers of each part, from flat own names ("params/image_encoder/...")."""
    parts: dict[str, list[int]] = {
        name: [0, 0]
        for name in ("image_encoder", "prompt_encoder", "mask_decoder", "all parameters", "buffers")
    }
    for name, array in flat.items():
        kind, part = name.split("/")[:2]
        for key in ("buffers",) if kind == "buffers" else (part, "all parameters"):
            parts[key][0] += 1
            parts[key][1] += array.size
    rows = [("part", "tensors", "numbers")]
    rows += [(part, f"{count:,}", f"{size:,}") for part, (count, size) in parts.items()]
    return "\n".join(f"  {part:24}{count:>8}{size:>15}" for part, count, size in rows)


def digest(path: Path, flat: Mapping[str, np.ndarray]) -> str:
    """A line with the SHA-256 of the file, or of the numbers where there are many files."""
    if path.is_file():
        return f"SHA-256 {sha256(path)}  {path}"
    weights = path / "model.safetensors"
    if weights.is_file():
        return f"SHA-256 {sha256(weights)}  {weights}"
    numbers = hashlib.sha256()
    for name in sorted(flat):
        numbers.update(np.ascontiguousarray(flat[name]).view(np.uint8))
    return f"SHA-256 {numbers.hexdigest()}  of the numbers, by sorted name, in {path}"


def pytorch_lines(config: SamConfig, path: Path) -> str:
    """Python that builds the released classes in this shape, or MobileSAM's, and loads the .pth."""
    c, name = config, model_name(config)
    drawn = (
        "\n# Boxes: give their drawn shape as mask_input too (see sam_jax's draw_boxes)."
        if c.draw_boxes
        else ""
    )
    if name in ("vit_b", "vit_l", "vit_h"):
        return (
            "from segment_anything import sam_model_registry\n"
            f"sam = sam_model_registry[{name!r}](checkpoint={str(path)!r})"
        )
    package, encoder, lines, fitted = "segment_anything", "ImageEncoderViT", _vit_lines(c), ""
    if c.encoder == "tiny_vit":
        package, encoder, lines, fitted = "mobile_sam", "TinyViT", _tiny_vit_lines(c), _FITTED
    return f"""\
import functools, torch
from {package}.modeling import (
    {encoder}, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer){fitted}
sam = Sam(
    {lines},
    PromptEncoder(
        embed_dim={c.embed_dim}, image_embedding_size=({c.grid}, {c.grid}),
        input_image_size=({c.image_size}, {c.image_size}), mask_in_chans={c.mask_channels}),
    MaskDecoder(
        transformer_dim={c.embed_dim}, num_multimask_outputs={c.num_multimask},
        iou_head_depth={c.iou_head_depth}, iou_head_hidden_dim={c.iou_head_width},
        transformer=TwoWayTransformer(
            depth={c.decoder_depth}, embedding_dim={c.embed_dim}, num_heads={c.decoder_heads},
            mlp_dim={c.decoder_mlp_width}, attention_downsample_rate={c.attention_downsample})))
sam.load_state_dict(torch.load({str(path)!r}, weights_only=True))
sam.eval(){drawn}"""


_FITTED = """
class AnySize(TinyViT):  # TinyViT's own takes maps of 64 x 64 alone
    def forward(self, x):
        x = self.patch_embed(x)
        for layer in self.layers:
            x = layer(x)
        return self.neck(x.transpose(1, 2).unflatten(2, (self.img_size // 16,) * 2))"""


def _vit_lines(c: SamConfig) -> str:
    return f"""ImageEncoderViT(
        img_size={c.image_size}, patch_size={c.patch_size}, embed_dim={c.encoder_width},
        depth={c.encoder_depth}, num_heads={c.encoder_heads}, mlp_ratio={c.encoder_mlp_ratio},
        out_chans={c.embed_dim}, use_rel_pos=True, window_size={c.window_size},
        norm_layer=functools.partial(torch.nn.LayerNorm, eps=1e-6),
        global_attn_indexes={c.global_blocks})"""


def _tiny_vit_lines(c: SamConfig) -> str:
    heads = [width // HEAD_DIM for width in WIDTHS]
    windows = [window or 7 for window in WINDOWS]  # the first stage's are asked for and not used
    return f"""AnySize(
        img_size={c.image_size}, num_classes={CLASSES}, embed_dims={list(WIDTHS)},
        depths={list(DEPTHS)}, num_heads={heads}, window_sizes={windows})"""
