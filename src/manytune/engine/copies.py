"""How much memory a form of the weights takes in addition to the model."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from manytune.engine.options import Runtime
from manytune.engine.weights import Weights
from manytune.own_dtype import HALF

#: Bytes of a weight in OpenVINO's two graphs, of which one is made as soon as an adapter runs, and what making them
#: takes where that is more; measured with 0.8 billion weights. Of half precision the converted graph has a copy, too.
_IN_OPENVINO: dict[Weights, float] = {"reordered": 8, "plain": 8, "bf16": 4, "int8": 3.5, "int4": 2}
_HALF_IN_OPENVINO: dict[Weights, float] = {
    "reordered": 6.5,
    "plain": 6.5,
    "bf16": 6.5,
    "int8": 5.5,
    "int4": 2.5,
}
#: The same in torch, but for "reordered", which has the weights' own size.
_IN_TORCH: dict[Weights, float] = {"plain": 0, "bf16": 2, "int8": 1.6, "int4": 1.8}


def copied_bytes(model: nn.Module, weights: Weights, runtime: Runtime) -> int:
    """Bytes of the copies of a model's linear layers, at most at any time, about.

    Args:
        model: The base, whose weights aren't packed.
        weights: The form.
        runtime: What computes the forwards.
    """
    return round(sum(weight.numel() * _bytes_of(weight, weights, runtime) for weight in _matrices(model)))


def _bytes_of(weight: Tensor, weights: Weights, runtime: Runtime) -> float:
    if runtime == "openvino":
        return (_HALF_IN_OPENVINO if weight.dtype in HALF else _IN_OPENVINO)[weights]
    return weight.element_size() if weights == "reordered" else _IN_TORCH[weights]


def _matrices(model: nn.Module) -> Iterator[Tensor]:
    for module in model.modules():
        if isinstance(module, nn.Linear | Conv1D):
            yield module.get_parameter("weight")
