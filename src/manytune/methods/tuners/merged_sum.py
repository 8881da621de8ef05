"""A merged weight as a sum, for whoever writes it into room of its own."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn


class MergedSum(NamedTuple):
    """A merged weight W + Σ α · L R.

    Attributes:
        key: The parameter's name in the base layer.
        parameter: The parameter that W is; float32 or wider, as nothing is rounded in between.
        products: L, (rows, r), R, (r, columns), and α, in W's dtype.
    """

    key: str
    parameter: nn.Parameter
    products: list[tuple[Tensor, Tensor, float]]
