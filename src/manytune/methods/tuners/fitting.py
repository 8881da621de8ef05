"""Making a new adapter fit the layer that it is attached to."""

from __future__ import annotations

import torch
from torch import nn

from manytune.methods.tuners.adapter_layer import AdapterLayer
from manytune.methods.tuners.offloading import offloaded_from


def fit_to_layer(layer: AdapterLayer, adapter_name: str, *, autocast: bool) -> None:
    """Make a new adapter fit its layer, frozen.

    Its modules take the layer's training mode, its parameters the base layer's device and dtype, or float32 for a
    half-precision base.
    """
    parameters = [p for p in layer.tensors(adapter_name).values() if p.is_floating_point()]
    for parameter in parameters:
        parameter.requires_grad_(False)
    if not layer.training:
        for parts in layer.children():
            if isinstance(parts, nn.ModuleDict) and adapter_name in parts and parts[adapter_name].training:
                parts[adapter_name].eval()
    own = layer.get_base_layer()._parameters.get("weight")
    base = next(layer.base_layer.parameters(), None) if own is None else own
    if base is None:
        return
    # A weight packed into integers has no dtype to go by, and nothing trains in eight bits.
    half = base.dtype in (torch.float16, torch.bfloat16)
    packed = not base.is_floating_point() or base.dtype.itemsize == 1
    dtype = torch.float32 if (autocast and half) or packed else base.dtype
    home = offloaded_from(layer.base_layer) or base.device
    for parameter in parameters:
        device = parameter.device if parameter.is_meta else home
        if parameter.dtype != dtype or parameter.device != device:
            parameter.data = parameter.data.to(device, dtype)
