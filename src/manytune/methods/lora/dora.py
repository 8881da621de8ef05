"""DoRA: direction and magnitude of a weight trained apart (Liu et al., arXiv 2402.09353).

    W' = m · (W + ΔW) / ‖W + ΔW‖

The norm is taken for each output: over the rows of a linear weight, over the filters of a convolution, over the
columns of an embedding table. m starts as that norm, so W' = W + ΔW at first. As in the paper (section 4.3) the norm
counts as a constant in the backward pass.

Shapes: m is (out,), or (1, out, 1, ...) for convolutions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Magnitude(nn.Module):
    """The trained m of one adapter at one layer."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)


def output_norm(weight: Tensor, delta: Tensor, output_dim: int) -> Tensor:
    """‖W + ΔW‖ for each output, without a gradient.

    Args:
        weight: W.
        delta: ΔW, of the same shape.
        output_dim: The dimension that counts the outputs.

    Returns:
        (out,), in the wider of their dtypes.
    """
    with torch.no_grad():
        total = weight + delta  # in the wider of their dtypes
        others = [dim for dim in range(total.dim()) if dim != output_dim]
        norm: Tensor = torch.linalg.vector_norm(total, dim=others)
    return norm


def along(values: Tensor, output_dim: int, dims: int) -> Tensor:
    """A factor for each output, shaped so that it multiplies a weight."""
    return values.view(tuple(-1 if dim == output_dim else 1 for dim in range(dims)))
