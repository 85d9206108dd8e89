"""What accelerators can do: peak arithmetic, memory and its speed, by `jax.Device.device_kind`.

Figures are the makers' data sheets, for dense bfloat16: cloud.google.com/tpu/docs (v4, v5e, v5p,
v6e) and NVIDIA's for the A100, H100 and H200. Nothing reaches them; they are floors for time.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device as JAX counts them."""

    name: str
    peak_flops: float
    """bfloat16 FLOP/s, a multiply-add counted as 2, float32 accumulation."""
    hbm_bytes: float
    """Memory; what a program may use is a few percent less."""
    hbm_bandwidth: float
    """Bytes/s."""
    link_bandwidth: float
    """Bytes/s that a chip sends to its neighbours, over all links, one direction."""


_GB, _GIB = 1e9, 2.0**30
V4 = Chip("v4", 275e12, 32 * _GIB, 1228 * _GB, 300 * _GB)
V5E = Chip("v5e", 197e12, 16 * _GIB, 819 * _GB, 200 * _GB)
V5P = Chip("v5p", 459e12, 95 * _GIB, 2765 * _GB, 600 * _GB)
V6E = Chip("v6e", 918e12, 32 * _GIB, 1640 * _GB, 400 * _GB)

_KINDS = {
    "TPU v4": V4,
    "TPU v5 lite": V5E,
    "TPU v5e": V5E,
    "TPU v5": V5P,
    "TPU v5p": V5P,
    "TPU v6 lite": V6E,
    "TPU v6e": V6E,
    "NVIDIA A100-SXM4-40GB": Chip("A100 40 GB", 312e12, 40 * _GIB, 1555 * _GB, 300 * _GB),
    "NVIDIA A100-SXM4-80GB": Chip("A100 80 GB", 312e12, 80 * _GIB, 2039 * _GB, 300 * _GB),
    "NVIDIA A100-PCIE-40GB": Chip("A100 40 GB PCIe", 312e12, 40 * _GIB, 1555 * _GB, 32 * _GB),
    "NVIDIA A100 80GB PCIe": Chip("A100 80 GB PCIe", 312e12, 80 * _GIB, 1935 * _GB, 32 * _GB),
    "NVIDIA H100 80GB HBM3": Chip("H100", 989e12, 80 * _GIB, 3350 * _GB, 450 * _GB),
    "NVIDIA H100 PCIe": Chip("H100 PCIe", 756e12, 80 * _GIB, 2000 * _GB, 64 * _GB),
    "NVIDIA H200": Chip("H200", 989e12, 141 * _GB, 4800 * _GB, 450 * _GB),
}


def chip_of(device_kind: str) -> Chip | None:
    """The data sheet of `jax.Device.device_kind`; None for a CPU and for what isn't listed."""
    return _KINDS.get(device_kind)
