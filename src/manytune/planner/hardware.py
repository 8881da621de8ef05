"""The machines that a plan is made for: a table with sources, a user's own, or the one that this runs on."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from manytune.data.nearest import did_you_mean
from manytune.data.section import Number, Section, kind_of
from manytune.errors import RecipeError
from manytune.planner.ranges import Utilization
from manytune.training.recipe_errors import explain, list_mistakes
from manytune.training.recipe_yaml import parse_yaml

THIS_MACHINE = "this-machine"
GIB = 1 << 30

Positive = Annotated[Number, Field(gt=0, le=1e15)]


Products = Literal["float32", "float16", "bfloat16", "float8"]
"""The dtypes of products whose FLOP/s a device may have."""


class Hardware(Section):
    """One device: a GPU, or a machine's processors."""

    memory_gib: Positive
    """Its memory in GiB."""
    bandwidth_gb_s: Positive
    """Reading its memory, in GB/s."""
    tflops: Annotated[dict[Products, Positive], Field(min_length=1)]
    """Dense matrix products in 10^12 FLOP/s, by dtype."""
    kind: Literal["gpu", "cpu"] = "gpu"
    """Whether it is a GPU."""
    price_per_hour: Annotated[Number, Field(ge=0, le=1e9)] | None = None
    """What an hour of it costs, in any currency; null for no costs."""
    source: str = "given in the plan"
    """Where its figures are from."""
    measured: bool = False
    """Whether `tflops` was measured with products as a model has them, rather than read in a data sheet."""

    @property
    def memory(self) -> float:
        """Bytes."""
        return self.memory_gib * GIB

    @property
    def bandwidth(self) -> float:
        """Bytes a second."""
        return self.bandwidth_gb_s * 1e9

    def flops(self, dtype: str) -> float:
        """FLOP/s of dense products in a dtype; 8 bits without units of their own are as fast as 16.

        Raises:
            RecipeError: The device has no such products.
        """
        fallback = {"float8": "bfloat16"}.get(dtype, "")
        # Products in half precision take the device's other half precision where it has but one.
        other = {"bfloat16": "float16", "float8": "float16"}.get(dtype, "")
        for known in (dtype, fallback, other):
            for name, found in self.tflops.items():
                if name == known:
                    return found * 1e12
        raise RecipeError(
            f"hardware: no FLOP/s are known of products in {dtype}; known: {', '.join(self.tflops)}. Add them to "
            "tflops, or plan with another dtype."
        )

    @property
    def training_utilization(self) -> Utilization:
        """The share of `flops` that training steps reach, what is computed twice counted in."""
        if self.measured:
            return Utilization(0.85, 0.72, 0.55)
        return Utilization(0.7, 0.5, 0.35) if self.kind == "gpu" else Utilization(0.6, 0.4, 0.2)

    @property
    def reading_utilization(self) -> Utilization:
        """The share of `flops` that reading prompts reaches."""
        if self.measured:
            return Utilization(0.8, 0.6, 0.4)
        return Utilization(0.65, 0.5, 0.35) if self.kind == "gpu" else Utilization(0.5, 0.3, 0.15)

    @property
    def decoding_utilization(self) -> Utilization:
        """The share of `flops` that a decoding step reaches, whose products are flat."""
        if self.kind == "gpu":
            return Utilization(0.65, 0.5, 0.35)
        return Utilization(0.45, 0.3, 0.15)

    @property
    def bandwidth_utilization(self) -> Utilization:
        """The share of `bandwidth` that a decoding step reaches."""
        return Utilization(0.85, 0.7, 0.5)


def table() -> dict[str, Hardware]:
    """The devices that manytune knows, by name."""
    text = (files("manytune.planner") / "hardware.yaml").read_text(encoding="utf-8")
    return {name: Hardware(**content) for name, content in parse_yaml(text).items()}


def hardware_of(asked: str | Mapping[str, object], *, where: str) -> Hardware:
    """The device that a plan names or describes.

    Args:
        asked: A name of the table, or the keys of `Hardware`.
        where: The plan, for messages.

    Raises:
        RecipeError: There is no such name, or a key or a value can't be used.
    """
    if isinstance(asked, str):
        known = table()
        if asked not in known:
            names = [*known, THIS_MACHINE]
            raise RecipeError(
                f"{where}: hardware: expected one of {', '.join(names)}, or a section with "
                f"{', '.join(Hardware.model_fields)}; found {kind_of(asked)}{did_you_mean(asked, names) or '.'}"
            )
        return known[asked]
    try:
        return Hardware(**asked)  # type: ignore[arg-type]
    except (ValidationError, TypeError) as error:
        if isinstance(error, TypeError):
            raise RecipeError(f"{where}: hardware: keys are text.") from None
        mistakes = list_mistakes(f"{where}: hardware", error, lambda problem: explain(Hardware, problem))
        raise RecipeError(mistakes) from error
