"""Calls of the C++ kernel for products of few rows with a weight that was put into panels. See `sources/panels.cpp`."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from manytune.kernels.operands import pointer


def outputs_of_panel(library: ctypes.CDLL) -> int:
    """How many outputs a panel has.

    Args:
        library: The compiled kernels.
    """
    found = torch.ones(1, dtype=torch.int64)
    library.panel_outputs(pointer(found))
    return int(found)


def pack(library: ctypes.CDLL, weight: Tensor) -> Tensor:
    """A weight in panels, (panels, in, outputs of a panel); what the last panel has too many is 0.

    Args:
        library: The compiled kernels.
        weight: W, (out, in), in float32 on the CPU, contiguous.
    """
    outputs, (out, width) = outputs_of_panel(library), weight.shape
    panels = weight.new_empty(-(-out // outputs), width, outputs)
    library.pack_panels(
        pointer(weight), ctypes.c_int64(out), ctypes.c_int64(width), pointer(panels), torch.get_num_threads()
    )
    return panels


def padded_bias(panels: Tensor, bias: Tensor | None) -> Tensor:
    """A bias as `multiply` takes it: zeros for None, and behind its end.

    Args:
        panels: From `pack`.
        bias: Shape `(out,)`.
    """
    found = panels.new_zeros(panels.shape[0] * panels.shape[2])
    if bias is not None:
        found[: len(bias)] = bias
    return found


def multiply(library: ctypes.CDLL, x: Tensor, panels: Tensor, bias: Tensor, out: int) -> Tensor:
    """The product x W^T + b, of which a row has the same values to the last bit whatever other rows there are.

    Args:
        library: The compiled kernels.
        x: Shape `(rows, in)`, in float32 on the CPU; rows are contiguous, and any distance apart.
        panels: W, from `pack`.
        bias: From `padded_bias`.
        out: How many outputs there are.

    Returns:
        Shape `(rows, out)`.
    """
    y = x.new_empty(x.shape[0], out)
    library.multiply_panels(
        pointer(x),
        ctypes.c_int64(x.shape[0]),
        ctypes.c_int64(x.stride(0)),
        pointer(panels),
        ctypes.c_int64(out),
        ctypes.c_int64(x.shape[1]),
        pointer(bias),
        pointer(y),
        torch.get_num_threads(),
    )
    return y
