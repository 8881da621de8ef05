"""A weight in the memory order in which few rows are multiplied with it fastest, and the product with it.

In float32 that is by a C++ kernel (`panels.py`), and where there is none, or in bfloat16, by oneDNN's own order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from manytune.kernels import panels
from manytune.kernels.build import load_kernels

# The number of rows that oneDNN's order is optimised for; fewer and many more are fast as well.
_ROWS = 32

_HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")


@dataclass(frozen=True)
class Packed:
    """A weight.

    Attributes:
        values: In panels, or in an order of oneDNN's.
        out: How many outputs it has.
        nbytes: What it takes, but for padding.
        in_panels: Whether it is in panels.
    """

    values: Tensor
    out: int
    nbytes: int
    in_panels: bool

    def product(self, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
        """From x, (..., in), to x W^T + b, without gradients.

        Args:
            bias: b, (out,); None for none.
        """
        return self._by_kernel(bias) if self.in_panels else self._by_onednn(bias)

    def _by_kernel(self, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
        library, values, out = load_kernels().loaded(), self.values, self.out
        padded = panels.padded_bias(values, bias)

        def product(x: Tensor) -> Tensor:
            rows = x.reshape(-1, x.shape[-1])
            if rows.stride(1) != 1:
                rows = rows.contiguous()
            return panels.multiply(library, rows, values, padded, out).view(*x.shape[:-1], out)

        return product

    def _by_onednn(self, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
        multiply: Any = torch.ops.mkldnn._linear_pointwise.default

        def product(x: Tensor) -> Tensor:
            y: Tensor = multiply(x.contiguous(), self.values, bias, "none", [], "")
            return y

        return product


def can_pack(dtype: torch.dtype) -> bool:
    """Whether weights of a dtype on a CPU can be packed here: float32 and bfloat16."""
    if dtype == torch.float32 and load_kernels().library is not None:
        return True
    return _HAS_ONEDNN and dtype in (torch.float32, torch.bfloat16)


def pack(weight: Tensor) -> Packed:
    """A copy of a weight.

    Args:
        weight: W, (out, in), on the CPU, of a dtype that `can_pack` takes.
    """
    library = load_kernels().library if weight.dtype == torch.float32 else None
    if library is not None:
        values = panels.pack(library, weight.contiguous())
    else:
        values = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS)
    return Packed(values, weight.shape[0], weight.nbytes, library is not None)
