"""Operations that torch.compile doesn't look into: it knows their arguments and the shapes of their results."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_LIBRARY = torch.library.Library("manytune", "FRAGMENT")


def opaque(schema: str, compute: Callable[..., Any], shapes: Callable[..., Any]) -> Any:
    """Register a function on CPU tensors as an operation of torch, `torch.ops.manytune.NAME`.

    Args:
        schema: Its name, arguments and results in torch's notation, such as `double(Tensor x) -> Tensor`.
        compute: The function. It takes tensors that need no gradient, and gives tensors that are new.
        shapes: Takes the same arguments and gives empty tensors like the results.

    Returns:
        The operation, to be called like `compute`.
    """
    name = schema.partition("(")[0]
    _LIBRARY.define(schema)
    _LIBRARY.impl(name, compute, "CPU")
    torch.library.register_fake(f"{_LIBRARY.ns}::{name}", shapes, lib=_LIBRARY)
    return getattr(torch.ops.manytune, name).default
