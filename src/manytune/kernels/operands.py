"""How tensors go to the kernels, and which do."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

#: Values that a kernel's inner loop takes at a time, at most: sizes have to be multiples of it.
LANES = 16


def is_taken(*tensors: Tensor) -> bool:
    """Whether these are float32 on a CPU."""
    return all(t.dtype == torch.float32 and t.device.type == "cpu" for t in tensors)


def pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    """Where a tensor's values begin; null for None."""
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())
