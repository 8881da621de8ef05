"""How long products with the base's weights take in each form, measured on a few of its layers."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from manytune.engine.options import Runtime
from manytune.engine.quantized import quantized_layer
from manytune.engine.reordered_weights import can_reorder, reordered_layer
from manytune.engine.weights import Weights, rounding_of

#: Rows of the products: one request that decodes, and a few.
_ROWS = (1, 8)
_LAYERS = 3
_ROUNDS = 9


@torch.inference_mode()
def product_seconds(
    model: PreTrainedModel, runtime: Runtime, forms: Sequence[Weights]
) -> Mapping[Weights, float]:
    """Seconds of the products of a model's largest layers, in each of several forms.

    Forms take turns, and each one's least time counts, since other work on the machine only adds to it. Of the times
    for 1 and for 8 rows this is the geometric mean, so that both count alike.

    Args:
        model: The base, on a CPU.
        runtime: What is to multiply.
        forms: The forms.
    """
    layers = _largest(model)
    inputs = {
        rows: [torch.randn(rows, layer.in_features).to(layer.weight.dtype) for layer in layers]
        for rows in _ROWS
    }
    run = {form: _products(model, layers, runtime, form) for form in forms}
    least = dict.fromkeys(((form, rows) for form in forms for rows in _ROWS), math.inf)
    for _ in range(_ROUNDS):
        for form, rows in least:
            start = time.perf_counter()
            run[form](inputs[rows])
            least[form, rows] = min(least[form, rows], time.perf_counter() - start)
    return {form: math.sqrt(math.prod(least[form, rows] for rows in _ROWS)) for form in forms}


def _largest(model: PreTrainedModel) -> list[nn.Linear]:
    """The largest linear layers of different shapes, but the output head."""
    head = model.get_output_embeddings()
    shapes = {
        module.weight.shape: module
        for module in model.modules()
        if type(module) is nn.Linear and module is not head
    }
    return sorted(shapes.values(), key=lambda module: -module.weight.numel())[:_LAYERS]


def _products(
    model: PreTrainedModel, layers: Sequence[nn.Linear], runtime: Runtime, form: Weights
) -> Callable[[Sequence[Tensor]], object]:
    rounding = rounding_of(form)
    if runtime == "openvino":
        from manytune.engine.openvino.products import products

        return products([layer.weight.detach() for layer in layers], rounding)
    forwards = [_forward(layer, form, can_be_reordered=can_reorder(model)) for layer in layers]
    return lambda inputs: [forward(x) for forward, x in zip(forwards, inputs, strict=True)]


def _forward(layer: nn.Linear, form: Weights, *, can_be_reordered: bool) -> Callable[[Tensor], Tensor]:
    if form == "int8":
        return quantized_layer(layer, 8)
    if form == "int4":
        return quantized_layer(layer, 4)
    return reordered_layer(layer) if can_be_reordered and form != "plain" else layer
