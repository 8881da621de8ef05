"""Whether what a recipe trains fits into the free memory: computed on the meta device, before any of it is made."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain

import torch
from torch import nn

from manytune.errors import ManytuneError, ShortMemoryError
from manytune.free_memory import free_memory
from manytune.methods.registry import methods
from manytune.model.attach import get_peft_model
from manytune.training.method_recipe import MethodRecipe

_LEAST = (1, 16)
"""What is tried in place of a size that is too large: some options have to be as large as others."""


def require_fitting(model: nn.Module, method: MethodRecipe, task_type: str) -> None:
    """Refuse a method whose new weights, with a gradient for each that trains, exceed the memory that is free.

    The system promises more memory than it has, and pages are only missing once weights are written to them: without
    this, the machine is busy for minutes before the process is killed. What the optimizer and the batches take comes on
    top of it.

    Args:
        model: The base, with nothing attached; it stays as it is.
        method: What is to be attached.
        task_type: As for `MethodRecipe.peft_config`.

    Raises:
        ShortMemoryError: They do; it names the option that is to blame, and what would fit.
    """
    device = next(chain(model.parameters(), model.buffers())).device
    free = _free_on(device)
    if free is None:
        return
    needed = _bytes_of(model, method, task_type)
    if needed is None or needed <= free:
        return

    def needs(size: _Size, number: int) -> float:
        found = _bytes_of(model, size.changed(method, number), task_type)
        return math.inf if found is None else found

    where = "on the GPU" if device.type == "cuda" else "free"
    takes = "more than any machine has" if math.isinf(needed) else f"{needed / 2**20:,.0f} MiB"
    short = f"its weights and their gradients would take {takes}, and {free / 2**20:,.0f} MiB are {where}"
    smallest = ((needs(size, least), least, size) for size in _sizes(method) for least in _LEAST)
    found = min(smallest, default=None, key=lambda one: (one[0], one[1]))
    if found is None or found[0] >= needed:
        raise ShortMemoryError(f"method: {short}. Adapt fewer modules, or give the process more memory.")
    taken, least, size = found
    if taken > free:
        raise ShortMemoryError(
            f"method.{size.key}: {size.number:,} is too large: {short}; with {least} they would still take "
            f"{taken / 2**20:,.0f} MiB. Lower it and adapt fewer modules, or give the process more memory."
        )
    most = _largest(lambda asked: needs(size, asked) <= free, above=least, below=size.number)
    raise ShortMemoryError(
        f"method.{size.key}: {size.number:,} is too large: {short}. Lower it: up to {most:,} would fit"
        f"{_useful(model, method, size.key, most)}."
    )


@dataclass(frozen=True)
class _Size:
    """A whole number that a recipe gives a method: an option, or the value of one that is a mapping.

    Attributes:
        option: The option.
        name: The key in the mapping; None for an option that is the number itself.
        number: The number.
    """

    option: str
    name: str | None
    number: int

    @property
    def key(self) -> str:
        """What it is called within a recipe's `method`."""
        return self.option if self.name is None else f"{self.option}.{self.name}"

    def changed(self, method: MethodRecipe, number: int) -> MethodRecipe:
        """The method with another number in its place."""
        value: object = number
        if self.name is not None:
            value = {**(method.model_extra or {})[self.option], self.name: number}
        return method.model_copy(update={self.option: value})


def _bytes_of(model: nn.Module, method: MethodRecipe, task_type: str) -> float | None:
    """Bytes of the new weights and of their gradients; infinite where they can't be counted, None if it's no method.

    What can't be attached is for the attaching to explain.
    """
    trained = [one for one in model.parameters() if one.requires_grad]
    # A copy of the modules with the same weights: not every method can be taken away again.
    layers = copy.deepcopy(model, {id(one): one for one in chain(model.parameters(), model.buffers())})
    try:
        with warnings.catch_warnings(), torch.device("meta"):
            warnings.simplefilter("ignore")
            attached = get_peft_model(layers, method.peft_config(task_type), low_cpu_mem_usage=True)
        new = [one for one in chain(attached.parameters(), attached.buffers()) if one.is_meta]
        needed = sum(one.numel() * one.element_size() * (2 if one.requires_grad else 1) for one in new)
    except (ManytuneError, NotImplementedError):  # the latter by torch, of what needs the numbers themselves
        return None
    except (OverflowError, RuntimeError, TypeError) as error:
        if "overflow" in str(error).lower():
            return math.inf
        raise
    finally:  # attaching froze the weights that are shared
        for parameter in trained:
            parameter.requires_grad_(True)
    return needed


def _sizes(method: MethodRecipe) -> Iterator[_Size]:
    """The whole numbers above 1 that a recipe gives a method."""
    for option, value in (method.model_extra or {}).items():
        numbers = value.items() if isinstance(value, dict) else [(None, value)]
        yield from (_Size(option, name, n) for name, n in numbers if isinstance(n, int) and n > 1)


def _largest(fits: Callable[[int], bool], *, above: int, below: int) -> int:
    """The largest number that fits, of which `above` does and `below` doesn't."""
    while below - above > 1:
        middle = (above + below) // 2
        if fits(middle):
            above = middle
        else:
            below = middle
    return above


def _useful(model: nn.Module, method: MethodRecipe, key: str, most: int) -> str:
    """What is said of a rank: from the base's layers follows above which one it adds nothing."""
    sides = [min(one.shape) for one in model.parameters() if one.dim() == 2]
    largest = max(sides, default=most)
    if methods()[method.name].rank != key or largest >= most:
        return ""
    return f", and a rank above {largest:,} adds nothing to the layers of this base"


def _free_on(device: torch.device) -> int | None:
    """Bytes that can still be taken on a device; None where that isn't known."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + kept
    return free_memory() if device.type == "cpu" else None
