"""VeRA's sizes; see `VeraConfig`."""

from __future__ import annotations

from typing import Literal

from manytune.methods.tuners.sizes import (
    Count,
    MethodSizes,
    ModelSizes,
    Product,
    Targets,
    Trained,
    register_sizes,
    targets_of,
)
from manytune.methods.tuners.usual_targets import ATTENTION_PROJECTIONS


class VeraSizes(MethodSizes):
    """d (r,) and b (out,) for each target, and one frozen pair of matrices as large as the largest target."""

    name: Literal["vera"] = "vera"
    """The method."""
    r: Count = 256
    """The rank."""
    target_modules: Targets = None
    """Names of linear layers, or `all-linear`; null for the usual attention projections."""

    def trained(self, model: ModelSizes) -> Trained:
        """See `MethodSizes.trained`."""
        targets = targets_of(self.target_modules, model, ATTENTION_PROJECTIONS)
        vectors = sum(self.r + matrix.outputs for matrix in targets)
        shared = self.r * (max(m.inputs for m in targets) + max(m.outputs for m in targets))
        return Trained(
            label=f"VeRA r = {self.r} on {', '.join(m.name for m in targets)}",
            parameters=model.layers * vectors,
            kept=model.layers * vectors + shared,
            products=tuple(Product(self.r, m.inputs, m.outputs, model.layers) for m in targets),
            saved_numbers=vectors,
            frozen_numbers=shared,
        )


register_sizes(VeraSizes)
