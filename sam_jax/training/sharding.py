"""Which device holds which part: every rule about placement is in this file, no model knows of it.

Devices form a ('data', 'fsdp') mesh. A batch is split over both axes. Parameters, and what the
optimiser keeps of them, are split over 'fsdp' and copied along 'data'; XLA gathers what a layer
needs when it needs it.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp")

RULES: tuple[tuple[str, int], ...] = (
    ("*/qkv/kernel", -1),
    ("*/[qkv]_proj/kernel", -1),
    ("*/lin1/kernel", -1),
    ("*/lin2/kernel", -2),
    ("*/proj/kernel", -2),
    ("*/out_proj/kernel", -2),
    ("*/neck_conv*/kernel", -1),
    ("*/expand/kernel", -1),
    ("*/project/kernel", -2),
    ("*/patch_embed/kernel", -1),
    ("*/pos_embed", -1),
)
"""Pattern of a path -> the array axis that 'fsdp' splits. The first match counts; what matches
none (norms, biases, tokens, the decoder's heads, buffers) is small and lies on every device."""


def make_mesh(fsdp: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A ('data', 'fsdp') mesh of all devices of all processes, or of those given.

    Args:
      fsdp: devices that share one copy of the parameters; neighbours in the list of devices.
      devices: in the order in which they take parts of a batch; None: `jax.devices()`.

    Raises:
      ValueError: `fsdp` does not divide the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    if fsdp < 1 or len(devices) % fsdp:
        raise ValueError(
            f"devices.fsdp: expected a divisor of the number of devices, {len(devices)}, got {fsdp}"
        )
    # Auto: Linen's convolutions fail under explicit axes, which make_mesh would give by default.
    grid = np.array(devices).reshape(-1, fsdp)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * 2)


def replicated(mesh: Mesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis, that of the images, split over all devices."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def state_shardings(mesh: Mesh, shapes):
    """A NamedSharding for each leaf of a tree of arrays or shapes, such as a TrainState.

    Optimisers keep their moments under the parameters' own paths, so the rules serve both. An axis
    that 'fsdp' does not divide is not split.
    """
    size = mesh.shape["fsdp"]

    def place(path, leaf):
        name = "/" + jax.tree_util.keystr(path, simple=True, separator="/")
        for pattern, axis in RULES:
            if not fnmatchcase(name, pattern):
                continue
            if len(leaf.shape) < -axis or leaf.shape[axis] % size or size == 1:
                break
            spec = [None] * len(leaf.shape)
            spec[axis] = "fsdp"
            return NamedSharding(mesh, PartitionSpec(*spec))
        return replicated(mesh)

    return jax.tree_util.tree_map_with_path(place, shapes)


def global_batch(mesh: Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """This process's part [B / processes, ...] of a batch as global arrays [B, ...] on the mesh.

    Raises:
      ValueError: the images cannot be shared equally among the devices.
    """
    sharding, images = batch_sharding(mesh), len(next(iter(batch.values())))
    images *= jax.process_count()
    if images % mesh.size:
        raise ValueError(
            f"stages: expected a batch_size that is a multiple of {mesh.size} devices, got {images}"
        )
    return {
        name: jax.make_array_from_process_local_data(sharding, value)
        for name, value in batch.items()
    }
