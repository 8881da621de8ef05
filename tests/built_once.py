"""Tiny models are drawn once a process; who builds one gets a copy, which takes half as long."""

import copy
from collections.abc import Callable
from functools import cache, wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

Given = ParamSpec("Given")
Model = TypeVar("Model", bound=nn.Module)


def built_once(build: Callable[Given, Model]) -> Callable[Given, Model]:
    """The same models, and the same random numbers after each, as from a builder that sets torch's seed."""

    @cache
    def drawn(*given: Any, **named: Any) -> tuple[Model, Tensor]:
        return build(*given, **named), torch.get_rng_state()

    @wraps(build)
    def copied(*given: Given.args, **named: Given.kwargs) -> Model:
        model, state = drawn(*given, **named)
        torch.set_rng_state(state)
        return copy.deepcopy(model)

    return copied
