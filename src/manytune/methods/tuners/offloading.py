"""Layers whose weights accelerate keeps elsewhere between calls: in memory for a GPU's layer, or on a disk."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from manytune.errors import AdapterError


def offloaded_from(module: nn.Module) -> torch.device | None:
    """Where a layer computes whose weights accelerate keeps elsewhere between calls; None if they stay in place."""
    hook: Any = getattr(module, "_hf_hook", None)
    hooks = getattr(hook, "hooks", (hook,))
    found = next((one for one in hooks if getattr(one, "offload", False)), None)
    device: Any = getattr(found, "execution_device", None)
    if device is None:
        return None
    return torch.device(device)


def is_offloaded(module: nn.Module) -> bool:
    """Whether a layer's weights come only when it is called."""
    return offloaded_from(module) is not None


def refuse_offloaded(layers: Iterable[nn.Module]) -> None:
    """Refuse to merge into layers of the base whose weights aren't there to be written to.

    Raises:
        AdapterError: One of them is such a layer.
    """
    for layer in layers:
        if is_offloaded(layer) and any(parameter.is_meta for parameter in layer.parameters()):
            raise AdapterError(
                f"Can't merge into a {type(layer).__name__} whose weights are kept elsewhere between calls: what is "
                "merged would be lost at the next one. Load the base without offloading (device_map) to merge."
            )
