"""Products with a few weights in OpenVINO, alone, to see how long they take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from manytune.engine.openvino.compression import multiply
from manytune.engine.openvino.four_bits import FourBits, four_bits
from manytune.engine.openvino.library import core, ops, ov
from manytune.engine.openvino.program import settings
from manytune.engine.weights import Rounding


def products(weights: Sequence[Tensor], rounding: Rounding | None) -> Callable[[Sequence[Tensor]], object]:
    """A function that multiplies inputs, (rows, in) each, with a weight, (out, in), each.

    Args:
        weights: The weights.
        rounding: What to round them to; None for their own numbers.
    """
    inputs, outputs = [], []
    operations = four_bits() if rounding == 4 else None
    for weight in (one.float() for one in weights):
        inputs.append(ops.parameter([-1, weight.shape[1]], ov.Type.f32))
        outputs.append(_product(inputs[-1].output(0), weight, rounding, operations))
    graph = ov.Model(outputs, inputs, "products")
    compiled = core().compile_model(graph, "CPU", settings(rounding))
    return lambda given: compiled([one.float().numpy() for one in given])


def _product(x: Any, weight: Tensor, rounding: Rounding | None, operations: FourBits | None) -> Any:
    if rounding is None or rounding == "bf16":
        return ops.matmul(x, ops.constant(np.ascontiguousarray(weight.numpy())), False, True)
    return multiply(x, weight, rounding, operations)
