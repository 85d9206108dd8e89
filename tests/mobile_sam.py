"""A MobileSAM of random numbers, and what PyTorch makes of its encoder."""

from __future__ import annotations

import numpy as np

from sam_jax.checkpoint.names import to_torch
from sam_jax.models.config import SamConfig
from tests.small import variables

WIDTHS, DEPTHS, WINDOWS = (64, 128, 160, 320), (2, 2, 6, 2), (7, 7, 14, 7)
HEAD = 32


def tensors(seed: int = 0) -> dict[str, np.ndarray]:
    """All that mobile_sam.pt holds, by its names."""
    rng = np.random.default_rng(seed)
    made: dict[str, np.ndarray] = {}

    def add(name, *shape, fan_in=None):
        x = rng.standard_normal(shape).astype(np.float32)
        made[name] = x * np.float32(fan_in) ** -0.5 if fan_in else 0.3 * x

    def linear(name, into, out):
        add(f"{name}.weight", out, into, fan_in=into)
        add(f"{name}.bias", out)

    def norm(name, width):
        made[f"{name}.weight"] = (1 + 0.2 * rng.standard_normal(width)).astype(np.float32)
        add(f"{name}.bias", width)

    def conv(name, into, out, size, groups=1):
        add(f"{name}.c.weight", out, into // groups, size, size, fan_in=into // groups * size**2)
        norm(f"{name}.bn", out)
        add(f"{name}.bn.running_mean", out)
        made[f"{name}.bn.running_var"] = rng.uniform(0.5, 2, out).astype(np.float32)
        made[f"{name}.bn.num_batches_tracked"] = np.array(7)

    def bottleneck(name, into, hidden, out):
        conv(f"{name}.conv1", into, hidden, 1)
        conv(f"{name}.conv2", hidden, hidden, 3, hidden)
        conv(f"{name}.conv3", hidden, out, 1)

    conv("patch_embed.seq.0", 3, 32, 3)
    conv("patch_embed.seq.2", 32, 64, 3)
    for i, (width, depth, window) in enumerate(zip(WIDTHS, DEPTHS, WINDOWS, strict=True)):
        for j in range(depth):
            block = f"layers.{i}.blocks.{j}"
            if not i:
                bottleneck(block, width, 4 * width, width)
                continue
            norm(f"{block}.attn.norm", width)
            linear(f"{block}.attn.qkv", width, 3 * width)
            linear(f"{block}.attn.proj", width, width)
            add(f"{block}.attn.attention_biases", width // HEAD, window**2)
            conv(f"{block}.local_conv", width, width, 3, width)
            norm(f"{block}.mlp.norm", width)
            linear(f"{block}.mlp.fc1", width, 4 * width)
            linear(f"{block}.mlp.fc2", 4 * width, width)
        if i < 3:
            bottleneck(f"layers.{i}.downsample", width, WIDTHS[i + 1], WIDTHS[i + 1])
    add("neck.0.weight", 256, 320, 1, 1, fan_in=320)
    norm("neck.1", 256)
    add("neck.2.weight", 256, 256, 3, 3, fan_in=256 * 9)
    norm("neck.3", 256)
    norm("norm_head", 320)
    linear("head", 320, 1000)
    whole = {f"image_encoder.{name}": x for name, x in made.items()}
    decoder = to_torch(variables(SamConfig(32, 1, 1, (0,), image_size=32), seed))
    return whole | {n: x for n, x in decoder.items() if not n.startswith("image_encoder.")}


def embed(tensors: dict[str, np.ndarray], images: np.ndarray) -> np.ndarray:
    """float32 [B, H, W, 3] -> [B, H / 16, W / 16, 256] by PyTorch's own layers."""
    import torch

    own = {
        name.removeprefix("image_encoder."): torch.tensor(x)
        for name, x in tensors.items()
        if name.startswith("image_encoder.")
    }
    return encode(own, torch.tensor(images).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).numpy()


def encode(t: dict, x):
    """PyTorch's tensors of an encoder by their names, images [B, 3, H, W] -> [B, 256, h, w]."""
    from torch.nn import functional as F

    def conv(name, x, stride=1):
        kernel = t[f"{name}.c.weight"]
        size, groups = kernel.shape[-1], x.shape[1] // kernel.shape[1]
        x = F.conv2d(x, kernel, None, stride, size // 2, 1, groups)
        parts = (f"{name}.bn.{part}" for part in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, *(t[part] for part in parts))

    def bottleneck(name, x, stride=1):
        x = F.gelu(conv(f"{name}.conv1", x))
        return conv(f"{name}.conv3", F.gelu(conv(f"{name}.conv2", x, stride)))

    def linear(name, x):
        return F.linear(x, t[f"{name}.weight"], t[f"{name}.bias"])

    def norm(name, x, eps=1e-5):
        return F.layer_norm(x, x.shape[-1:], t[f"{name}.weight"], t[f"{name}.bias"], eps)

    def attention(name, x, s):
        """Of maps [B, h, w, C] in windows of s x s, what sticks out of a map being zeros."""
        b, h, w, width = x.shape
        x = F.pad(x, (0, 0, 0, -w % s, 0, -h % s))
        rows, columns = x.shape[1] // s, x.shape[2] // s
        x = x.unflatten(1, (rows, s)).unflatten(3, (columns, s)).transpose(2, 3).flatten(3, 4)
        y = linear(f"{name}.qkv", norm(f"{name}.norm", x))
        y = y.unflatten(-1, (-1, 3 * HEAD)).transpose(-2, -3)
        at = torch_range(s, x.device)
        apart = (at[:, None] - at[None]).abs()
        bias = t[f"{name}.attention_biases"][:, apart[..., 0] * s + apart[..., 1]]
        y = F.scaled_dot_product_attention(*y.split(HEAD, -1), attn_mask=bias.to(y.dtype))
        y = linear(f"{name}.proj", y.transpose(-2, -3).flatten(-2))
        y = y.unflatten(3, (s, s)).transpose(2, 3).flatten(3, 4).flatten(1, 2)
        return y[:, :h, :w]

    x = conv("patch_embed.seq.0", x, 2)
    x = conv("patch_embed.seq.2", F.gelu(x), 2)
    for i, depth in enumerate(DEPTHS):
        for j in range(depth):
            block = f"layers.{i}.blocks.{j}"
            if not i:
                x = F.gelu(x + bottleneck(block, x))
                continue
            maps = attention(f"{block}.attn", x.permute(0, 2, 3, 1), WINDOWS[i])
            x = conv(f"{block}.local_conv", x + maps.permute(0, 3, 1, 2))
            y = norm(f"{block}.mlp.norm", x.permute(0, 2, 3, 1))
            y = linear(f"{block}.mlp.fc2", F.gelu(linear(f"{block}.mlp.fc1", y)))
            x = x + y.permute(0, 3, 1, 2)
        if i < 3:
            x = bottleneck(f"layers.{i}.downsample", x, 1 if i == 2 else 2)
    for k in (0, 2):
        x = F.conv2d(x, t[f"neck.{k}.weight"], None, padding=k // 2)
        x = norm(f"neck.{k + 1}", x.permute(0, 2, 3, 1), 1e-6).permute(0, 3, 1, 2)
    return x


def torch_range(s: int, device):
    """Rows and columns of a window's cells, [s * s, 2]."""
    import torch

    return torch.cartesian_prod(*[torch.arange(s, device=device)] * 2)
