"""Calls of the C++ kernel that tells whether tensors are what they were. Formula: `sources/fingerprints.cpp`."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from manytune.kernels.operands import pointer


def fingerprints(library: ctypes.CDLL, tensors: Sequence[Tensor]) -> list[int]:
    """64 bits of each tensor's content, which other content has by accident alone.

    A tensor's version number doesn't do: what is written through `.data` or by another library doesn't change it.

    Args:
        library: The compiled kernels.
        tensors: In float32 on the CPU, contiguous.
    """
    where = torch.tensor([(tensor.data_ptr(), tensor.numel()) for tensor in tensors], dtype=torch.int64)
    found = torch.empty(len(tensors), dtype=torch.int64)
    library.fingerprints(
        pointer(where), ctypes.c_int64(len(tensors)), pointer(found), torch.get_num_threads()
    )
    return found.tolist()
