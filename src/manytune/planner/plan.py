"""A plan: what a recipe of planning comes to, with what it assumes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from manytune.methods.tuners.sizes import Trained
from manytune.planner.architecture import Architecture
from manytune.planner.dtypes import PACKED
from manytune.planner.hardware import THIS_MACHINE, Hardware, Products, hardware_of
from manytune.planner.recipe import PlanRecipe
from manytune.planner.serving import NoRoom, ServingEstimate, estimate_serving
from manytune.planner.source import architecture_from
from manytune.planner.trained import slot_numbers, trained_of
from manytune.planner.training import TrainingEstimate, estimate_training

_SHARDED_OPTIMIZERS = ("adamw", "sgd")  # whose states are cut as their weights are


@dataclass(frozen=True)
class Plan:
    """What a recipe of planning comes to.

    Attributes:
        recipe: What was planned.
        model: The model's sizes.
        trained: What the method trains.
        hardware: The device.
        training: Of the training; None if none is planned.
        serving: Of the service; None if none is planned.
        notes: What it assumes or leaves out, as sentences.
    """

    recipe: PlanRecipe
    model: Architecture
    trained: Trained
    hardware: Hardware
    training: TrainingEstimate | None
    serving: ServingEstimate | NoRoom | None
    notes: tuple[str, ...]

    @property
    def device_name(self) -> str:
        """What the plan calls the device."""
        asked = self.recipe.hardware
        return asked if isinstance(asked, str) else "own"

    @property
    def savings(self) -> tuple[str, ...]:
        """What would save memory in training, as the plan's keys say it."""
        section = self.recipe.training
        if section is None:
            return ()
        found = []
        if not section.gradient_checkpointing and self.recipe.method.no_checkpointing is None:
            found.append("gradient_checkpointing")
        if section.weights not in PACKED and not section.sharded and not self.trained.whole:
            found.append("weights: nf4")
        if self.trained.whole:
            found.append("a method that trains less")
        if self.trained.saving is not None:
            found.append(self.trained.saving)
        if section.activations == "float32" and section.weights != "float32":
            found.append("activations: base")
        if not section.sharded and section.weights not in PACKED:
            found.append("sharded: true on several devices")
        return tuple(found)

    def to_dict(self) -> dict[str, Any]:
        """What `manytune plan --json` prints: bytes, seconds, and ranges as low, expected and high."""
        model = self.model
        training = None
        if self.training is not None:
            training = {**asdict(self.training), "memory": asdict(self.training.memory)}
        return {
            "model": {
                "model_type": model.model_type,
                "parameters": model.parameters,
                "used_layer_weights": model.used_layer_weights,
                "head_weights": model.head_weights,
                "attention_width": model.attention_width,
                "kv_numbers": model.kv_numbers,
            },
            "method": {
                "label": self.trained.label,
                "parameters": self.trained.parameters,
                "kept": self.trained.kept,
                "slot_numbers": slot_numbers(self.trained),
            },
            "hardware": self.hardware.model_dump(),
            "training": training,
            "serving": None if self.serving is None else asdict(self.serving),
            "notes": list(self.notes),
        }


def make_plan(
    recipe: PlanRecipe,
    *,
    where: str = "plan",
    measure: Callable[[Architecture, Products], Hardware] | None = None,
    price: float | None = None,
) -> Plan:
    """Plan what a recipe says.

    Args:
        recipe: The recipe.
        where: What it is called in messages.
        measure: Measures this machine, for products of a model's shapes in a dtype.
        price: What an hour of a device costs; None for what the plan says.

    Raises:
        RecipeError: The model, the method or the device can't be planned with.
    """
    model = architecture_from(recipe.model)
    trained = trained_of(recipe.method, model)
    if recipe.hardware == THIS_MACHINE and measure is not None:
        hardware = measure(model, _products(recipe))
    else:
        hardware = hardware_of(recipe.hardware, where=where)
    if price is not None:
        hardware = hardware.model_copy(update={"price_per_hour": price})
    training = serving = None
    if recipe.training is not None:
        training = estimate_training(model, trained, recipe.training, hardware)
    if recipe.serving is not None:
        serving = estimate_serving(model, trained, recipe.serving, hardware)
    return Plan(recipe, model, trained, hardware, training, serving, tuple(_notes(recipe, model, trained)))


def _products(recipe: PlanRecipe) -> Products:
    """The dtype that this machine is measured in."""
    sections = [section for section in (recipe.training, recipe.serving) if section is not None]
    return "float32" if any(section.weights == "float32" for section in sections) else "bfloat16"


def _notes(recipe: PlanRecipe, model: Architecture, trained: Trained) -> Iterator[str]:
    if model.unread:
        yield (
            "The config has keys that planning doesn't know, and that may change sizes: "
            f"{', '.join(model.unread[:8])}{' …' if len(model.unread) > 8 else ''}."
        )
    if model.experts:
        yield (
            f"A token uses {model.experts_used} of {model.experts} experts; adapters are planned on attention's "
            "linear layers."
        )
    training = recipe.training
    if training is not None and training.sharded:
        refused = {f"weights: {training.weights}": training.weights in PACKED}
        refused[f"optimizer: {training.optimizer}"] = training.optimizer not in _SHARDED_OPTIMIZERS
        for key in (key for key, is_refused in refused.items() if is_refused):
            yield (
                f"manytune doesn't shard with {key} (docs/distributed.md); this is a plan for trainers that do. Here, "
                f"take weights in bfloat16 or float32 and an optimizer of {' or '.join(_SHARDED_OPTIMIZERS)}."
            )
    if recipe.serving is not None and trained.whole and recipe.serving.adapters > 1:
        yield "Fully fine-tuned models share nothing: each of them is counted as large as the base."
