"""LoRA's sizes; see `LoraConfig`."""

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


class LoraSizes(MethodSizes):
    """A (r × in) and B (out × r) for each target, and DoRA's magnitudes (out,)."""

    name: Literal["lora"] = "lora"
    """The method."""
    r: Count = 8
    """The rank."""
    target_modules: Targets = None
    """Names of linear layers, or `all-linear`; null for the usual attention projections."""
    use_dora: bool = False
    """Whether it is DoRA."""

    def trained(self, model: ModelSizes) -> Trained:
        """See `MethodSizes.trained`."""
        targets = targets_of(self.target_modules, model, ATTENTION_PROJECTIONS)
        products = tuple(Product(self.r, m.inputs, m.outputs, model.layers) for m in targets)
        magnitudes = sum(matrix.outputs for matrix in targets) if self.use_dora else 0
        parameters = sum(product.numbers for product in products) + model.layers * magnitudes
        where = "all linear layers" if targets == model.matrices else ", ".join(m.name for m in targets)
        return Trained(
            label=f"{'DoRA' if self.use_dora else 'LoRA'} r = {self.r} on {where}",
            parameters=parameters,
            kept=parameters,
            products=products,
            other_numbers=model.layers * magnitudes,
            saved_inputs=frozenset(matrix.reads for matrix in targets),
            saved_numbers=self.r * len(targets) + 2 * magnitudes,
        )


register_sizes(LoraSizes)
