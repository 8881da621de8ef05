"""What transformers calls a model's cache of keys and values: `past_key_values`, and from 5.24 on `cache`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

_NAMES = ("cache", "past_key_values")


def cache_argument(module: nn.Module) -> str | None:
    """The name under which a module's `forward` takes a cache, and its output has it; None if it takes none."""
    known = inspect.signature(module.forward).parameters
    return next((name for name in _NAMES if name in known), None)


def cache_in(inputs: Mapping[str, Any]) -> Any:
    """The cache among a call's arguments, under either name; None if there is none."""
    return next((inputs[name] for name in _NAMES if inputs.get(name) is not None), None)


def put_cache(module: nn.Module, inputs: dict[str, Any], cache: Any) -> None:
    """Put a cache into a call's arguments, under the module's own name."""
    for name in _NAMES:
        inputs.pop(name, None)
    inputs[cache_argument(module) or _NAMES[-1]] = cache
