"""AdaLoRA's sizes; see `AdaLoraConfig`."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

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

_ATTENTION_AND_MLP = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")

#: What HF PEFT adapts by default, where it isn't LoRA's choice: the ranks are shared out, so it begins with more.
TARGETS: dict[str, tuple[str, ...]] = {
    **ATTENTION_PROJECTIONS,
    **dict.fromkeys(("bart", "opt"), _ATTENTION_AND_MLP),
    "t5": ("q", "k", "v", "o", "wi", "wo"),
    "mt5": ("q", "k", "v", "o", "wi_0", "wi_1", "wo"),
    "roberta": ("query", "key", "value", "dense"),
    "deberta-v2": ("query_proj", "key_proj", "value_proj", "dense"),
}


class AdaLoraSizes(MethodSizes):
    """A layer starts with `init_r` triplets, a row of A, an entry of E and a column of B, and keeps `target_r`."""

    name: Literal["adalora"] = "adalora"
    """The method."""
    init_r: Count = 12
    """The rank of each layer at first."""
    target_r: Count = 8
    """The rank of a layer in the end, on average."""
    target_modules: Targets = None
    """Names of linear layers, or `all-linear`; null for those that are usual for the architecture."""

    @model_validator(mode="after")
    def _ranks_are_cut(self) -> Self:
        if self.target_r > self.init_r:
            raise ValueError(
                f"target_r={self.target_r} is above init_r={self.init_r}, and ranks are only ever cut."
            )
        return self

    def trained(self, model: ModelSizes) -> Trained:
        """See `MethodSizes.trained`: products are those at first."""
        targets = targets_of(self.target_modules, model, TARGETS)
        triplet = model.layers * sum(matrix.inputs + 1 + matrix.outputs for matrix in targets)
        return Trained(
            label=f"AdaLoRA r = {self.init_r} to {self.target_r} on {', '.join(m.name for m in targets)}",
            parameters=self.init_r * triplet,
            kept=self.target_r * triplet,
            products=tuple(Product(self.init_r, m.inputs, m.outputs, model.layers) for m in targets),
            saved_inputs=frozenset(matrix.reads for matrix in targets),
            saved_numbers=self.init_r * len(targets),
        )


register_sizes(AdaLoraSizes)
