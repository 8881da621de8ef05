"""What a method trains on an architecture: its own sizes, or a number of parameters for a method without any."""

from __future__ import annotations

from typing import Literal

from manytune.data.nearest import did_you_mean
from manytune.data.section import kind_of
from manytune.errors import ConfigError, RecipeError
from manytune.methods.tuners.sizes import Count, MethodSizes, ModelSizes, Trained, method_sizes
from manytune.mixed.slot_rank import slot_rank
from manytune.planner.architecture import Architecture


class OtherMethod(MethodSizes):
    """Any method whose number of parameters is known: each may be one that every token is multiplied with."""

    name: Literal["other"] = "other"
    """The word for any other method."""
    trained_parameters: Count
    """How many numbers it trains."""

    def trained(self, model: ModelSizes) -> Trained:
        """See `MethodSizes.trained`."""
        return Trained(
            label=f"a method with {self.trained_parameters:,} trained parameters",
            parameters=self.trained_parameters,
            kept=self.trained_parameters,
            other_numbers=self.trained_parameters,
            saved_inputs=frozenset({"attention", "heads", "mlp", "inner"}),
            unknown_weights=self.trained_parameters,
        )


def sizes_named(name: object, *, where: str) -> type[MethodSizes]:
    """The options of the method that a plan names.

    Args:
        name: The name.
        where: What the plan is called in messages.

    Raises:
        RecipeError: No method of this name states its sizes.
    """
    known: dict[str, type[MethodSizes]] = {**method_sizes(), "other": OtherMethod}
    if isinstance(name, str) and name in known:
        return known[name]
    raise RecipeError(
        f"{where}: method.name: planning knows the methods {', '.join(known)}; found {kind_of(name)}"
        f"{did_you_mean(str(name), known) or '.'} For another one, give name: other and trained_parameters."
    )


def trained_of(method: MethodSizes, model: Architecture) -> Trained:
    """What a method trains on a model.

    Raises:
        RecipeError: A target isn't there, or the method has no default for the family.
    """
    try:
        return method.trained(model)
    except ConfigError as error:
        raise RecipeError(f"method: {error} Or plan with name: other and trained_parameters.") from error


def slot_numbers(trained: Trained) -> int:
    """Numbers of one adapter in the slots of a mixed batch, whose ranks are rounded up."""
    products = sum(
        product.count
        * slot_rank(product.rank)
        * (product.inputs + product.outputs + (1 if product.biased else 0))
        + (product.count * product.outputs if product.biased else 0)
        for product in trained.products
    )
    return products + trained.other_numbers
