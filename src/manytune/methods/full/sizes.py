"""Full fine-tuning's sizes; see `FullConfig`."""

from __future__ import annotations

from typing import ClassVar, Literal

from manytune.methods.tuners.sizes import MethodSizes, ModelSizes, Trained, register_sizes


class FullSizes(MethodSizes):
    """Every weight, and a copy of the base if it is kept."""

    on_packed: ClassVar[bool] = False

    name: Literal["full"] = "full"
    """The method."""
    keep_base: bool = True
    """Whether the base's weights are kept aside."""

    def trained(self, model: ModelSizes) -> Trained:
        """See `MethodSizes.trained`."""
        return Trained(
            label="full fine-tuning",
            parameters=model.parameters,
            kept=model.parameters,
            other_numbers=model.parameters,
            saved_inputs=frozenset({"attention", "heads", "mlp", "inner"}),
            whole=True,
            copies_base=self.keep_base,
            saving="keep_base: false" if self.keep_base else None,
        )


register_sizes(FullSizes)
