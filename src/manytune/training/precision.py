"""Which numbers a training computes with: the base's dtype, that of hidden states, and TF32."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from manytune.errors import RunError
from manytune.model.activations import float32_activations
from manytune.model.peft_model import PeftModel
from manytune.own_dtype import HALF
from manytune.training.recipe import Recipe, TrainingRecipe


def resolve_dtype(recipe: Recipe, *, base: nn.Module | None = None) -> Recipe:
    """Return a recipe in which `training.dtype` isn't `auto`.

    Args:
        recipe: The recipe.
        base: The base's model, if it is loaded already: `auto` is its dtype then.
    """
    settings = recipe.training
    if settings.dtype != "auto":
        return recipe
    dtype = "bfloat16" if _natively(settings) else "float32"
    if base is not None:
        dtype = "bfloat16" if getattr(base, "dtype", None) == torch.bfloat16 else "float32"
    return recipe.model_copy(update={"training": settings.model_copy(update={"dtype": dtype})})


def say_precision(asked: TrainingRecipe, settings: TrainingRecipe, notify: Callable[[str], None]) -> None:
    """Give people a line about the numbers that a training computes with.

    Args:
        asked: The training section as it was written.
        settings: The same, with the dtype resolved.
        notify: Receives the line.
    """
    why = "" if asked.dtype != "auto" else f" (auto: {_reason(settings)})"
    notify(f"dtype: {describe(settings)}{why}")
    if asked.tf32 and not _on_gpu(settings):
        notify("training.tf32 has no effect on a CPU")


def describe(settings: TrainingRecipe) -> str:
    """The numbers that settings whose dtype is resolved compute with, in words for people."""
    if settings.dtype == "float32":
        return "float32, its products rounded to TF32" if _rounds_to_tf32(settings) else "float32"
    if settings.activations == "base":
        return "bfloat16, hidden states too, to which adapters are rounded"
    return "products with the base's weights in bfloat16; adapters, hidden states and optimizer in float32"


def hold_trained_weights(model: PeftModel, recipe: Recipe) -> None:
    """Let the base's own weights be float32 where they train.

    Raises:
        RunError: They would train in bfloat16, since hidden states are to be so.
    """
    if recipe.training.activations == "float32":
        model.tuner.hold_float32()
        return
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if trained and all(parameter.dtype in HALF for parameter in trained):
        model.unload()
        raise RunError(
            f"method {recipe.method.name} trains weights of the base itself. With training.activations: base they "
            "would be bfloat16, which rounds most steps away. Leave training.activations at float32, or set "
            "training.dtype to float32."
        )


@contextmanager
def precision(model: nn.Module, settings: TrainingRecipe) -> Iterator[None]:
    """The block in which a model computes with the numbers that the settings name.

    Args:
        model: With its method attached.
        settings: The recipe's training section. With a `dtype` of `auto` the model's own dtypes decide.

    Mutates: the model, and torch's setting of float32 products on GPUs, until the block ends.
    """
    with ExitStack() as stack:
        if settings.activations == "float32":
            products = settings.dtype == "bfloat16"
            stack.enter_context(float32_activations(model, bfloat16_products=products))
        if _rounds_to_tf32(settings):
            stack.enter_context(_tf32())
        yield


@contextmanager
def _tf32() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _on_gpu(settings: TrainingRecipe) -> bool:
    return settings.device != "cpu" and torch.cuda.is_available()


def _natively(settings: TrainingRecipe) -> bool:
    """Whether the training's device is a GPU that multiplies bfloat16 itself, rather than by way of float32."""
    return _on_gpu(settings) and torch.cuda.is_bf16_supported(including_emulation=False)


def _reason(settings: TrainingRecipe) -> str:
    if not _on_gpu(settings):
        return "it trains on a CPU"
    name = torch.cuda.get_device_name()
    return f"{name} computes it natively" if _natively(settings) else f"{name} has no bfloat16 of its own"


def _rounds_to_tf32(settings: TrainingRecipe) -> bool:
    return settings.tf32 and _on_gpu(settings)
