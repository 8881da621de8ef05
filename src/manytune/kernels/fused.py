"""Layers that read the same tensor as one product, of which each has its columns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass
class _Product:
    """What was multiplied last.

    Attributes:
        input: The tensor, if not all layers have asked for it yet.
        version: How often it had been written to; 0 in inference mode, where nobody counts.
        output: The product with it.
        readers_left: How many of the layers haven't taken their part of it.
    """

    input: Tensor | None = None
    version: int = 0
    output: Tensor | None = None
    readers_left: int = 0


def parts_of(product: Callable[[Tensor], Tensor], widths: Sequence[int]) -> list[Callable[[Tensor], Tensor]]:
    """A function for each of several layers: the first to be called with a tensor computes the product for all.

    Args:
        product: Of a tensor with the layers' weights one below the other.
        widths: How many columns of it each layer has.

    Returns:
        What gives each layer's columns, a view.
    """
    if len(widths) == 1:
        return [product]
    last, parts, start = _Product(), [], 0
    for width in widths:
        parts.append(_part_of(product, last, slice(start, start + width), len(widths)))
        start += width
    return parts


def _part_of(
    product: Callable[[Tensor], Tensor], last: _Product, columns: slice, readers: int
) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        version = 0 if x.is_inference() else x._version
        if last.input is not x or last.version != version or last.output is None:
            last.input, last.version, last.output, last.readers_left = x, version, product(x), readers
        part = last.output[..., columns]
        last.readers_left -= 1
        if not last.readers_left:
            last.input = last.output = None  # don't keep activations alive
        return part

    return forward
