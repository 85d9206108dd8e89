"""Arrays of numpy, JAX and PyTorch in, results of the same kind out; PyTorch is never imported."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np


class HostArray(np.ndarray):
    """A numpy array that also answers `.detach().cpu().numpy()`, as scripts expect of results."""

    def detach(self) -> HostArray:
        """Itself."""
        return self

    def cpu(self) -> HostArray:
        """Itself."""
        return self

    def numpy(self) -> np.ndarray:
        """The plain numpy array."""
        return self.view(np.ndarray)


def is_tensor(value: Any) -> bool:
    """Whether it is a PyTorch tensor; PyTorch is not imported to find out."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def host(value: Any) -> np.ndarray:
    """A numpy array of a numpy or JAX array, a list, or a PyTorch tensor on any device."""
    return value.detach().cpu().numpy() if is_tensor(value) else np.asarray(value)


def as_given(value: np.ndarray, *given: Any) -> Any:
    """A result as the first PyTorch tensor's kind and device, or as a HostArray."""
    for other in given:
        if is_tensor(other):
            # A plain, writable, contiguous array: what torch takes without a copy or a warning.
            return sys.modules["torch"].from_numpy(np.array(value)).to(other.device)
    return np.asarray(value).view(HostArray)
