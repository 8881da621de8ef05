"""Pairs of factors whose product is added to a weight, as optimizers that treat the two differently see them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class FactorPair:
    """Two factors A and B of an update s · BA.

    Attributes:
        path: The layer's, for messages.
        first: A, which reads the layer's input.
        second: B, which writes its output, and is zero at first.
        scaling: s.
        odd: Why the update isn't B (r columns) times A (r rows) alone, as a clause; None if it is.
    """

    path: str
    first: nn.Parameter
    second: nn.Parameter
    scaling: float
    odd: str | None = None
